"""What a unit of work takes, by what was measured lately."""

from __future__ import annotations

# What a measurement still counts after the next one.
KEPT = 0.9


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
