"""Importance: features leave that boosted trees use no more than shuffled copies of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tidemill.features.select.quick import fitted
from tidemill.features.select.sample import Sample, sample
from tidemill.features.select.selector import Dropped, Matrix, Rows, best


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Leaves out features whose share of the gain is not above that of chance, and beyond `keep` the least important.

    Trees are fitted on a seeded sample of rows, beside a copy of every feature whose rows are shuffled, as in Boruta (Kursa and
    Rudnicki 2010): a shuffled copy that is used is used by chance. Chance is the most that a copy reached, on average over
    the fits; it is the same for all, and therefore strict with features of few values, which gain less by chance. One pass; the
    sample is held twice.
    """

    keep: int | None = field(default=None, metadata={"min": 1})
    """Features that stay at most, the most important ones; absent: all that are above chance."""
    fits: int = field(default=3, metadata={"min": 1, "max": 50})
    """Fits, each with copies shuffled anew, in 1..50."""
    rounds: int = field(default=50, metadata={"min": 5, "max": 1000})
    """Trees in each fit, in 5..1000."""
    sample_rows: int = field(default=50_000, metadata={"min": 1000})
    """Rows that are looked at."""

    def select(self, matrix: Matrix, *, seed: int, threads: int) -> dict[str, Dropped]:
        drawn = sample(matrix, self.sample_rows, seed=seed)
        share_F, chance = np.zeros(matrix.num_features), 0.0
        for i in range(self.fits):
            doubled = _with_shuffled(drawn, np.random.default_rng([seed, i]))
            shares = fitted(doubled, rounds=self.rounds, seed=seed + i, threads=threads).importance()
            made = np.array([shares.get(name, 0.0) for name in doubled.names])
            share_F += made[: matrix.num_features] / self.fits
            chance += float(made[matrix.num_features :].max()) / self.fits
        kept_F = best(np.where(share_F > chance, share_F, -np.inf), self.keep or matrix.num_features)
        found = {}
        for name, share, kept in zip(matrix.names, share_F.tolist(), kept_F.tolist(), strict=True):
            if share <= chance:
                found[name] = Dropped(f"{share:.2%} of the gain, a shuffled feature reached {chance:.2%}", share)
            elif not kept:
                found[name] = Dropped(f"{share:.2%} of the gain, {self.keep} others have more", share)
        return found


def _with_shuffled(rows: Sample, random: np.random.Generator) -> Sample:
    """The rows with a shuffled copy of every feature behind them, each in an order of its own."""
    x_NF, y_N, weight_N = rows.rows
    wide = np.empty((len(x_NF), 2 * x_NF.shape[1]), np.float32)
    wide[:, : x_NF.shape[1]] = x_NF
    for i, column in enumerate(x_NF.T):
        wide[:, x_NF.shape[1] + i] = column[random.permutation(len(column))]
    names = [*rows.names, *(f"shuffled/{i}" for i in range(rows.num_features))]
    return Sample(rows, Rows(wide, y_N, weight_N), names=names)
