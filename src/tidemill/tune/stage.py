"""The tune stage: fits that differ in parameters, judged on the validation rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tidemill.core.artifact import Artifact, hash_json, write_json
from tidemill.core.engine import memory_bytes
from tidemill.core.errors import DataError, Unsupported
from tidemill.core.events import Events
from tidemill.core.metrics import default_metric, metric_of
from tidemill.core.project import Project, fingerprint
from tidemill.train.workload import Workload, first_share, growing, prepare_model
from tidemill.tune import history
from tidemill.tune.config import TuneConfig
from tidemill.tune.narrow import importance
from tidemill.tune.search import NARROWED, Plan, said, take_part
from tidemill.tune.space import KIND, space_of
from tidemill.tune.store import Store
from tidemill.tune.trial import Trial, best_of
from tidemill.tune.worker import order_of
from tidemill.tune.workers import run_workers


@dataclass(frozen=True, kw_only=True)
class Warm:
    """What comes from searches on other tables."""

    starts: Sequence[dict[str, Any]] = ()
    """What is tried after the project's own parameters: `params` by path, and `from`, in words."""
    studies: Sequence[dict[str, Any]] = ()
    """Whole searches with the `distance` of their tables, for the sampler that learns from them."""

    def parts(self) -> dict[str, Any]:
        """What the stage's output depends on."""
        return {"starts": list(self.starts), "studies": hash_json(list(self.studies)) if self.studies else None}


def run(
    project: Project,
    data: Artifact,
    features: Artifact,
    out: Path,
    *,
    work: Path,
    events: Events,
    warm: Warm | None = None,
    studies: Path | None = None,
) -> dict[str, Any]:
    """Fill `out` with `best.json` (path to value), `trials.json`, `search.json` and `study.json`.

    Args:
        work: Unfinished work stays here and is taken up again.
        warm: What `warm_start` gave.
        studies: Folder that keeps the finished search for later ones.

    Raises:
        Unsupported: If there are no validation rows to judge by.
        DataError: If the metric is undefined on the validation rows.
        Unavailable: If the storage does not answer, or workers die again and again.
    """
    config: TuneConfig = project.tune
    prepare_model(project)
    workload = Workload.of(project, data, features)
    if workload.valid is None:
        raise Unsupported("tune: needs validation rows to judge by", hint="raise data.split.valid")
    warm = warm or Warm()
    starts = [start["params"] for start in warm.starts]
    plan = Plan.of(project, metric=metric_name(project, workload.problem.task), starts=starts, studies=warm.studies)
    share = _share(project, data)
    question = _question(project, plan, of=[data.id, features.id, share, hash_json(list(warm.studies))], threads=workload.threads)
    store = Store(work, study=question, url=config.storage)
    try:
        done = store.finished()
        if done:
            events.emit("tune.resumed", f"{len(done)} of {plan.trials} trials were done", done=len(done))
        if config.workers == 1:
            take_part(project, plan, workload, store, events=events)
        else:
            shared = _shared(project, workload.threads)
            order = order_of(shared, plan, data, features, folder=work, study=question, share=share, studies=warm.studies)
            run_workers(order, config.workers, events=events)
        trials, notes = store.finished(), store.notes()
    finally:
        store.close()
    best = best_of(trials, greater_is_better=plan.greater_is_better)
    if best is None:  # every trial pruned cannot be: the first ones have nothing to be compared with
        raise DataError("tuning must finish at least one trial, finished none")
    write_json(out / "best.json", best.params)
    write_json(out / "trials.json", [trial.to_json() for trial in trials])
    search = _told(plan, trials, notes, warm)
    write_json(out / "search.json", search)
    study = history.record(
        _studies(project, studies), question=question[:16], name=project.name, data=data, task=workload.problem.task, metric=plan.metric,
        meta=_described(workload, data, features, studies), trials=trials, greater_is_better=plan.greater_is_better,
    )  # fmt: skip
    write_json(out / "study.json", study)
    return {
        "metric": plan.metric,
        "direction": search["direction"],
        "best": best.value,
        "best_trial": best.number,
        "first": trials[0].value,
        "trials": len(trials),
        "pruned": sum(trial.state == "pruned" for trial in trials),
        "params": best.params,
        "fit_s": round(sum(trial.seconds for trial in trials), 3),
        "starts": len(warm.starts),
        "studies": len(warm.studies),
        "narrowed": said(notes[NARROWED]) if NARROWED in notes else None,
    }


def warm_start(project: Project, data: Artifact, features: Artifact, *, studies: Path) -> Warm:
    """What `tune.warm_start` brings from elsewhere; part of what the stage depends on.

    Args:
        studies: Folder of earlier searches, where the project names none; what is told of tables is kept there too.
    """
    config: TuneConfig = project.tune
    if config.warm_start == "none":
        return Warm()
    prepare_model(project)
    space = space_of(config.space, project.model)
    near: Sequence[tuple[float, Mapping[str, Any]]] = []
    if config.warm_start == "history":
        meta = _described(Workload.of(project, data, features), data, features, studies)
        near = history.nearest(meta, history.studies(_studies(project, studies) or studies, without=data.id))
    if config.sampler == "transfer":
        return Warm(studies=[{**study, "distance": distance} for distance, study in near[: history.MOST_STUDIES]])
    kinds = next(([str(kind) for kind in d.choices] for d in space.dimensions if d.path == KIND), [project.model.kind])
    return Warm(starts=history.starts(near, space, portfolio=history.portfolio(kinds)))


def metric_name(project: Project, task: Any) -> str:
    """The metric that picks the best trial: `tune.metric`, else the contract's, else the task's."""
    quality = getattr(project.contract, "quality", None)
    name = project.tune.metric or getattr(quality, "metric", None) or default_metric(task)
    metric_of(name, task)
    return str(name)


def _share(project: Project, data: Artifact) -> float:
    """The share of the training rows that is searched on: the first sample, where samples are to grow."""
    sampling = growing(project)
    return 1.0 if sampling is None else first_share(sampling, int(data.read_json("schema.json")["rows"]["train"]))


def _shared(project: Project, threads: int) -> Project:
    """The project with each worker's part of the machine."""
    workers = project.tune.workers
    memory = max(1, memory_bytes(project.engine.memory) // workers)
    return replace(project, engine=replace(project.engine, threads=max(1, threads // workers), memory=str(memory)))


def _question(project: Project, plan: Plan, *, of: list[Any], threads: int) -> str:
    """What the trials are an answer to, however many there are to be and whoever tries them."""
    config = plan.config
    return fingerprint(
        space=plan.space,
        sampler=config.sampler,
        pruner=config.pruner,
        seed=plan.seed,
        metric=plan.metric,
        model=project.model,
        starts=plan.starts,
        narrow=config.narrow and (config.narrow_after or True),
        # Machines that share a search may have as many threads as they like.
        threads=None if config.storage else threads // config.workers,
        of=of,
    )


def _told(plan: Plan, trials: Sequence[Trial], notes: dict[str, Any], warm: Warm) -> dict[str, Any]:
    """How the search went, for the report."""
    greater = plan.greater_is_better
    return {
        "sampler": plan.config.sampler,
        "pruner": plan.config.pruner,
        "workers": plan.config.workers,
        "direction": "maximize" if greater else "minimize",
        "starts": list(warm.starts),
        "studies": [{"name": study["name"], "distance": study["distance"]} for study in warm.studies],
        "narrowed": {**notes[NARROWED], "said": said(notes[NARROWED])} if NARROWED in notes else None,
        "importance": importance(plan.space, trials, seed=plan.seed, greater_is_better=greater),
    }


def _studies(project: Project, studies: Path | None) -> Path | None:
    return project.folder / project.tune.history if project.tune.history else studies


def _described(workload: Workload, data: Artifact, features: Artifact, studies: Path | None) -> dict[str, float]:
    """The table in numbers, told once."""
    if studies is None:
        return history.describe(workload, data)
    path = studies / "tables" / f"{data.id[:16]}-{features.id[:16]}.json"
    if path.exists():
        found: dict[str, float] = Artifact(path.parent, {}).read_json(path.name)
        return found
    meta = history.describe(workload, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, meta)
    return meta
