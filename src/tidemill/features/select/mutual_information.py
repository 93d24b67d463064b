"""Mutual information: features leave that say no more of the target than they would say of a shuffled one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tidemill.features.select.sample import sample
from tidemill.features.select.selector import Dropped, Matrix, best

FEATURE_BINS = 16
TARGET_BINS = 10


@dataclass(frozen=True, kw_only=True)
class MutualInformation:
    """Leaves out features whose mutual information with the target is not above chance, and beyond `keep` the least informative.

    Both are binned: features into 16 bins of equal shares and one for missing, a number as target into 10. Chance is what the
    same feature says of targets in shuffled order: its mean is taken off, for bins alone make information, and what is
    left must be above `deviations` standard deviations of it. Works on a seeded sample of rows, unweighted, in one pass. Each
    feature is judged alone: what counts only together with another may leave.
    """

    keep: int | None = field(default=None, metadata={"min": 1})
    """Features that stay at most, the most informative ones; absent: all that are above chance."""
    deviations: float = field(default=3.0, metadata={"min": 0.0, "max": 100.0})
    """Standard deviations above chance that a feature must reach, in 0..100."""
    shuffles: int = field(default=10, metadata={"min": 3, "max": 1000})
    """Shuffled targets that chance is measured with, in 3..1000."""
    sample_rows: int = field(default=50_000, metadata={"min": 1000})
    """Rows that are looked at."""

    def select(self, matrix: Matrix, *, seed: int, threads: int) -> dict[str, Dropped]:
        rows = sample(matrix, self.sample_rows, seed=seed).rows
        random = np.random.default_rng(seed)
        code_N = rows.y_N.astype(np.int64) if matrix.num_classes else _binned(rows.y_N, TARGET_BINS)
        shuffled = [random.permutation(code_N) for _ in range(self.shuffles)]
        value_F, level_F = np.empty(matrix.num_features), np.empty(matrix.num_features)
        for i, column in enumerate(rows.x_NF.T):
            bin_N = _binned(column, FEATURE_BINS)
            chance = np.array([_information(bin_N, other) for other in shuffled])
            value_F[i] = _information(bin_N, code_N) - chance.mean()
            level_F[i] = self.deviations * chance.std(ddof=1)
        kept_F = best(np.where(value_F > level_F, value_F, -np.inf), self.keep or matrix.num_features)
        found = {}
        for name, value, level, kept in zip(matrix.names, value_F.tolist(), level_F.tolist(), kept_F.tolist(), strict=True):
            if value <= level:
                found[name] = Dropped(f"mutual information {value:.2g} above chance, not more than {level:.2g}", value)
            elif not kept:
                found[name] = Dropped(f"mutual information {value:.3g}, {self.keep} others have more", value)
        return found


def _binned(x_N: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each value, int64 [N]: by value where there are few, else equal shares of the rows; missing is a bin."""
    missing_N = np.isnan(x_N)
    known = x_N[~missing_N]
    values = np.unique(known)
    if len(values) > bins:
        values = np.unique(np.quantile(known.astype(np.float64), np.arange(1, bins) / bins, method="inverted_cdf"))
        return np.where(missing_N, len(values) + 1, np.searchsorted(values, x_N, side="left"))
    return np.where(missing_N, len(values), np.searchsorted(values, x_N))


def _information(left_N: np.ndarray, right_N: np.ndarray) -> float:
    """Mutual information of two codes, in nats."""
    width = int(right_N.max(initial=0)) + 1
    joint = np.bincount(left_N * width + right_N, minlength=(int(left_N.max(initial=0)) + 1) * width).reshape(-1, width) / max(
        len(left_N), 1
    )
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    there = joint > 0
    return float(np.sum(joint[there] * np.log(joint[there] / apart[there])))
