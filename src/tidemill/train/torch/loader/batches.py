"""Rows in order to the rows of each step: so many rows, or as many as a budget of tokens holds; and each rank's share of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.train.torch.loader.order import Order

# Batches whose rows are sorted by length together: the more, the less padding, and the more alike the batches of every epoch.
POOL_BATCHES = 64

_POOL = 16


@dataclass(frozen=True)
class Planned:
    """The rows of one step, over all ranks."""

    number: int
    window: int
    """Where its first row comes from."""
    last_window: int
    rows: np.ndarray


class Batches(Protocol):
    """How rows in order become steps."""

    def num_steps(self, epoch: int) -> int: ...
    def steps(self, epoch: int, start: int = 0) -> Iterator[Planned]:
        """The steps of an epoch from `start` on. Reads no rows."""


class RowBatches:
    """Steps of equally many rows; the last of an epoch may have fewer."""

    def __init__(self, order: Order, *, batch_rows: int) -> None:
        if batch_rows < 1:
            raise ConfigError(f"train.batch_size: must be at least 1, got {batch_rows}")
        self._order, self._batch_rows = order, batch_rows

    def num_steps(self, epoch: int) -> int:
        return -(-self._order.num_rows // self._batch_rows)

    def steps(self, epoch: int, start: int = 0) -> Iterator[Planned]:
        first, last = start * self._batch_rows, 0
        number, begun = start, 0
        waiting: list[np.ndarray] = []
        missing = self._batch_rows
        for window in self._order.windows(epoch):
            if window.first + window.num_rows <= first:
                continue
            rows_N, place = self._order.rows(epoch, window), max(0, first - window.first)
            while place < len(rows_N):
                if not waiting:
                    begun = window.number
                waiting.append(rows_N[place : place + missing])
                place += len(waiting[-1])
                missing -= len(waiting[-1])
                if not missing:
                    yield Planned(number, begun, window.number, _one(waiting))
                    number, waiting, missing = number + 1, [], self._batch_rows
            last = window.number
        if waiting:
            yield Planned(number, begun, last, _one(waiting))


class TokenBatches:
    """Steps of rows of about one length, so many that rows times the longest of them stay within a budget; a single longer row stands alone.

    Rows of a window are taken in order, some tens of batches at a time, sorted by length with ties as they came, cut into batches, and the batches
    put in random order.
    """

    def __init__(self, order: Order, *, lengths: np.ndarray, batch_tokens: int) -> None:
        if batch_tokens < 1:
            raise ConfigError(f"train.batch_tokens: must be at least 1, got {batch_tokens}")
        self._order, self._lengths_N, self._budget = order, lengths, batch_tokens
        self._counts: dict[int, list[int]] = {}

    def num_steps(self, epoch: int) -> int:
        if epoch not in self._counts:
            counts = [len(self._cut(epoch, window.number, self._order.rows(epoch, window))) for window in self._order.windows(epoch)]
            self._counts[epoch] = counts
        return sum(self._counts[epoch])

    def steps(self, epoch: int, start: int = 0) -> Iterator[Planned]:
        self.num_steps(epoch)
        number = 0
        for window, count in zip(self._order.windows(epoch), self._counts[epoch], strict=True):
            if number + count > start:
                for place, rows in enumerate(self._cut(epoch, window.number, self._order.rows(epoch, window))):
                    if number + place >= start:
                        yield Planned(number + place, window.number, window.number, rows)
            number += count

    def _cut(self, epoch: int, window: int, rows_N: np.ndarray) -> list[np.ndarray]:
        """The batches of a window's rows, in the order in which they come."""
        ends = np.cumsum(np.maximum(self._lengths_N[rows_N], 1), dtype=np.int64) // (POOL_BATCHES * self._budget)
        made: list[np.ndarray] = []
        for pool in np.split(rows_N, np.flatnonzero(np.diff(ends)) + 1):
            pool = pool[np.argsort(self._lengths_N[pool], kind="stable")]
            made += self._within_budget(pool)
        return [made[place] for place in self._order.random(epoch, _POOL, window).permutation(len(made))]

    def _within_budget(self, pool: np.ndarray) -> list[np.ndarray]:
        """Rows sorted by length, cut from the longest down as long as all of them padded stay within the budget."""
        lengths = np.maximum(self._lengths_N[pool], 1)
        made, end = [], len(pool)
        while end:
            start = max(0, end - max(1, self._budget // int(lengths[end - 1])))
            made.append(pool[start:end])
            end = start
        return made


@dataclass(frozen=True)
class Dealing:
    """How the rows of a step go to ranks and micro-batches.

    Every rank gets as many rows as any other, or one less, and so does every micro-batch of a rank. Where blocks are read, a rank
    gets rows of as few of them as can be, so that it need not read the others.
    """

    order: Order
    rank: int = 0
    ranks: int = 1
    accumulate: int = 1
    lengths: np.ndarray | None = None
    """Tokens of each row, where they are known: rows of like lengths then share a micro-batch."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ConfigError(f"rank must be in 0..{self.ranks - 1}, got {self.rank}")
        if self.accumulate < 1:
            raise ConfigError(f"train.accumulate: must be at least 1, got {self.accumulate}")

    def deal(self, rows_N: np.ndarray, place_B: np.ndarray | None) -> list[np.ndarray]:
        """This rank's rows for each micro-batch.

        Args:
            place_B: Each block's place in the epoch: rows of a block then stand beside each other. None where no blocks are read.
        """
        own = rows_N if place_B is None else rows_N[np.argsort(place_B[self.order.block_of(rows_N)], kind="stable")]
        if self.ranks > 1:
            own = np.array_split(own, self.ranks)[self.rank]
        if self.accumulate == 1:
            return [own]
        if self.lengths is None:
            return [own[number :: self.accumulate] for number in range(self.accumulate)]
        by_length = np.argsort(self.lengths[own], kind="stable")
        return [own[np.sort(part)] for part in np.array_split(by_length, self.accumulate)]


def _one(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
