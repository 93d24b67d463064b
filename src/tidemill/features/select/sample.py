"""Rows of a matrix in memory: for the selectors that must look at them more than once, or in another order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tidemill.features.select.selector import Matrix, Rows

# A sample's features take at most this much memory; fewer rows are taken of a wide matrix.
MAX_BYTES = 128 * 2**20


class Sample:
    """Rows in memory; a `Matrix` as selectors see it, and as models take it."""

    def __init__(self, like: Matrix, rows: Rows, *, names: Sequence[str] | None = None) -> None:
        self.names: Sequence[str] = list(like.names if names is None else names)
        self.num_rows, self.num_features = rows.x_NF.shape
        self.task, self.num_classes = like.task, like.num_classes
        self.origins: Mapping[str, str] = like.origins
        self.rows = rows

    def batches(self) -> Iterator[Rows]:
        yield self.rows

    def targets(self) -> tuple[np.ndarray, np.ndarray | None]:
        return self.rows.y_N, self.rows.weight_N

    def only(self, names: Sequence[str]) -> Sample:
        """The same rows with these features."""
        place = {name: i for i, name in enumerate(self.names)}
        x_NF = np.ascontiguousarray(self.rows.x_NF[:, [place[name] for name in names]])
        return Sample(self, self.rows._replace(x_NF=x_NF), names=names)

    def of(self, chosen_N: np.ndarray) -> Sample:
        """The same features of the rows where `chosen_N` [N] is true."""
        x_NF, y_N, weight_N = self.rows
        return Sample(self, Rows(x_NF[chosen_N], y_N[chosen_N], None if weight_N is None else weight_N[chosen_N]), names=self.names)


def sample(matrix: Matrix, rows: int, *, seed: int) -> Sample:
    """At most `rows` rows drawn without replacement, in the order of the matrix, in one pass; fewer where 128 MiB hold fewer."""
    most = min(rows, max(1000, MAX_BYTES // (4 * matrix.num_features)), matrix.num_rows)
    chosen = np.arange(matrix.num_rows)
    if most < matrix.num_rows:
        chosen = np.sort(np.random.default_rng(seed).choice(matrix.num_rows, most, replace=False))
    x_NF = np.empty((most, matrix.num_features), np.float32)
    y_N, weight_N = np.empty(most), np.ones(most)
    weighted = False
    start = done = 0
    for batch in matrix.batches():
        end = start + len(batch.y_N)
        places = chosen[done : np.searchsorted(chosen, end)] - start
        filled = slice(done, done + len(places))
        x_NF[filled], y_N[filled] = batch.x_NF[places], batch.y_N[places]
        if batch.weight_N is not None:
            weight_N[filled], weighted = batch.weight_N[places], True
        start, done = end, done + len(places)
    return Sample(matrix, Rows(x_NF[:done], y_N[:done], weight_N[:done] if weighted else None))
