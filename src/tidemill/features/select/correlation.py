"""Correlation: of two features that say the same, the one leaves that says less of the target."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tidemill.features.select.gram import grams, scale_of
from tidemill.features.select.selector import Dropped, Matrix


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Leaves out a feature whose correlation with another that stays is above a limit, in absolute value.

    Features are gone through by their correlation with the target (of several classes the highest), the strongest first.
    All come from one aggregation of the products of all features, over all rows; missing values count as the mean. Three
    passes, memory for four times F^2 numbers of 8 bytes, at most 1 GiB.
    """

    max: float = field(default=0.98, metadata={"min": 0.0, "max": 1.0})
    """Correlation that two features may have, in 0..1."""

    def select(self, matrix: Matrix, *, seed: int, threads: int) -> dict[str, Dropped]:
        (gram,) = grams(matrix, scale_of(matrix))
        size_F = np.sqrt(np.maximum(np.diag(gram.xx_FF), 0.0))
        norm_F = np.where(size_F > 0, size_F, np.inf)
        between_FF = np.abs(gram.xx_FF / norm_F / norm_F[:, None])
        target_F = np.max(np.abs(gram.xy_FT) / norm_F[:, None] / np.sqrt(np.maximum(gram.yy_T, 1e-300)), axis=1)
        found: dict[str, Dropped] = {}
        kept: list[int] = []
        # Rounded, so that what differs by rounding alone goes by the order of the features.
        for i in np.argsort(-np.round(target_F, 9), kind="stable").tolist():
            nearest = kept[int(np.argmax(between_FF[i, kept]))] if kept else i
            value = float(between_FF[i, nearest])
            if nearest != i and value > self.max:
                found[matrix.names[i]] = Dropped(
                    f"correlation {value:.4f} with {matrix.names[nearest]!r}, which is closer to the target", value
                )
            else:
                kept.append(i)
        return {name: found[name] for name in matrix.names if name in found}
