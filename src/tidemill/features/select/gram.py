"""Products of all features with each other and with the target, aggregated batch by batch: all that linear fits need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tidemill.core.errors import Unsupported
from tidemill.features.select.selector import Matrix, Rows

# Memory that the products of all features may take, with what is computed with them.
MAX_BYTES = 2**30


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of each feature and target, missing and infinite values left out."""

    mean_F: np.ndarray
    std_F: np.ndarray
    mean_T: np.ndarray
    std_T: np.ndarray

    def features(self, x_NF: np.ndarray) -> np.ndarray:
        """Standardized float64 [N, F]; what is missing is the mean, 0, and so is what does not vary."""
        with np.errstate(invalid="ignore", over="ignore"):
            z_NF = (x_NF - self.mean_F) / self.std_F
        z_NF[~np.isfinite(x_NF)] = 0.0
        return np.asarray(z_NF)

    def targets(self, y_NT: np.ndarray) -> np.ndarray:
        return np.asarray((y_NT - self.mean_T) / self.std_T)


@dataclass
class Gram:
    """Weighted sums over rows of standardized products."""

    weight: float
    xx_FF: np.ndarray
    xy_FT: np.ndarray
    yy_T: np.ndarray

    def plus(self, other: Gram) -> Gram:
        return Gram(self.weight + other.weight, self.xx_FF + other.xx_FF, self.xy_FT + other.xy_FT, self.yy_T + other.yy_T)

    def minus(self, other: Gram) -> Gram:
        return Gram(self.weight - other.weight, self.xx_FF - other.xx_FF, self.xy_FT - other.xy_FT, self.yy_T - other.yy_T)


def scale_of(matrix: Matrix) -> Scale:
    """Means and deviations, in two passes so that a large mean takes no digits from a small deviation."""
    weight_F = np.zeros(matrix.num_features)
    sum_F = np.zeros(matrix.num_features)
    total, sum_T = 0.0, np.zeros(_num_targets(matrix))
    for rows in matrix.batches():
        w_N1, known_NF = _weights(rows)[:, None], np.isfinite(rows.x_NF)
        weight_F += (w_N1 * known_NF).sum(axis=0)
        sum_F += (w_N1 * np.where(known_NF, rows.x_NF, 0.0)).sum(axis=0, dtype=np.float64)
        total += float(w_N1.sum())
        sum_T += (w_N1 * targets(matrix, rows)).sum(axis=0)
    mean_F, mean_T = sum_F / np.maximum(weight_F, 1e-300), sum_T / max(total, 1e-300)
    square_F, square_T = np.zeros_like(mean_F), np.zeros_like(mean_T)
    for rows in matrix.batches():
        w_N1, known_NF = _weights(rows)[:, None], np.isfinite(rows.x_NF)
        square_F += (w_N1 * np.square(np.where(known_NF, rows.x_NF - mean_F, 0.0))).sum(axis=0)
        square_T += (w_N1 * np.square(targets(matrix, rows) - mean_T)).sum(axis=0)
    # Missing values count as the mean: they make the deviation smaller, as they make the products.
    std_F, std_T = np.sqrt(square_F / max(total, 1e-300)), np.sqrt(square_T / max(total, 1e-300))
    varies_F = std_F > 1e-12 * np.maximum(np.abs(mean_F), 1e-300)
    return Scale(mean_F, np.where(varies_F, std_F, np.inf), mean_T, np.where(std_T > 0, std_T, np.inf))


def grams(matrix: Matrix, scale: Scale, *, folds: int = 1) -> list[Gram]:
    """One `Gram` for each fold, row i in fold i modulo `folds`; F^2 numbers of float64 each.

    Raises:
        Unsupported: If they, and what is computed with them, do not fit in 1 GiB.
    """
    count, features = _num_targets(matrix), matrix.num_features
    needed = 8 * (folds + 3) * features**2
    if needed > MAX_BYTES:
        raise Unsupported(
            f"features.select: the products of {features:,} features need {needed / 2**30:.1f} GiB, more than 1 GiB",
            hint='a step before that leaves fewer, such as "variance" or { op = "mutual_information", keep = 1000 }',
        )
    made = [Gram(0.0, np.zeros((features, features)), np.zeros((features, count)), np.zeros(count)) for _ in range(folds)]
    start = 0
    for rows in matrix.batches():
        z_NF, y_NT, w_N = scale.features(rows.x_NF), scale.targets(targets(matrix, rows)), _weights(rows)
        for fold, gram in enumerate(made):
            chosen = slice((fold - start) % folds, None, folds)
            z, y, w = z_NF[chosen], y_NT[chosen], w_N[chosen]
            weighted = z * w[:, None]
            gram.weight += float(w.sum())
            gram.xx_FF += weighted.T @ z
            gram.xy_FT += weighted.T @ y
            gram.yy_T += w @ np.square(y)
        start += len(rows.y_N)
    return made


def targets(matrix: Matrix, rows: Rows) -> np.ndarray:
    """Numbers to relate features to, float64 [N, T]: the target itself, or for more than two classes whether it is each."""
    if matrix.num_classes is None or matrix.num_classes <= 2:
        return rows.y_N[:, None]
    return np.asarray(rows.y_N[:, None] == np.arange(matrix.num_classes), np.float64)


def _num_targets(matrix: Matrix) -> int:
    return 1 if matrix.num_classes is None or matrix.num_classes <= 2 else matrix.num_classes


def _weights(rows: Rows) -> np.ndarray:
    return np.ones(len(rows.y_N)) if rows.weight_N is None else rows.weight_N
