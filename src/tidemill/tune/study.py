"""A resumable search: Optuna asked one trial at a time, its journal on disk.

A search that was killed and resumed gives the same trials as one that was not. Each trial is drawn by a sampler seeded
with the search's seed and the number of trials finished before it, from those trials alone; a trial that died with its
process is marked failed, takes no number and is drawn again.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill.core.load import need
from tidemill.tune.config import Dimension, TuneConfig

JOURNAL = "study.journal"

# Trials drawn at random before the sampler starts to learn.
STARTUP_TRIALS = 8
# A trial is compared with the others at the same progress (rounds times the model's pace), at whole numbers of it from this
# one on. By rounds alone a low learning rate, which ends up best, would always look behind.
WARMUP = 3
# Trials that must be complete before any is compared.
COMPARED_TRIALS = 5

_PURPOSE = "tuning"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A trial that ended: `complete` with the metric's value, or `pruned`, whose value is not comparable and None."""

    number: int
    state: str
    params: dict[str, Any]
    """By path, such as model.max_depth."""
    value: float | None
    seconds: float
    curve: list[float]
    """What the model went by in each round, on the validation rows."""

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number, "state": self.state, "params": self.params, "value": self.value,
            "seconds": round(self.seconds, 3), "curve": self.curve,
        }  # fmt: skip


class Study:
    """One search. Not for several processes at once: the caller holds the folder's lock."""

    def __init__(
        self, folder: Path, *, name: str, dimensions: Sequence[Dimension], config: TuneConfig, seed: int, greater_is_better: bool
    ) -> None:
        optuna = need("optuna", _PURPOSE)
        journal = need("optuna.storages.journal", _PURPOSE)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._config = config
        self._seed = seed
        self._dimensions = list(dimensions)
        self._paths = {dimension.name: dimension.path for dimension in dimensions}
        self._sign = 1.0 if greater_is_better else -1.0
        mend(folder)
        self._study = optuna.create_study(
            storage=optuna.storages.JournalStorage(journal.JournalFileBackend(str(folder / JOURNAL))),
            study_name=name,
            direction="maximize" if greater_is_better else "minimize",
            pruner=self._pruner(),
            load_if_exists=True,
        )
        for trial in self._trials(optuna.trial.TrialState.RUNNING):
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    def finished(self) -> list[Finished]:
        """The trials that ended, in order, numbered without those that died."""
        state = self._optuna.trial.TrialState
        return [
            Finished(
                number=number,
                state="complete" if trial.state == state.COMPLETE else "pruned",
                params={self._paths[name]: value for name, value in sorted(trial.params.items())},
                value=trial.value if trial.state == state.COMPLETE else None,
                seconds=float(trial.user_attrs["seconds"]),
                curve=list(trial.user_attrs["curve"]),
            )
            for number, trial in enumerate(self._trials(state.COMPLETE, state.PRUNED))
        ]

    def ask(self, number: int, first: Mapping[str, Any]) -> Trial:
        """The trial to run as number `number`; `first` are the parameters, by name, of number 0 where the space holds them."""
        state = self._optuna.trial.TrialState
        if number == 0 and not self._trials(state.WAITING):
            start = {dimension.name: first[dimension.name] for dimension in self._dimensions if dimension.holds(first[dimension.name])}
            self._study.enqueue_trial(start)
        self._study.sampler = self._sampler(number)
        return Trial(self, self._study.ask({dimension.name: self._distribution(dimension) for dimension in self._dimensions}))

    def best(self) -> Finished | None:
        """The first of the complete trials with the best value."""
        complete = [trial for trial in self.finished() if trial.value is not None]
        return max(complete, key=lambda trial: self._sign * (trial.value or 0.0), default=None)

    def _trials(self, *states: Any) -> list[Any]:
        found: list[Any] = self._study.get_trials(deepcopy=False, states=states)
        return found

    def _sampler(self, number: int) -> Any:
        seed = zlib.crc32(f"{self._seed}/{number}".encode())
        samplers = self._optuna.samplers
        return (
            samplers.RandomSampler(seed=seed)
            if self._config.sampler == "random"
            else samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        )

    def _pruner(self) -> Any:
        pruners = self._optuna.pruners
        if self._config.pruner == "none":
            return pruners.NopPruner()
        return pruners.MedianPruner(n_startup_trials=COMPARED_TRIALS, n_warmup_steps=WARMUP)

    def _distribution(self, dimension: Dimension) -> Any:
        kinds = self._optuna.distributions
        if dimension.kind == "choice":
            return kinds.CategoricalDistribution(dimension.choices)
        if dimension.kind == "int":
            return kinds.IntDistribution(int(dimension.low), int(dimension.high))
        return kinds.FloatDistribution(float(dimension.low), float(dimension.high), log=dimension.kind == "log_float")


class Trial:
    """One set of parameters under test."""

    def __init__(self, study: Study, trial: Any) -> None:
        self._study = study
        self._trial = trial
        self._curve: list[float] = []
        self._progress = 0
        self.params: dict[str, Any] = dict(trial.params)
        self.pruned = False

    def tell_round(self, value: float, *, pace: float, greater_is_better: bool) -> bool:
        """Take what was measured in the next round; True where the trial should stop."""
        self._curve.append(value)
        progress = int(len(self._curve) * pace + 1e-9)
        if self._study._config.pruner == "none" or progress == self._progress:
            return False
        self._progress = progress
        # Stands in for the metric while the trial runs, turned to its direction.
        self._trial.report(value if greater_is_better == (self._study._sign > 0) else -value, progress)
        self.pruned = bool(self._trial.should_prune())
        return self.pruned

    def end(self, value: float | None, *, seconds: float) -> None:
        """Record how the trial went; `value` counts only where it was not pruned."""
        self._trial.set_user_attr("seconds", seconds)
        self._trial.set_user_attr("curve", self._curve)
        state = self._study._optuna.trial.TrialState
        if self.pruned:
            self._study._study.tell(self._trial, state=state.PRUNED)
        else:
            self._study._study.tell(self._trial, value)


def mend(folder: Path) -> None:
    """Take away what a killed process left: its lock, and a last line that was not written whole."""
    for lock in folder.glob(f"{JOURNAL}.lock*"):
        lock.unlink(missing_ok=True)
    journal = folder / JOURNAL
    if not journal.exists():
        return
    with journal.open("r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
