"""PCA: several numbers as the few directions in which they vary most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.features.builder import DOUBLE, Block, Builder
from tidemill.features.operator import Fitted, JoinFit, Kind, Made, Values, numbers
from tidemill.features.statistics import LARGEST


@dataclass(frozen=True, kw_only=True)
class Pca:
    """Features `<name>.1`, `<name>.2` and so on: the principal components of the columns, in falling order of variance.

    From the covariance of the training rows, summed up in one pass (Chan, Golub and LeVeque 1979). Columns on different scales
    want `standardize` before it. A component's sign is such that its largest weight is positive.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null, NaN                  | the column's mean; fitting takes it so too                         |
    | infinite, beyond +-1e145   | the same                                                           |
    | integer beyond 2^53        | as the nearest float64                                             |
    | any number, columns equal  | a component without variance is 0 on the training rows             |
    """

    components: int = field(default=2, metadata={"min": 1})
    """Components kept, from 1 to the number of columns."""

    joins: ClassVar[Literal[True]] = True
    accepts: ClassVar[tuple[Kind, ...]] = ("number",)

    def fit(self, kinds: Sequence[Kind]) -> JoinFit[Covariance | None]:
        if self.components > len(kinds):
            raise ConfigError(f"pca: components must be at most the {len(kinds)} columns that it gets, got {self.components}")
        return PrincipalComponents(self.components)

    def reference(self, name: str, columns: Sequence[Values], fitted: Fitted) -> Made:
        mean_C = np.asarray(fitted["mean"], np.float64)
        x_NC = np.stack([column.data for column in columns], axis=1)
        with np.errstate(invalid="ignore"):
            centred_NC = np.where(np.abs(x_NC) <= LARGEST, x_NC - mean_C, 0.0)
        made_NK = centred_NC @ np.asarray(fitted["components"], np.float64).T
        return Made({feature: numbers(made_NK[:, k]) for k, feature in enumerate(_names(name, fitted))})

    def nodes(self, graph: Builder, name: str, columns: Sequence[Block], fitted: Fitted) -> Block:
        x = graph.stack([graph.numbers(column) for column in columns])
        usual = graph.node("LessOrEqual", graph.node("Abs", x), graph.constant([[LARGEST]], np.float64))
        centred = graph.node("Sub", x, graph.constant([fitted["mean"]], np.float64))
        known = graph.node("Where", usual, centred, graph.constant([[0.0]], np.float64))
        made = graph.node("MatMul", known, graph.constant(np.asarray(fitted["components"], np.float64).T))
        names = tuple(_names(name, fitted))
        return Block(kind="number", names=names, origins=(name,) * len(names), tensors=(made,), element=DOUBLE)


@dataclass
class Covariance:
    """Of each pair of columns: rows that have both, the means of the first over those, sums of products of differences from them."""

    rows: int
    count_CC: np.ndarray
    mean_CC: np.ndarray
    product_CC: np.ndarray

    @classmethod
    def of(cls, x_NC: np.ndarray) -> Covariance:
        """Of a batch; NaN and what is infinite or beyond +-1e145 are null."""
        with np.errstate(invalid="ignore"):
            known_NC = np.abs(x_NC) <= LARGEST
        held = known_NC.astype(np.float64)
        shift_C = np.where(known_NC, x_NC, 0.0).sum(axis=0) / np.maximum(held.sum(axis=0), 1)
        shifted_NC = np.where(known_NC, x_NC - shift_C, 0.0)
        count_CC = held.T @ held
        least_CC = np.maximum(count_CC, 1)
        sum_CC = shifted_NC.T @ held
        product_CC = shifted_NC.T @ shifted_NC - sum_CC * sum_CC.T / least_CC
        return cls(len(x_NC), count_CC, shift_C[:, None] + sum_CC / least_CC, product_CC)

    def merge(self, other: Covariance) -> Covariance:
        count_CC = self.count_CC + other.count_CC
        share_CC = other.count_CC / np.maximum(count_CC, 1)
        apart_CC = np.where(self.count_CC > 0, other.mean_CC - self.mean_CC, 0.0)
        mean_CC = np.where(self.count_CC > 0, self.mean_CC + apart_CC * share_CC, other.mean_CC)
        product_CC = self.product_CC + other.product_CC + apart_CC * apart_CC.T * self.count_CC * share_CC
        return Covariance(self.rows + other.rows, count_CC, mean_CC, product_CC)

    def imputed(self) -> tuple[np.ndarray, np.ndarray]:
        """The columns' means, and the covariance of the rows with every null filled by its column's mean."""
        mean_C = np.diagonal(self.mean_CC).copy()
        off_CC = self.mean_CC - mean_C[:, None]
        return mean_C, (self.product_CC + self.count_CC * off_CC * off_CC.T) / max(self.rows - 1, 1)


@dataclass(frozen=True)
class PrincipalComponents:
    """Fits `Pca`."""

    components: int

    def init(self) -> Covariance | None:
        return None

    def update(self, state: Covariance | None, columns: Sequence[Values], counts: np.ndarray | None) -> Covariance | None:
        x_NC = np.stack([column.data for column in columns], axis=1)
        seen = Covariance.of(x_NC if counts is None else np.repeat(x_NC, counts, axis=0))
        return self.merge(state, seen)

    def merge(self, left: Covariance | None, right: Covariance | None) -> Covariance | None:
        return left.merge(right) if left is not None and right is not None else left or right

    def finish(self, state: Covariance | None) -> Fitted:
        if state is None:
            raise ConfigError("pca: must get rows, gets none")
        mean_C, covariance_CC = state.imputed()
        variance_C, vectors_CC = np.linalg.eigh((covariance_CC + covariance_CC.T) / 2)
        variance_C, vectors_CC = np.maximum(variance_C[::-1], 0.0), vectors_CC[:, ::-1]
        largest_C = np.abs(vectors_CC).argmax(axis=0)
        vectors_CC = vectors_CC * np.where(vectors_CC[largest_C, range(len(largest_C))] < 0, -1.0, 1.0)
        total = float(variance_C.sum()) or 1.0
        return {
            "mean": mean_C.tolist(),
            "components": vectors_CC.T[: self.components].tolist(),
            "explained": (variance_C[: self.components] / total).tolist(),
        }


def _names(name: str, fitted: Fitted) -> list[str]:
    return [f"{name}.{k + 1}" for k in range(len(fitted["components"]))]
