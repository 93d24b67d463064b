"""A worker's part of a search: claim a trial, fit it, enter how it ended, until the budget is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tidemill.core.errors import DataError, Unsupported
from tidemill.core.events import Events
from tidemill.core.metrics import evaluate, metric_of
from tidemill.core.project import Project
from tidemill.models import base
from tidemill.models.base import Model
from tidemill.models.config import ModelConfig
from tidemill.models.weights import Reweighted, class_weights
from tidemill.train.workload import Workload
from tidemill.tune.config import TuneConfig
from tidemill.tune.draw import draw
from tidemill.tune.narrow import narrowed, with_narrowing
from tidemill.tune.prune import Referee
from tidemill.tune.space import KIND, Space, space_of
from tidemill.tune.store import Board, Store
from tidemill.tune.transfer import Prior, propose
from tidemill.tune.trial import Trial, best_of

NARROWED = "narrowed"

_TELL_S = 0.2
# How long a worker without a trial waits for those of others.
_WAIT_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every worker of a search has to know."""

    config: TuneConfig
    space: Space
    metric: str
    seed: int
    trials: int
    """How many there are to be: as many as asked for, or as the grid has."""
    starts: Sequence[Mapping[str, Any]]
    """Values of the first trials after number 0, by path."""
    own: Mapping[str, Any]
    """The project's own parameters, by path: trial number 0, where the space holds them."""
    prior: Prior | None
    """What earlier searches say, for the sampler that learns from them."""

    @classmethod
    def of(
        cls, project: Project, *, metric: str, starts: Sequence[Mapping[str, Any]] = (), studies: Sequence[Mapping[str, Any]] = ()
    ) -> Plan:
        """The plan of a project whose model can be found."""
        config: TuneConfig = project.tune
        space = space_of(config.space, project.model)
        if config.sampler == "transfer" and any(dimension.when for dimension in space.dimensions):
            raise Unsupported("tune.sampler: transfer takes no conditions between parameters", hint='use sampler = "tpe"')
        return cls(
            config=config,
            space=space,
            metric=metric,
            seed=project.seed if config.seed is None else config.seed,
            trials=min(config.trials, len(space.grid())) if config.sampler == "grid" else config.trials,
            starts=starts,
            own=_own(project.model),
            prior=Prior.of(space, studies) if config.sampler == "transfer" else None,
        )

    @property
    def greater_is_better(self) -> bool:
        return metric_of(self.metric).greater_is_better

    def choose(self, board: Board) -> dict[str, Any] | None:
        """The parameters of the next trial, or None where the budget is spent or others work on the rest of it."""
        if len(board.finished) + len(board.running) >= self.trials or self.is_out_of_time(board.finished):
            return None
        narrows_at = self.config.narrows_at()
        if narrows_at is not None and NARROWED not in board.notes and len(board.finished) >= narrows_at:
            found = narrowed(self.space, board.finished, seed=self.seed, greater_is_better=self.greater_is_better)
            if found is not None:
                board.notes[NARROWED] = found
        space = with_narrowing(self.space, board.notes.get(NARROWED))
        trials = [*board.finished, *board.running]
        options: dict[str, Any] = {"number": board.number, "seed": self.seed, "greater_is_better": self.greater_is_better}
        if self.prior is not None and board.number:
            return propose(self.prior, space, trials, **options)
        start = ([self.own, *self.starts][board.number : board.number + 1] or [{}])[0]
        return draw(space, trials, sampler="random" if self.prior is not None else self.config.sampler, start=start, **options)

    def is_out_of_time(self, finished: Sequence[Trial]) -> bool:
        return bool(finished) and self.left_s(finished) <= 0

    def left_s(self, finished: Sequence[Trial]) -> float:
        """Seconds of fitting that are left to each worker."""
        if self.config.timeout_s is None:
            return math.inf
        return self.config.timeout_s - sum(trial.seconds for trial in finished) / self.config.workers


def take_part(project: Project, plan: Plan, workload: Workload, store: Store, *, events: Events) -> None:
    """Try parameters until the search needs no more, and wait for the trials of others.

    Raises:
        DataError: If the metric is undefined on the validation rows.
    """
    fits = _Fits(project, workload)
    while True:
        trial, board = store.claim(plan.choose)
        if trial is None:
            if not board.running:
                return
            time.sleep(_WAIT_S)
            continue
        note = board.notes.get(NARROWED)
        if note is not None and note["after"] == len(board.finished):  # it was agreed on just now
            events.emit("tune.narrowed", said(note), **note)
        ended = _try(fits, plan, trial, board.finished, events)
        if store.finish(ended):
            _tell(ended, store.finished(), plan, events)


def said(note: Mapping[str, Any]) -> str:
    """What narrowing did, as a sentence."""
    fixed, ranges = note.get("fixed", {}), note.get("ranges", {})
    parts = [f"{path.removeprefix('model.')} fixed at {_short(value)}" for path, value in fixed.items()]
    parts += [f"{path.removeprefix('model.')} to {_short(low)}..{_short(high)}" for path, (low, high) in ranges.items()]
    return f"space was narrowed after {note['after']} trials: " + ("; ".join(parts) or "nothing stood out")


class _Fits:
    """The project's model under settings that trials change; what a kind derived from the rows is kept for its next fit."""

    def __init__(self, project: Project, workload: Workload) -> None:
        self._config: ModelConfig = project.model
        self.workload = workload
        self._made: dict[str, tuple[Model, Workload]] = {}

    def of(self, params: Mapping[str, Any]) -> tuple[ModelConfig, Model, Workload]:
        config = self._config.tuned(params)
        key = f"{config.kind} {config.class_weight!r}"
        if key not in self._made:
            self._made[key] = (config.model(), self._weighted(config))
        return config, *self._made[key]

    def _weighted(self, config: ModelConfig) -> Workload:
        workload = self.workload
        if config.class_weight == self._config.class_weight:
            return workload
        if config.class_weight is None:
            return replace(workload, weighted_train=workload.train, weighted_valid=workload.valid)
        weight_K = class_weights(workload.train, config.class_weight, workload.problem.classes or [])
        valid = None if workload.valid is None else Reweighted(workload.valid, weight_K)
        return replace(workload, weighted_train=Reweighted(workload.train, weight_K), weighted_valid=valid)


class _Watch:
    """Follows the rounds of a fit, and stops it where it lags behind or the time is up."""

    def __init__(self, trial: Trial, plan: Plan, pace: float, kind: str, finished: Sequence[Trial], events: Events) -> None:
        self._plan, self._events, self._kind, self._finished = plan, events, kind, finished
        self._started = self._told = time.perf_counter()
        self._referee: Referee | None = None
        complete = any(other.state == "complete" for other in finished)
        self._left_s = plan.left_s(finished) if complete else math.inf
        self.trial = replace(trial, pace=pace)

    def on_round(self, round_number: int, measured: Mapping[str, float]) -> bool:
        now = time.perf_counter()
        number = self.trial.number
        if now - self._told >= _TELL_S:
            self._told = now
            message = f"trial {number}, round {round_number}"
            self._events.emit("train.round", message, level="progress", trial=number, round=round_number, **measured)
        why = "timeout" if now - self._started > self._left_s else None
        for name, value in measured.items():  # the first is what the model goes by
            if self._referee is None:
                greater = metric_of(name.removeprefix("valid_")).greater_is_better
                self.trial = replace(self.trial, measure=f"{self._kind} {name}", greater_is_better=greater)
                self._referee = Referee(self._plan.config.pruner, number, self._finished, measure=self.trial.measure)
            self.trial.curve.append(value)
            progress = int(len(self.trial.curve) * self.trial.pace + 1e-9)
            if self._referee.stops(progress, value if self.trial.greater_is_better else -value):
                why = why or self._plan.config.pruner
            break
        if why:
            self.trial = replace(self.trial, state="pruned", why=why)
        return why is not None


def _own(model: ModelConfig) -> dict[str, Any]:
    """Every parameter of the project's model by path, as a space would have it."""
    params = model.parameters()
    found = {f"model.{field.name}": getattr(params, field.name) for field in fields(params)}
    settings = {"model.calibrate": model.calibrate, "model.class_weight": model.class_weight}
    return {**found, KIND: model.kind, **{path: "none" if value is None else value for path, value in settings.items()}}


def _try(fits: _Fits, plan: Plan, trial: Trial, finished: Sequence[Trial], events: Events) -> Trial:
    start = time.perf_counter()
    config, model, workload = fits.of(trial.params)
    params = config.parameters()
    watch = _Watch(trial, plan, model.pace(params), config.kind, finished, events)
    fitted = workload.fit(model, params, watch.on_round)
    ended = watch.trial
    if ended.state != "pruned" and workload.valid is not None:
        fitted = workload.calibrated(fitted, config)
        y_N, weight_N = workload.valid.targets()
        task: Any = workload.problem.task
        value = evaluate(task, y_N, base.predict(fitted, workload.valid), weight=weight_N, metrics=[plan.metric])[plan.metric]
        if not math.isfinite(value):
            said_ = f"tune.metric: {plan.metric} is undefined on the validation rows"
            raise DataError(said_, hint="look at the split, or name another metric")
        ended = replace(ended, state="complete", value=float(value))
    return replace(ended, seconds=time.perf_counter() - start)


def _tell(trial: Trial, done: Sequence[Trial], plan: Plan, events: Events) -> None:
    best = best_of(done, greater_is_better=plan.greater_is_better)
    result = f"stopped ({trial.why})" if trial.value is None else f"{plan.metric} {trial.value:.4f}"
    message = f"trial {len(done)} of {plan.trials}: {result}" + (f", best {best.value:.4f}" if best else "")
    fields: dict[str, Any] = {
        "number": trial.number,
        "trials": plan.trials,
        "state": trial.state,
        "value": trial.value,
        "params": trial.params,
    }
    events.emit("tune.trial", message, **fields, best=best.value if best else None, seconds=round(trial.seconds, 3))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
