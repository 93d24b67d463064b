"""Standardised features: what a linear model is fitted on.

A missing value counts as the feature's training mean; a value farther from the training range than the range is wide,
infinities among them, counts as that farthest point.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tidemill.core.load import need
from tidemill.models import base, export

if TYPE_CHECKING:
    import onnx


class Moments:
    """Weighted mean, spread and range of each feature's finite values, merged batch by batch (Chan, Golub and LeVeque 1983)."""

    def __init__(self, num_features: int) -> None:
        self.weight_F, self.mean_F, self.squares_F = (np.zeros(num_features) for _ in range(3))
        self.low_F, self.high_F = np.full(num_features, np.inf), np.full(num_features, -np.inf)

    def add(self, x_NF: np.ndarray, weight_N: np.ndarray | None = None) -> None:
        """Take in rows: float64, NaN for what is not finite, weights above 0."""
        if not len(x_NF):
            return
        present_NF = ~np.isnan(x_NF)
        whole = bool(present_NF.all())
        share_N = np.ones(len(x_NF)) if weight_N is None else weight_N
        added_F = np.full(x_NF.shape[1], share_N.sum()) if whole else share_N @ present_NF
        mean_F = share_N @ (x_NF if whole else np.where(present_NF, x_NF, 0)) / np.where(added_F > 0, added_F, 1)
        away_NF = x_NF - mean_F if whole else np.where(present_NF, x_NF - mean_F, 0)
        total_F = self.weight_F + added_F
        gap_F = np.where(added_F > 0, mean_F - self.mean_F, 0)
        part_F = added_F / np.where(total_F > 0, total_F, 1)
        self.squares_F += share_N @ np.square(away_NF) + gap_F**2 * self.weight_F * part_F
        self.mean_F += gap_F * part_F
        self.weight_F = total_F
        self.low_F = np.fmin(self.low_F, np.fmin.reduce(x_NF))
        self.high_F = np.fmax(self.high_F, np.fmax.reduce(x_NF))


@dataclass(frozen=True)
class Scaling:
    """How a raw feature becomes a standardised one; every array float32, shape (F,)."""

    mean: np.ndarray
    low: np.ndarray
    """Least distance from the mean that counts, <= 0."""
    high: np.ndarray
    """Greatest distance from the mean that counts, >= 0."""
    scale: np.ndarray
    """Standard deviation; 1 for a constant."""

    FIELDS: ClassVar[tuple[str, ...]] = ("mean", "low", "high", "scale")

    @classmethod
    def of(cls, matrix: base.Matrix) -> Scaling:
        """The scaling of a matrix, by one pass over it."""
        moments = Moments(matrix.num_features)
        for x_NF, _, weight_N in chunks(matrix):
            moments.add(finite(x_NF), weight_N)
        return cls.from_moments(moments)

    @classmethod
    def from_moments(cls, moments: Moments) -> Scaling:
        empty_F, mean_F = moments.weight_F == 0, moments.mean_F
        low_F, high_F = np.where(empty_F, 0, moments.low_F), np.where(empty_F, 0, moments.high_F)
        deviation_F = np.sqrt(moments.squares_F / np.where(empty_F, 1, moments.weight_F))
        # Below this a spread is rounding, not information.
        constant_F = deviation_F <= np.maximum(1e-30, 1e-7 * np.abs(mean_F))
        largest, width_F = float(np.finfo(np.float32).max), np.where(constant_F, 0, high_F - low_F)
        return cls(
            mean=mean_F.astype(np.float32),
            low=np.where(constant_F, 0, np.maximum(low_F - mean_F - width_F, -largest)).astype(np.float32),
            high=np.where(constant_F, 0, np.minimum(high_F - mean_F + width_F, largest)).astype(np.float32),
            scale=np.where(constant_F, 1, deviation_F).astype(np.float32),
        )

    def apply(self, x_NF: np.ndarray) -> np.ndarray:
        """Standardised features, float64."""
        z_NF = x_NF.astype(np.float64)
        z_NF -= self.mean
        z_NF[np.isnan(z_NF)] = 0
        np.clip(z_NF, self.low.astype(np.float64), self.high.astype(np.float64), out=z_NF)
        z_NF /= self.scale
        return z_NF

    def graph(self, output: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """The same as nodes from `features` to the tensor `output`."""
        node = need("onnx.helper", "exporting a model").make_node
        nodes = [
            node("Sub", [export.FEATURES, "model/mean"], ["model/centred"]),
            node("IsNaN", ["model/centred"], ["model/missing"]),
            node("Where", ["model/missing", "model/zero", "model/centred"], ["model/filled"]),
            node("Max", ["model/filled", "model/low"], ["model/above"]),
            node("Min", ["model/above", "model/high"], ["model/within"]),
            node("Div", ["model/within", "model/scale"], [output]),
        ]
        return nodes, [export.tensor("model/zero", 0.0), *(export.tensor(f"model/{name}", getattr(self, name)) for name in self.FIELDS)]


# Rows worked on at once: the copies of a chunk stay in the processor's cache.
CHUNK_ROWS = 8_192


def chunks(matrix: base.Matrix) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Features, targets and weights of the rows that count, some thousand at a time: a weight of 0 leaves a row out."""
    for batch in matrix.batches():
        for start in range(0, len(batch.y_N), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            x_NF, y_N, weight_N = batch.x_NF[part], batch.y_N[part], None if batch.weight_N is None else batch.weight_N[part]
            if weight_N is not None and not (weight_N > 0).all():
                counts_N = weight_N > 0
                x_NF, y_N, weight_N = x_NF[counts_N], y_N[counts_N], weight_N[counts_N]
            yield x_NF, y_N, weight_N


def finite(x_NF: np.ndarray) -> np.ndarray:
    """A float64 copy with NaN in the place of infinities."""
    x_NF = x_NF.astype(np.float64)
    x_NF[np.isinf(x_NF)] = np.nan
    return x_NF
