"""One call's rows on their way, and the parts that they go in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from tidemill.core.package import Answers
from tidemill.serve.batching.rows import Rows
from tidemill.serve.http import Refused

# Levels of urgency, 1 before 9; who says none is in the middle.
USUAL, LEVELS = 5, range(1, 10)


def always() -> bool:
    return True


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
    answers: Answers | None = None
    as_row: bool = False
    """Whether the answer may be given as the fields of its one row, in `row`."""
    row: dict[str, Any] | None = None
    error: Exception | None = None
    begun: float = 0.0
    ended: float = 0.0

    def finish(self, ended: float) -> None:
        self.ended = ended
        self.done(self)

    def fail(self, error: Exception, now: float) -> None:
        self.error = error
        self.begun = self.begun or now
        self.finish(now)

    def refusal(self, now: float) -> Refused | None:
        """Why it shall not be run; None where it shall."""
        if now >= self.due:
            return Refused(504, "deadline", "the time that the request had is over", hint="give it more, or come when less is asked")
        return None if self.wanted() else Refused(499, "gone", "the caller has gone")
