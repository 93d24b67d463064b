"""A source whose rows are their own places, which counts what is read of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from tidemill.core.graph import Arrays
from tidemill.train.torch.loader.columns import Columns, Ragged

pytest.importorskip("torch")

MIB = 1 << 20


class Numbered:
    """Row i has i as its features, target and, as `1 + i % 3`, its weight; as many tokens i as `lengths` says.

    A block counts as `block_bytes`, whatever it takes, so that small tests have many windows.
    """

    targets_per_row = 1
    fingerprint = "numbered"

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        block_bytes: int = MIB,
        weighted: bool = False,
        lengths: Sequence[int] | None = None,
        width: int = 1,
        fails_at: int = -1,
    ) -> None:
        self.sizes, self.sizes_bytes = list(sizes), [block_bytes] * len(sizes)
        self.weighted = weighted
        self.starts = np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])
        self._lengths = None if lengths is None else np.asarray(lengths)
        self._width, self._fails_at = width, fails_at
        self._lock = threading.Lock()
        self.reads: list[tuple[int, int]] = []
        """The blocks that were read, in order, and how many rows of each."""

    def read(self, block: int, picks: np.ndarray | None = None) -> Columns:
        rows_N = self.starts[block] + (np.arange(self.sizes[block]) if picks is None else picks)
        with self._lock:
            self.reads.append((block, len(rows_N)))
        if self._fails_at in rows_N:
            raise RuntimeError(f"row {self._fails_at} is broken")
        made: Columns = {"features": np.repeat(rows_N.astype(np.float32)[:, None], self._width, axis=1), "target": rows_N}
        if self.weighted:
            made = {**made, "weight": (1 + rows_N % 3).astype(np.float32)}
        if self._lengths is not None:
            lengths = self._lengths[rows_N]
            made = {**made, "tokens": Ragged.of(np.repeat(rows_N, lengths), lengths)}
        return made

    def weights(self, block: int) -> np.ndarray:
        rows_N = np.arange(self.starts[block], self.starts[block + 1])
        return (1 + rows_N % 3).astype(np.float32)

    def batch(self, columns: Columns, rows_N: np.ndarray, *, epoch: int, static: bool) -> Arrays:
        if self._lengths is None:
            return {"features": columns["features"]}
        ids, mask = columns["tokens"].padded(-1, length=int(self._lengths.max()) if static else None)
        return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}

    def blank(self, count: int) -> Columns:
        made: Columns = {"features": np.zeros((count, self._width), np.float32), "target": np.zeros(count, np.int64)}
        if self.weighted:
            made = {**made, "weight": np.zeros(count, np.float32)}
        if self._lengths is not None:
            made = {**made, "tokens": Ragged.of(np.zeros(count, np.int64), np.ones(count, np.int64))}
        return made


@pytest.fixture(scope="session")
def numbered() -> type[Numbered]:
    return Numbered
