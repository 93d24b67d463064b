"""One call's rows on their way, and the parts that they go in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

from tidemill.core.package import Answers
from tidemill.serve.batching.rows import Rows
from tidemill.serve.http import Refused

# Levels of urgency, 1 before 9; who says none is in the middle.
USUAL, LEVELS = 5, range(1, 10)


def always() -> bool:
    return True


def never() -> bool:
    return False


def _nothing(_: Job) -> None:
    return None


class Told(Protocol):
    """Counts a run of the model: its rows, what they cost, and what padding came beside that."""

    def __call__(self, rows: int, *, cost: int, padding: int) -> None: ...


@dataclass(slots=True, eq=False)
class Job:
    """Rows that want answers. Whoever takes it calls `done` once, from whichever thread, with `answers` or `error` in it.

    `due` is when the answer is of no use any more, `wanted` whether anybody still waits for it; times are of `perf_counter`.
    """

    rows: Rows
    count: int
    done: Callable[[Job], None]
    arrived: float
    due: float = inf
    priority: int = USUAL
    wanted: Callable[[], bool] = always
    needed: Callable[[], bool] = never
    """Whether others wait for the same, whatever has become of whoever asked first."""
    answers: Answers | None = None
    as_row: bool = False
    """Whether the answer may be given as the fields of its one row, in `row`."""
    row: dict[str, Any] | None = None
    error: Exception | None = None
    queued: float = 0.0
    predicted_s: float = 0.0
    """From `queued` to the answer, as far as a queue could tell; 0 where nothing was in the way."""
    begun: float = 0.0
    ended: float = 0.0

    def finish(self, ended: float) -> None:
        self.ended = ended
        done, self.done = self.done, _nothing  # what waits for it is let go of, which ends a circle
        done(self)

    def fail(self, error: Exception, now: float) -> None:
        self.error = error
        self.begun = self.begun or now
        self.finish(now)

    def is_worth_it(self, now: float) -> bool:
        """Whether it shall be run; it has failed where not."""
        refusal = self.refusal(now)
        if refusal is not None:
            self.fail(refusal, now)
        return refusal is None

    def refusal(self, now: float) -> Refused | None:
        """Why it shall not be run; None where it shall."""
        if (now < self.due and self.wanted()) or self.needed():
            return None
        if now >= self.due:
            return Refused(504, "deadline", "the time that the request had is over", hint="give it more, or come when less is asked")
        return Refused(499, "gone", "the caller has gone")
