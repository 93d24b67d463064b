"""Until when a caller wants its answer, and how urgent it is: from headers, or from what the protocol's body says."""

from __future__ import annotations

from math import inf

from tidemill.serve.batching.job import LEVELS, USUAL
from tidemill.serve.http import Refused, Request
from tidemill.serve.routes import Work

TIMEOUT = "x-request-timeout-ms"
PRIORITY = "x-request-priority"


def wishes(request: Request, work: Work, *, default_ms: float | None) -> tuple[float, int]:
    """When the answer is due, by `perf_counter`, and its level of urgency, 1 before 9.

    Args:
        default_ms: What holds where the caller says nothing; None for any time.

    Raises:
        Refused: With 400, if a header is no such number.
    """
    timeout, priority = request.headers.get(TIMEOUT), request.headers.get(PRIORITY)
    timeout_s = inf if default_ms is None else default_ms / 1e3
    if timeout is not None or work.timeout_s is not None:
        stated_s = inf if timeout is None else _milliseconds(str(timeout)) / 1e3
        timeout_s = min(stated_s, inf if work.timeout_s is None else work.timeout_s)
    level = USUAL if priority is None else _level(str(priority))
    return request.arrived + timeout_s, work.priority or level


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < inf:
        raise Refused(400, "malformed", f"the header {TIMEOUT} must be milliseconds from 0 on, got {text[:20]!r}")
    return value


def _level(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) == 1 and int(text) in LEVELS):
        raise Refused(400, "malformed", f"the header {PRIORITY} must be 1 (first) to 9 (last), got {text[:20]!r}")
    return int(text)
