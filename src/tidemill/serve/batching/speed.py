"""What a unit of work takes, by what was measured lately, and how far predictions from it are off."""

from __future__ import annotations

# What a measurement still counts after the next one.
KEPT = 0.9

# The share of answers that shall not take longer than predicted, with caution; how fast caution follows, and its bounds.
SHARE, STEP = 0.99, 0.05
LEAST, MOST = 1.1, 4.0


class Speed:
    """Seconds for a unit of cost (a row, a token): the ratio of two fading sums, so that long runs count for what they are.

    Args:
        unit_s: The first guess, which counts as one run of one unit.
    """

    def __init__(self, unit_s: float) -> None:
        self._seconds = max(unit_s, 1e-9)
        self._cost = 1.0

    @property
    def unit_s(self) -> float:
        return self._seconds / self._cost

    def add(self, cost: float, seconds: float) -> None:
        """Count a run."""
        self._seconds = KEPT * self._seconds + max(seconds, 1e-9)
        self._cost = KEPT * self._cost + cost


class Caution:
    """What a prediction is multiplied by, so that all but a hundredth of the answers come within it: a quantile that is followed by steps."""

    def __init__(self) -> None:
        self.factor = 1.5

    def add(self, predicted_s: float, took_s: float) -> None:
        """Count how long something took that was predicted."""
        step = STEP * SHARE if took_s > predicted_s * self.factor else -STEP * (1 - SHARE)
        self.factor = min(MOST, max(LEAST, self.factor + step))
