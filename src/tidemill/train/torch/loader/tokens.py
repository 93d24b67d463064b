"""Rows that are windows of one long run of tokens, for networks that foretell the next one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from tidemill.core.errors import DataError
from tidemill.core.graph import Arrays
from tidemill.train.torch.loader.columns import Columns
from tidemill.train.torch.loader.source import BLOCK_BYTES, TARGET, TOKENS


class TokenSource:
    """Windows of `length` tokens one after the other; each token's target is the one that follows it. What is left at the end is not used.

    Args:
        tokens: Token ids in a row: an array, a `.npy` file of whole numbers, which is mapped, or a plain file of them, of type `dtype`.

    Raises:
        DataError: If the file holds no row of whole numbers, or too few for one window.
    """

    weighted = False

    def __init__(self, tokens: np.ndarray | Path, *, length: int, dtype: str = "uint16") -> None:
        tokens_T, name = (tokens, "tokens") if isinstance(tokens, np.ndarray) else (_mapped(tokens, dtype), str(tokens))
        if tokens_T.ndim != 1 or not np.issubdtype(tokens_T.dtype, np.integer):
            raise DataError(f"{name} must be one row of whole numbers, is {tokens_T.dtype} of shape {tokens_T.shape}")
        self.targets_per_row = length
        count = (len(tokens_T) - 1) // length
        if length < 1 or count < 1:
            raise DataError(f"{name} must hold more than the {length:,} tokens of a window, at least 1, holds {len(tokens_T):,}")
        self._tokens_T, self._length = tokens_T, length
        row_bytes = tokens_T.dtype.itemsize * length
        self._block = max(1, BLOCK_BYTES // row_bytes)
        self.sizes = [min(self._block, count - first) for first in range(0, count, self._block)]
        self.sizes_bytes = [size * row_bytes for size in self.sizes]
        some = np.ascontiguousarray(tokens_T[:: max(1, len(tokens_T) // 1_000)]).tobytes()
        self.fingerprint = hashlib.sha256(f"{tokens_T.dtype}{len(tokens_T)} {length}".encode() + some).hexdigest()[:16]

    def read(self, block: int, picks: np.ndarray | None = None) -> Columns:
        first = block * self._block
        return self.take(np.arange(first, first + self.sizes[block]) if picks is None else first + picks)

    def take(self, rows_N: np.ndarray) -> Columns:
        """Windows with the token behind each, [N, length + 1]."""
        windows = np.lib.stride_tricks.sliding_window_view(self._tokens_T, self._length + 1)
        return {TOKENS: windows[rows_N * self._length]}

    def weights(self, block: int) -> np.ndarray:
        return np.ones(self.sizes[block], np.float32)

    def batch(self, columns: Columns, rows_N: np.ndarray, *, epoch: int, static: bool) -> Arrays:
        tokens_NL = columns[TOKENS].astype(np.int64)
        return {"input_ids": tokens_NL[:, :-1], TARGET: tokens_NL[:, 1:]}

    def blank(self, count: int) -> Columns:
        return {TOKENS: np.zeros((count, self._length + 1), self._tokens_T.dtype)}


def _mapped(file: Path, dtype: str) -> np.ndarray:
    try:
        if file.suffix == ".npy":
            return np.asanyarray(np.load(file, mmap_mode="r"))
        return np.memmap(file, dtype, mode="r")
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file} must be a file of tokens: {error}") from error
