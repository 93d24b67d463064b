"""L1: features leave to which a linear model with an absolute penalty gives no coefficient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tidemill.features.select.gram import Gram, grams, scale_of
from tidemill.features.select.selector import Dropped, Matrix, best

# A path ends at this share of the penalty at which every coefficient is 0.
LEAST = 1e-4


@dataclass(frozen=True, kw_only=True)
class L1:
    """Leaves out features whose lasso coefficient is 0; with several classes those of all classes.

    The lasso's whole path is fitted by coordinate descent (Friedman, Hastie and Tibshirani 2010) on the products of all
    features, aggregated over all rows once; the penalty is chosen by cross-validation on the same products, fold by fold.
    A target of classes is fitted as 0 and 1; missing values count as the mean. Three passes, memory for folds + 3 times F^2
    numbers of 8 bytes, at most 1 GiB. It sees straight lines only.
    """

    keep: int | None = field(default=None, metadata={"min": 1})
    """Features that stay at most: those that enter the path first; absent: all that cross-validation says."""
    rule: Literal["one_se", "least_error"] = "one_se"
    """one_se: the strongest penalty within one standard error of the least error | least_error: the least error's own."""
    folds: int = field(default=5, metadata={"min": 2, "max": 20})
    """Parts of the rows for cross-validation, in 2..20."""
    penalties: int = field(default=50, metadata={"min": 5, "max": 500})
    """Penalties on the path, in 5..500."""

    def select(self, matrix: Matrix, *, seed: int, threads: int) -> dict[str, Dropped]:
        parts = grams(matrix, scale_of(matrix), folds=min(self.folds, max(2, matrix.num_rows)))
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.plus(part)
        strongest = float(np.max(np.abs(whole.xy_FT), initial=0.0)) / max(whole.weight, 1e-300)
        if strongest == 0:
            return {}
        penalty_L = strongest * np.geomspace(1.0, LEAST, self.penalties)
        path_LFT = lasso_path(whole, penalty_L)
        there_LF = np.any(path_LFT != 0, axis=2)
        chosen = self._chosen(parts, whole, penalty_L)
        enters_F = np.where(there_LF.any(axis=0), there_LF.argmax(axis=0), len(penalty_L))
        kept_F = there_LF[chosen]
        if self.keep is not None:
            # The earlier on the path the better; of those that enter together the larger.
            size_F = np.abs(path_LFT[np.minimum(enters_F, len(penalty_L) - 1), np.arange(matrix.num_features)]).max(axis=1)
            kept_F = kept_F & best(size_F / (1 + size_F) - enters_F, self.keep)
        found = {}
        for name, kept, there, enters in zip(matrix.names, kept_F.tolist(), there_LF[chosen].tolist(), enters_F.tolist(), strict=True):
            if kept:
                continue
            value = float(penalty_L[enters] / strongest) if enters < len(penalty_L) else 0.0
            if there:
                found[name] = Dropped(
                    f"a coefficient from {value:.2g} of the strongest penalty on, {self.keep} others have one earlier", value
                )
            else:
                limit = float(penalty_L[chosen] / strongest)
                later = f"only from {value:.2g} on" if value else "nowhere on the path"
                found[name] = Dropped(f"no coefficient at {limit:.2g} of the strongest penalty, {later}", value)
        return found

    def _chosen(self, parts: list[Gram], whole: Gram, penalty_L: np.ndarray) -> int:
        """Which penalty cross-validation takes."""
        error_PL = np.stack([errors(part, lasso_path(whole.minus(part), penalty_L)) for part in parts])
        mean_L = error_PL.mean(axis=0)
        least = int(np.argmin(mean_L))
        if self.rule == "least_error":
            return least
        allowed = mean_L[least] + error_PL[:, least].std(ddof=1) / np.sqrt(len(parts))
        return int(np.argmax(mean_L <= allowed))


def lasso_path(gram: Gram, penalty_L: np.ndarray, *, tolerance: float = 1e-5, max_sweeps: int = 1000) -> np.ndarray:
    """Coefficients [L, F, T] that minimize |y - x b|^2 / 2N + penalty |b|_1, for each penalty, from strong to weak.

    Each starts from the one before; most sweeps go over the features that have a coefficient, until a sweep over all changes
    none of them by more than `tolerance`.
    """
    xx_FF, xy_FT = gram.xx_FF / gram.weight, gram.xy_FT / gram.weight
    size_F = np.diag(xx_FF).copy()
    b_FT = np.zeros_like(xy_FT)
    rest_FT = xy_FT.copy()  # of the products with the target, less what the coefficients explain
    varying = np.flatnonzero(size_F > 1e-9)
    made = np.empty((len(penalty_L), *b_FT.shape))
    for step, penalty in enumerate(penalty_L):
        everyone = True
        for _ in range(max_sweeps):
            moved = 0.0
            for j in varying if everyone else varying[np.any(b_FT[varying] != 0, axis=1)]:
                pull_T = rest_FT[j] + size_F[j] * b_FT[j]
                if not b_FT[j].any() and np.abs(pull_T).max() <= penalty:
                    continue
                new_T = np.sign(pull_T) * np.maximum(np.abs(pull_T) - penalty, 0.0) / size_F[j]
                change_T = new_T - b_FT[j]
                moved = max(moved, float(np.abs(change_T).max()))
                b_FT[j] = new_T
                rest_FT -= np.outer(xx_FF[:, j], change_T)
            if moved <= tolerance and everyone:
                break
            everyone = moved <= tolerance
        made[step] = b_FT
    return made


def errors(gram: Gram, path_LFT: np.ndarray) -> np.ndarray:
    """Mean squared error [L] of coefficients on the rows that a `Gram` holds, all targets together."""
    made = []
    for b_FT in path_LFT:
        live = np.flatnonzero(np.any(b_FT != 0, axis=1))
        b = b_FT[live]
        explained = 2 * np.sum(b * gram.xy_FT[live]) - np.sum(b * (gram.xx_FF[np.ix_(live, live)] @ b))
        made.append((gram.yy_T.sum() - explained) / max(gram.weight, 1e-300))
    return np.array(made)
