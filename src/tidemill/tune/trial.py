"""What is known of one trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One set of parameters: `running`, `complete` with the metric's value, or `pruned`, whose value is None.

    Its number is the least that no other trial had when it was drawn. One that dies with its process leaves its number
    to the next, so that numbers have no gaps in the end, whoever came and went.
    """

    number: int
    params: dict[str, Any]
    """By path, such as model.max_depth."""
    state: str = "running"
    """running | complete | pruned."""
    value: float | None = None
    """The metric on the validation rows."""
    seconds: float = 0.0
    curve: list[float] = field(default_factory=list)
    """What the model went by in each round, on the validation rows."""
    measure: str = ""
    """Of which kind and measure `curve` is: only the same are compared."""
    pace: float = 1.0
    """How far a round takes the fit."""
    greater_is_better: bool = True
    """Which way `curve` is better."""
    why: str | None = None
    """Of a pruned trial, what stopped it: median, successive_halving, hyperband or timeout."""

    def to_json(self) -> dict[str, Any]:
        """The trial as `trials.json` holds it."""
        told = {
            "number": self.number, "state": self.state, "params": self.params, "value": self.value,
            "seconds": round(self.seconds, 3), "curve": self.curve,
        }  # fmt: skip
        return told | ({"why": self.why} if self.why else {})

    def marks(self) -> dict[int, float]:
        """What it had reached at each whole step of progress (rounds times pace), more is better.

        By rounds alone a low learning rate, which ends up best, would always look behind.
        """
        sign = 1.0 if self.greater_is_better else -1.0
        found: dict[int, float] = {}
        for place, value in enumerate(self.curve, start=1):
            progress = int(place * self.pace + 1e-9)
            if progress and progress not in found:
                found[progress] = sign * value
        return found


def best_of(trials: Sequence[Trial], *, greater_is_better: bool) -> Trial | None:
    """The complete trial with the best value, of equals the first by number; however they arrived."""
    sign = 1.0 if greater_is_better else -1.0
    complete = sorted((trial for trial in trials if trial.value is not None), key=lambda trial: trial.number)
    return max(complete, key=lambda trial: sign * (trial.value or 0.0), default=None)


def ranked(trials: Sequence[Trial], *, greater_is_better: bool) -> list[Trial]:
    """The complete trials, the best first."""
    sign = -1.0 if greater_is_better else 1.0
    complete = [trial for trial in trials if trial.value is not None]
    return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
