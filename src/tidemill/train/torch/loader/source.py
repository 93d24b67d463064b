"""Where rows come from: blocks of them, read and made ready by several threads at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from tidemill.core.graph import Arrays
from tidemill.train.torch.loader.columns import Columns

# Names of columns that are not inputs of the network.
TARGET, WEIGHT = "target", "weight"
# The column of a text's tokens, as `Ragged`.
TOKENS = "tokens"
# Images, [N, C, H, W].
PIXELS = "pixels"

# A block of rows that are in memory or mapped: small enough to mix many of them, large enough to read them from a disk.
BLOCK_BYTES = 4 << 20


class Source(Protocol):
    """Rows of a split in blocks.

    Every method but `__init__` may be called from several threads at once. Arrays that are given out are never written to by either side.
    """

    @property
    def sizes(self) -> Sequence[int]:
        """Rows of each block, in the order of the split."""

    @property
    def sizes_bytes(self) -> Sequence[int]:
        """What each block takes in memory, about."""

    weighted: bool
    """Whether rows have weights."""
    targets_per_row: int
    """1, or the tokens of a row where each has a target."""
    fingerprint: str
    """Changes with the rows and what is made of them, so that what was kept is not mistaken for another's."""

    def read(self, block: int, picks: np.ndarray | None = None) -> Columns:
        """A block's rows made ready, or those at `picks` (ascending places in the block): `target`, `weight` where there is one, and others.

        Raises:
            DataError: If a row is not what was declared; names the row.
        """

    def weights(self, block: int) -> np.ndarray:
        """The weight of every row of a block, float32 [N]; called only where rows have weights."""

    def batch(self, columns: Columns, rows_N: np.ndarray, *, epoch: int, static: bool) -> Arrays:
        """What the network takes for rows, any from `read` together; and `target`, where that is not a column.

        Args:
            rows_N: Their places in the split; -1 for blank ones.
            static: Whether the shape of a row must be the same for all batches.
        """

    def blank(self, count: int) -> Columns:
        """Rows that fill up, in the columns of `read`: weight 0, as small as rows can be."""


@runtime_checkable
class Resident(Source, Protocol):
    """Rows that are in memory anyway, or mapped: they are taken where they stand, and no block is read."""

    def take(self, rows_N: np.ndarray) -> Columns:
        """Rows by their places in the split, as `read` gives them."""
