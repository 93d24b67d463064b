"""How rows are read and shuffled, and how far ahead."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How rows reach a network. What is said of `shuffle_mib` is part of the order of rows, the rest is not."""

    workers: int | None = field(default=None, metadata={"min": 0, "max": 256})
    """Threads of each rank that read, transform, tokenize and decode; 0 does it all between two steps. Absent means 2, or 0 on a machine
    without GPU in passes that find all rows in memory."""
    prefetch: int = field(default=4, metadata={"min": 1, "max": 1024})
    """Steps that are made ready ahead of the one under way."""
    shuffle_mib: int = field(default=256, metadata={"min": 1, "max": 1_048_576})
    """Rows that are mixed with each other take this much memory; row groups are drawn at random to fill it, at least one. A rank holds its part of
    this twice at most: what it trains on, and what comes next."""
    cache_mib: int = field(default=256, metadata={"min": 0, "max": 1_048_576})
    """Rows that are ready, as features or tokens, stay in the memory of each rank where all of them fit; else every epoch makes them again."""
    pin: bool = True
    """Whether batches lie in page-locked memory where there is a CUDA device, so that they are copied to it while it computes."""
