"""The order of samples: a function of seed and epoch alone, shuffled over all rows with bounded memory, open at any place.

Blocks of rows, such as Parquet's row groups, are put in random order; as many of them in a row as fit in the memory that is
given are a window, and the rows of a window are mixed. Which rows a window holds follows from the blocks' sizes, so that any place in an epoch is
found without reading a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# What a random stream is for, so that no two are the same.
_BLOCKS, _ROWS = 1, 2


@dataclass(frozen=True)
class Window:
    """Blocks whose rows are mixed with each other."""

    number: int
    """Place in the epoch, from 0."""
    blocks: np.ndarray
    """The blocks, int64 [W], in the epoch's order."""
    first: int
    """Place of its first row in the epoch's order."""
    num_rows: int


class Order:
    """The order of rows in each epoch.

    Args:
        sizes: Rows of each block.
        sizes_bytes: What each block takes in memory when it is read.
        window_bytes: What the rows of a window take at most, unless one block alone takes more.
        shuffle: False keeps the rows of every epoch as they stand.
    """

    def __init__(self, sizes: Sequence[int], sizes_bytes: Sequence[int], *, window_bytes: int, seed: int, shuffle: bool = True) -> None:
        self._sizes = np.asarray(sizes, np.int64)
        self._bytes = np.asarray(sizes_bytes, np.int64)
        self._window_bytes, self._seed, self._shuffle = window_bytes, seed, shuffle
        self.starts = np.concatenate([[0], np.cumsum(self._sizes)])
        """The first row of each block, and behind them the number of all rows."""
        self.num_rows = int(self.starts[-1])

    def windows(self, epoch: int) -> list[Window]:
        """The windows of an epoch, in order."""
        blocks = np.arange(len(self._sizes), dtype=np.int64)
        if self._shuffle:
            blocks = self._random(epoch, _BLOCKS).permutation(blocks)
        made: list[Window] = []
        start, taken, first = 0, 0, 0
        for place, size in enumerate(self._bytes[blocks].tolist()):
            if place > start and taken + size > self._window_bytes:
                made.append(self._window(len(made), blocks[start:place], first))
                first += made[-1].num_rows
                start, taken = place, 0
            taken += size
        if len(blocks):
            made.append(self._window(len(made), blocks[start:], first))
        return made

    def rows(self, epoch: int, window: Window) -> np.ndarray:
        """The rows of a window in the order in which they come, int64 [N], each by its place in the split."""
        rows_N = np.concatenate([np.arange(self.starts[block], self.starts[block + 1]) for block in window.blocks])
        if self._shuffle:
            self._random(epoch, _ROWS, window.number).shuffle(rows_N)
        return rows_N

    def random(self, epoch: int, purpose: int, number: int = 0) -> np.random.Generator:
        """A stream of its own for what else is drawn in an epoch; `purpose` from 16 on."""
        return self._random(epoch, purpose, number)

    def block_of(self, rows_N: np.ndarray) -> np.ndarray:
        """The block that each row is in, int64 [N]."""
        return np.searchsorted(self.starts, rows_N, side="right") - 1

    def _window(self, number: int, blocks: np.ndarray, first: int) -> Window:
        return Window(number, blocks, first, int(self._sizes[blocks].sum()))

    def _random(self, epoch: int, purpose: int, number: int = 0) -> np.random.Generator:
        return np.random.default_rng([self._seed, epoch, purpose, number])
