"""Rows of blocks to the tensors of a micro-batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tidemill.train.torch.loader.columns import Columns, gather, stacked
from tidemill.train.torch.loader.order import Order
from tidemill.train.torch.loader.reading import Held
from tidemill.train.torch.loader.source import TARGET, WEIGHT, Resident, Source
from tidemill.train.torch.loader.step import MicroBatch

if TYPE_CHECKING:
    import torch


class MicroBatches:
    """Makes micro-batches of a source's rows.

    Args:
        rows: Rows that each is filled up to; as they are, and at least one, where None.
        pin: Whether tensors are put into page-locked memory where there is a CUDA device.
    """

    def __init__(self, source: Source, order: Order, *, rows: int | None = None, pin: bool = False) -> None:
        import torch

        self._source, self._order, self._rows = source, order, rows
        self._resident = source if isinstance(source, Resident) else None
        self._pin = pin and torch.cuda.is_available()
        self._from_numpy = torch.from_numpy

    def make(self, rows_N: np.ndarray, held: Mapping[int, Held], *, epoch: int) -> MicroBatch:
        """The micro-batch of rows, those of a block beside each other."""
        missing = (self._rows or 1) - len(rows_N)
        columns: Columns = self._gathered(rows_N, held) if len(rows_N) else {}
        if missing > 0:
            blank = self._source.blank(missing)
            columns = stacked(columns, blank) if len(rows_N) else blank
            rows_N = np.concatenate([rows_N, np.full(missing, -1, np.int64)])
        inputs = self._source.batch(columns, rows_N, epoch=epoch, static=self._rows is not None)
        target = inputs.pop(TARGET, None)
        if target is None:
            target = columns[TARGET]
        weight = columns.get(WEIGHT)
        if weight is None and missing > 0:
            weight = (rows_N >= 0).astype(np.float32)
        if weight is not None and target.ndim > 1:
            weight = np.repeat(weight[:, None], target.shape[1], axis=1)
        return MicroBatch(
            inputs={name: self._tensor(value) for name, value in inputs.items()},
            target=self._tensor(target),
            weight=None if weight is None else self._tensor(weight),
            rows=rows_N,
        )

    def _gathered(self, rows_N: np.ndarray, held: Mapping[int, Held]) -> Columns:
        if self._resident is not None:
            return self._resident.take(rows_N)
        blocks_N = self._order.block_of(rows_N)
        ends = [*(np.flatnonzero(np.diff(blocks_N)) + 1).tolist(), len(rows_N)]
        parts, first = [], 0
        for end in ends:
            block = int(blocks_N[first])
            one = held[block]
            parts.append((one.columns.result(), one.at(rows_N[first:end] - self._order.starts[block])))
            first = end
        return gather(parts)

    def _tensor(self, value: np.ndarray) -> torch.Tensor:
        made: torch.Tensor = self._from_numpy(np.ascontiguousarray(value))
        return made.pin_memory() if self._pin else made
