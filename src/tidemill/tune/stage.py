"""The tune stage: fits that differ in parameters, judged on the validation rows."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tidemill.core.artifact import Artifact, write_json
from tidemill.core.errors import DataError, Unsupported
from tidemill.core.events import Events
from tidemill.core.metrics import default_metric, evaluate, metric_of
from tidemill.core.project import Project, fingerprint
from tidemill.models import base
from tidemill.models.base import Model, OnRound
from tidemill.train.workload import Workload, prepare_model
from tidemill.tune.config import Dimension, TuneConfig, dimensions
from tidemill.tune.study import Finished, Study, Trial

_TELL_S = 0.2


def run(project: Project, data: Artifact, features: Artifact, out: Path, *, work: Path, events: Events) -> dict[str, Any]:
    """Fill `out` with `best.json` (path to value) and `trials.json`; unfinished work stays in `work` and is taken up again.

    Raises:
        Unsupported: If there are no validation rows to judge by.
        DataError: If the metric is undefined on the validation rows.
    """
    config: TuneConfig = project.tune
    model, defaults = prepare_model(project)
    space = dimensions(config, project.model)
    workload = Workload.of(project, data, features)
    if workload.valid is None:
        raise Unsupported("tune: needs validation rows to judge by", hint="raise data.split.valid")
    metric = metric_name(project, workload.problem.task)
    study = _study(project, space, metric, work, of=[data.id, features.id, workload.threads])
    first = {dimension.name: getattr(defaults, dimension.name) for dimension in space}
    done = study.finished()
    if done:
        events.emit("tune.resumed", f"{len(done)} of {config.trials} trials were done", done=len(done))
    while len(done) < config.trials and not _out_of_time(done, config):
        trial = study.ask(len(done), first)
        _try(project, workload, model, trial, metric, number=len(done), events=events)
        done = study.finished()
        _tell(done, study.best(), config.trials, metric, events)
    best = study.best()
    if best is None:  # every trial pruned cannot be: the first ones have nothing to be compared with
        raise DataError("tuning must finish at least one trial, finished none")
    write_json(out / "best.json", best.params)
    write_json(out / "trials.json", [trial.to_json() for trial in done])
    return {
        "metric": metric,
        "best": best.value,
        "best_trial": best.number,
        "first": done[0].value,
        "trials": len(done),
        "pruned": sum(trial.state == "pruned" for trial in done),
        "params": best.params,
        "fit_s": round(sum(trial.seconds for trial in done), 3),
    }


def metric_name(project: Project, task: Any) -> str:
    """The metric that picks the best trial: `tune.metric`, else the contract's, else the task's."""
    quality = getattr(project.contract, "quality", None)
    name = project.tune.metric or getattr(quality, "metric", None) or default_metric(task)
    metric_of(name, task)
    return str(name)


def _study(project: Project, space: list[Dimension], metric: str, work: Path, *, of: list[Any]) -> Study:
    """The search that `work` holds for exactly this question, however many trials were asked for."""
    config: TuneConfig = project.tune
    seed = project.seed if config.seed is None else config.seed
    question = fingerprint(space=space, sampler=config.sampler, pruner=config.pruner, seed=seed, metric=metric, model=project.model, of=of)
    return Study(
        work,
        name=question[:16],
        dimensions=space,
        config=config,
        seed=seed,
        greater_is_better=metric_of(metric).greater_is_better,
    )


def _try(project: Project, workload: Workload, model: Model, trial: Trial, metric: str, *, number: int, events: Events) -> None:
    start = time.perf_counter()
    params = project.model.parameters(trial.params)
    fitted = workload.fit(model, params, _watcher(trial, number, model.pace(params), events))
    value = None
    if not trial.pruned and workload.valid is not None:
        y_N, weight_N = workload.valid.targets()
        task: Any = workload.problem.task
        value = evaluate(task, y_N, base.predict(fitted, workload.valid), weight=weight_N, metrics=[metric])[metric]
        if not math.isfinite(value):
            raise DataError(f"tune.metric: {metric} is undefined on the validation rows", hint="look at the split, or name another metric")
    trial.end(value, seconds=time.perf_counter() - start)


def _watcher(trial: Trial, number: int, pace: float, events: Events) -> OnRound:
    told = [time.perf_counter()]

    def on_round(round_number: int, measured: Mapping[str, float]) -> bool:
        now = time.perf_counter()
        if now - told[0] >= _TELL_S:
            told[0] = now
            events.emit(
                "train.round", f"trial {number}, round {round_number}", level="progress", trial=number, round=round_number, **measured
            )
        for name, value in measured.items():  # the first is what the model goes by
            return trial.tell_round(value, pace=pace, greater_is_better=metric_of(name.removeprefix("valid_")).greater_is_better)
        return False

    return on_round


def _tell(done: list[Finished], best: Finished | None, trials: int, metric: str, events: Events) -> None:
    last = done[-1]
    result = "pruned" if last.value is None else f"{metric} {last.value:.4f}"
    message = f"trial {last.number + 1} of {trials}: {result}" + (f", best {best.value:.4f}" if best else "")
    fields: dict[str, Any] = {"number": last.number, "trials": trials, "state": last.state, "value": last.value, "params": last.params}
    events.emit("tune.trial", message, **fields, best=best.value if best else None, seconds=round(last.seconds, 3))


def _out_of_time(done: list[Finished], config: TuneConfig) -> bool:
    return bool(done) and config.timeout_s is not None and sum(trial.seconds for trial in done) >= config.timeout_s
