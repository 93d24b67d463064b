"""`[serve.batch]`: how many rows go through a model together, who waits how long, and who is refused at once."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How requests are put together. Nothing waits for others to come unless `max_delay_ms` says so."""

    max_rows: int = field(default=4096, metadata={"min": 1, "max": 1_000_000})
    """Most rows that go through the model at once; 1 runs every row alone."""
    max_tokens: int | None = field(default=None, metadata={"min": 1})
    """Most tokens of texts that go through at once, padding included; 512 on a processor and any number on other devices when absent."""
    max_run_ms: float = field(default=100.0, metadata={"min": 0.1, "max": 600_000.0})
    """Rows are put together as long as they take at most this long by what was measured, in milliseconds."""
    max_delay_ms: float = field(default=0.0, metadata={"min": 0.0, "max": 60_000.0})
    """How long a request of a slow model waits for others to go with, from the first one's arrival, in milliseconds."""
    max_queue: int = field(default=4096, metadata={"min": 1, "max": 1_000_000})
    """Most requests of a model that wait; further ones get 503."""
    deadline_ms: float | None = field(default=None, metadata={"min": 0.1, "max": 3_600_000.0})
    """Time for an answer of a slow model where the caller states none, in milliseconds; a request that would take longer gets 503 at once. When
    absent, what the package's contract promises as `latency p99_ms`, and without a promise any time."""
