"""Which trials are stopped before they end: those that are behind the others at the same progress."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tidemill.tune.trial import Trial

# Trials are compared at whole steps of progress (rounds times the model's pace) from this one on.
WARMUP = 3
# Trials that must be complete before a median is taken.
COMPARED_TRIALS = 5
# Of the trials that reach a rung one in so many goes on, and the next rung is so many times as far.
REDUCTION = 3
# Hyperband's brackets: the first rung of each, None for none, and its share of the trials; the cheaper, the more of them
# (Li et al. 2018, table 1, for a longest run of 27 steps).
BRACKETS: tuple[tuple[int | None, int], ...] = ((WARMUP, 9), (WARMUP * REDUCTION, 5), (None, 3))


class Referee:
    """Judges one running trial against those that ended, of which only the ones of the same measure count."""

    def __init__(self, pruner: str, number: int, others: Sequence[Trial], *, measure: str) -> None:
        """Take the pruner's name: median, successive_halving, hyperband or none."""
        self._pruner = pruner
        self._first_rung = bracket_of(number) if pruner == "hyperband" else WARMUP
        rivals = [other for other in others if other.measure == measure]
        if pruner == "hyperband":
            rivals = [other for other in rivals if bracket_of(other.number) == self._first_rung]
        self._marks = [other.marks() for other in rivals if other.state == "complete" or pruner != "median"]
        self._best = float("-inf")
        self._progress = 0
        self._rung = self._first_rung

    def stops(self, progress: int, value: float) -> bool:
        """Whether the trial should stop, having come to `progress` with `value`, more is better; asked after each round."""
        if self._pruner == "none" or progress <= self._progress:
            return False
        self._progress, self._best = progress, max(self._best, value)
        if self._pruner == "median":
            return self._below_median(progress)
        if self._rung is None or progress < self._rung:
            return False
        while self._rung <= progress:
            self._rung *= REDUCTION
        return not self._goes_on(progress, value)

    def _below_median(self, progress: int) -> bool:
        if progress < WARMUP or len(self._marks) < COMPARED_TRIALS:
            return False
        reached = [marks[progress] for marks in self._marks if progress in marks]
        return bool(reached) and self._best < statistics.median(reached)

    def _goes_on(self, progress: int, value: float) -> bool:
        """Whether it is among the best third of those that came as far (asynchronous successive halving, Li et al. 2020)."""
        reached = [marks[progress] for marks in self._marks if progress in marks]
        better = sum(other > value for other in reached)
        return better < max(1, (len(reached) + 1) // REDUCTION)


def bracket_of(number: int) -> int | None:
    """The first rung of the bracket that a trial of hyperband is in: the brackets take turns by their shares."""
    places = sorted(((turn + 0.5) / share, index) for index, (_, share) in enumerate(BRACKETS) for turn in range(share))
    return BRACKETS[places[number % len(places)][1]][0]
