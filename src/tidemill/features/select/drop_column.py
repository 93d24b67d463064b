"""Drop column: columns leave without which a model does as well on rows that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tidemill.features.select.quick import fitted, losses
from tidemill.features.select.sample import Sample, sample
from tidemill.features.select.selector import Dropped, Matrix

# Every fifth row is held out.
HELD_OUT = 5


@dataclass(frozen=True, kw_only=True)
class DropColumn:
    """Leaves out raw columns, with all of their features, whose loss is noise.

    Trees are fitted on four fifths of a seeded sample of the training rows and judged on the rest. The least important columns
    are tried first: one leaves for good where the fit without it, and without those that left before, loses no more than
    `noise` standard errors against the fit with all columns, row by row. As many fits as columns are tried, and one.
    """

    noise: float = field(default=1.0, metadata={"min": 0.0, "max": 10.0})
    """Standard errors of the loss that may be lost in all, in 0..10."""
    max_columns: int = field(default=30, metadata={"min": 1, "max": 10_000})
    """Columns that are tried, the least important ones; bounds the cost."""
    rounds: int = field(default=50, metadata={"min": 5, "max": 1000})
    """Trees in each fit, in 5..1000."""
    sample_rows: int = field(default=50_000, metadata={"min": 1000})
    """Rows that are looked at, a fifth of them held out."""

    def select(self, matrix: Matrix, *, seed: int, threads: int) -> dict[str, Dropped]:
        drawn = sample(matrix, self.sample_rows, seed=seed)
        held_out = np.arange(drawn.num_rows) % HELD_OUT == HELD_OUT - 1
        train, judge = drawn.of(~held_out), drawn.of(held_out)
        columns = dict.fromkeys(matrix.origins[name] for name in matrix.names)
        if judge.num_rows < 2 or len(columns) < 2:
            return {}
        model = fitted(train, rounds=self.rounds, seed=seed, threads=threads)
        with_all_N, weight_N = losses(model, judge), judge.rows.weight_N
        shares = model.importance()
        share = {column: sum(shares.get(name, 0.0) for name in matrix.names if matrix.origins[name] == column) for column in columns}
        kept = list(matrix.names)
        found: dict[str, Dropped] = {}
        for column in sorted(columns, key=lambda column: share[column])[: min(self.max_columns, len(columns) - 1)]:
            tried = [name for name in kept if matrix.origins[name] != column]
            lost, error = self._lost(train.only(tried), judge.only(tried), with_all_N, weight_N, seed=seed, threads=threads)
            if lost <= self.noise * error:
                said = f"column {column!r} is not missed: the held-out loss changes by {lost:+.2g}, its standard error is {error:.2g}"
                found |= {name: Dropped(said, lost) for name in kept if name not in tried}
                kept = tried
        return {name: found[name] for name in matrix.names if name in found}

    def _lost(
        self, train: Sample, judge: Sample, before_N: np.ndarray, weight_N: np.ndarray | None, *, seed: int, threads: int
    ) -> tuple[float, float]:
        """How much more the held-out loss is than before, on average, and the standard error of that."""
        more_N = losses(fitted(train, rounds=self.rounds, seed=seed, threads=threads), judge) - before_N
        share_N = np.full(len(more_N), 1 / len(more_N)) if weight_N is None else weight_N / weight_N.sum()
        mean = float(share_N @ more_N)
        return mean, float(np.sqrt(np.square(share_N) @ np.square(more_N - mean)))
