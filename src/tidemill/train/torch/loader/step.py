"""What a loader gives: a training step, dealt to ranks and cut into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows that go through the network at once, on the processor; pinned where the loader was told so."""

    inputs: dict[str, torch.Tensor]
    """What `forward` takes, by name, each [N, ...]: `features` float32 [N, F]; `input_ids` and `attention_mask` int64 [N, L]; `pixels` [N, C, H, W]."""
    target: torch.Tensor
    """[N]: the class's index as int64 where there are classes, else float32. [N, L] int64 where every token has one."""
    weight: torch.Tensor | None
    """float32 in the shape of `target`; None where every row counts 1. 0 for rows that only fill up a rank that would have none."""
    rows: np.ndarray
    """Where the rows stand in the split, int64 [N], to name a bad batch; -1 for a row that only fills up."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One rank's share of a step of the optimizer."""

    micro: Sequence[MicroBatch]
    """As many on every rank, each of at least one row."""
    total: float
    """The sum of weights over the whole step, of all ranks and micro-batches: rows, or tokens where every token has a target."""
    epoch: int
    """From 0."""
    number: int
    """Within the epoch, from 0."""
    rows: int
    """Rows of the whole step, over all ranks, without those that only fill up."""
    tokens: int
    """Tokens of the whole step without padding; 0 where rows have none or lengths are not known beforehand."""
