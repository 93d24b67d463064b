"""All that a least-squares fit needs of the rows, by one scan: cross products of standardised features and the target.

How a feature is standardised is known only at the end of the scan. But a standardised value is a linear function of the
value less a provisional shift and of indicators (missing, either infinity). So the scan sums the cross products of
those, in float64, and the end of it works out the rest exactly. The shift of a feature is its mean over the first rows
that have it: the overall mean is then at most about sqrt(rows / first rows) deviations away, so that what cancels
costs few of the 16 digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tidemill.models import base
from tidemill.models.scaling import Moments, Scaling, chunks, finite


@dataclass(frozen=True, kw_only=True)
class Gram:
    """Weighted sums over all rows of centred, standardised features and the centred target."""

    scaling: Scaling
    weight: float
    """Total weight of the rows."""
    mean_F: np.ndarray
    """Mean of the standardised features: about 0."""
    target: float
    """Mean of the target."""
    xx_FF: np.ndarray
    xy_F: np.ndarray

    @classmethod
    def of(cls, matrix: base.Matrix) -> Gram | None:
        """The sums of a matrix, by one pass over it; None where no row has a weight above 0."""
        sums = _Sums(matrix.num_features)
        for x_NF, y_N, weight_N in chunks(matrix):
            if len(y_N):
                sums.add(x_NF, y_N, weight_N)
        return sums.gram() if sums.moments is not None else None


# Columns of the sums before those of features: the constant and the target.
_ONE, _TARGET, _FIRST = 0, 1, 2


class _Sums:
    """Cross products of [1, y - shift, x - shift, indicators], indicators added as they are met."""

    def __init__(self, num_features: int) -> None:
        self.moments: Moments | None = None
        self._num_features = num_features
        self._shift_F = np.full(num_features, np.nan)
        self._target_shift = 0.0
        self._indicators: dict[tuple[int, float], int] = {}
        self._sum_AA = np.zeros((_FIRST + num_features,) * 2)

    def add(self, x_NF: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray | None) -> None:
        clean_NF = finite(x_NF)
        if self.moments is None:
            self.moments = Moments(self._num_features)
            self._target_shift = float(np.average(y_N, weights=weight_N))
        self.moments.add(clean_NF, weight_N)
        unset_F = np.isnan(self._shift_F) & (self.moments.weight_F > 0)
        self._shift_F[unset_F] = self.moments.mean_F[unset_F]
        clean_NF -= self._shift_F
        absent_NF = np.isnan(clean_NF)
        marks = self._marks(x_NF, absent_NF)
        a_NA = np.zeros((len(y_N), len(self._sum_AA)))
        a_NA[:, _ONE], a_NA[:, _TARGET] = 1.0, y_N - self._target_shift
        clean_NF[absent_NF] = 0
        a_NA[:, _FIRST : _FIRST + self._num_features] = clean_NF
        for column, mark_N in marks:
            a_NA[:, column] = mark_N
        if weight_N is not None:
            a_NA *= np.sqrt(weight_N)[:, None]
        self._sum_AA += a_NA.T @ a_NA

    def _marks(self, x_NF: np.ndarray, absent_NF: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """The place of each indicator that these rows need, and its values; room is made for new ones."""
        marks = []
        for feature in np.flatnonzero(absent_NF.any(axis=0)).tolist():
            values_N = x_NF[:, feature]
            for kind, mark_N in ((np.inf, values_N == np.inf), (-np.inf, values_N == -np.inf), (0.0, np.isnan(values_N))):
                if mark_N.any():
                    place = self._indicators.setdefault((feature, kind), _FIRST + self._num_features + len(self._indicators))
                    marks.append((place, mark_N))
        self._sum_AA = np.pad(self._sum_AA, (0, _FIRST + self._num_features + len(self._indicators) - len(self._sum_AA)))
        return marks

    def gram(self) -> Gram | None:
        if self.moments is None:
            return None
        scaling = Scaling.from_moments(self.moments)
        mean_F, scale_F = scaling.mean.astype(np.float64), scaling.scale.astype(np.float64)
        shift_F = np.where(np.isnan(self._shift_F), 0.0, self._shift_F)
        width = self._num_features
        # Standardised features, then the target, as linear functions of what was summed.
        to_AB = np.zeros((len(self._sum_AA), width + 1))
        to_AB[_FIRST + np.arange(width), np.arange(width)] = 1 / scale_F
        to_AB[_ONE, :width] = (shift_F - mean_F) / scale_F
        for (feature, kind), place in self._indicators.items():
            edge = {np.inf: scaling.high, -np.inf: scaling.low}.get(kind)
            to_AB[place, feature] = (0.0 if edge is None else float(edge[feature])) / scale_F[feature] - to_AB[_ONE, feature]
        to_AB[_TARGET, width] = 1.0
        constant_F = scaling.high == scaling.low
        to_AB[:, :width][:, constant_F] = 0
        weight = float(self._sum_AA[_ONE, _ONE])
        mean_B = self._sum_AA[_ONE] @ to_AB / weight
        to_AB[_ONE] -= mean_B
        sums_BB = to_AB.T @ self._sum_AA @ to_AB
        return Gram(
            scaling=scaling,
            weight=weight,
            mean_F=mean_B[:width],
            target=float(mean_B[width]) + self._target_shift,
            xx_FF=sums_BB[:width, :width],
            xy_F=sums_BB[:width, width],
        )
