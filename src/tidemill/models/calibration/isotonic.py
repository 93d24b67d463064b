"""Isotonic calibration: the rising curve over a model's score that fits the outcomes best, by pool-adjacent-violators.

The curve is scikit-learn's `IsotonicRegression(out_of_bounds="clip")`, straight between its knots and level beyond them,
fitted on the means of validation rows with neighbouring scores. Fitted on single rows it would jump between two scores that
differ in the last digit only, where no two ways of adding up a score, such as a library's and a graph's, agree. It stays
between 1 / (n + 2) and 1 - 1 / (n + 2), n being the rows, so that no answer is certain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.errors import DataError
from tidemill.core.load import need
from tidemill.models import export
from tidemill.models.calibration.odds import LOG_ODDS, log_odds, log_odds_nodes

if TYPE_CHECKING:
    import onnx

# A curve of as many free values needs rows to rest on; with fewer, the logistic curve's two do better.
MIN_ROWS = 500
MIN_OF_A_CLASS = 20

# Rows whose means the curve goes by, and the most of those means.
BIN_ROWS = 20
MAX_BINS = 200

# The steepest that the curve may be: a score of 10 has an error of 1e-6 in single precision, which must stay one of 1e-5.
STEEPEST = 10.0


@dataclass(frozen=True, kw_only=True)
class Isotonic:
    """Knots of one curve per class (a single one for binary): log-odds, rising, and the probability there."""

    odds: tuple[tuple[float, ...], ...]
    probability: tuple[tuple[float, ...], ...]

    @classmethod
    def fit(cls, odds_NS: np.ndarray, positive_NS: np.ndarray, weight_N: np.ndarray | None) -> Isotonic:
        """The curve of each column of log-odds for its own outcomes, bool.

        Raises:
            DataError: If the rows, or those of a class, are too few.
        """
        if len(odds_NS) < MIN_ROWS:
            raise DataError(
                f"model.calibrate: isotonic needs at least {MIN_ROWS} validation rows, got {len(odds_NS)}",
                hint="use platt, or raise data.split.valid",
            )
        rare = int(min(positive_NS.sum(axis=0).min(), (~positive_NS).sum(axis=0).min()))
        if rare < MIN_OF_A_CLASS:
            raise DataError(
                f"model.calibrate: isotonic needs at least {MIN_OF_A_CLASS} validation rows of each class, got {rare}",
                hint="use platt, or raise data.split.valid",
            )
        curves = [fit_curve(odds_NS[:, k], positive_NS[:, k], weight_N) for k in range(odds_NS.shape[1])]
        return cls(odds=tuple(tuple(x.tolist()) for x, _ in curves), probability=tuple(tuple(p.tolist()) for _, p in curves))

    @property
    def num_classes(self) -> int:
        return max(2, len(self.odds))

    def link(self) -> export.Link:
        return Piecewise([np.array(x) for x in self.odds], [np.array(p) for p in self.probability])

    def to_json(self) -> dict[str, Any]:
        return {"method": "isotonic", "odds": [list(x) for x in self.odds], "probability": [list(p) for p in self.probability]}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Isotonic:
        return cls(odds=tuple(map(tuple, tree["odds"])), probability=tuple(map(tuple, tree["probability"])))


def fit_curve(odds_N: np.ndarray, positive_N: np.ndarray, weight_N: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Knots of the rising curve through the outcomes: log-odds (B,), float32 values, and probabilities (B,)."""
    isotonic = need("sklearn.isotonic", "model.calibrate isotonic")
    mean_B, share_B, weight_B = binned(odds_N, positive_N, weight_N)
    least = 1 / (len(odds_N) + 2)
    curve = isotonic.IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip").fit(mean_B, share_B, sample_weight=weight_B)
    x_B, p_B = curve.X_thresholds_.astype(np.float32).astype(np.float64), curve.y_thresholds_
    kept_B = np.concatenate([[True], np.diff(x_B) > 0])
    x_B, p_B = x_B[kept_B], p_B[kept_B]
    for k in range(1, len(x_B)):  # what is too steep rises later: only where scores lie all but on one another
        p_B[k] = min(p_B[k], p_B[k - 1] + STEEPEST * (x_B[k] - x_B[k - 1]))
    return x_B, p_B.astype(np.float32).astype(np.float64)


def binned(odds_N: np.ndarray, positive_N: np.ndarray, weight_N: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean log-odds, share of positives and weight of rows with neighbouring scores; equal scores stay together."""
    weight_N = np.ones(len(odds_N)) if weight_N is None else weight_N
    order_N = np.argsort(odds_N, kind="stable")
    bins = min(MAX_BINS, len(odds_N) // BIN_ROWS)
    first_N = np.searchsorted(odds_N[order_N], odds_N[order_N])  # of the rows with the same score
    _, bin_N = np.unique(first_N * bins // len(odds_N), return_inverse=True)
    weight_B = np.bincount(bin_N, weight_N[order_N])
    counted_B = weight_B > 0
    divisor_B = np.where(counted_B, weight_B, 1)
    mean_B = np.bincount(bin_N, (weight_N * odds_N)[order_N]) / divisor_B
    share_B = np.bincount(bin_N, (weight_N * positive_N)[order_N]) / divisor_B
    return mean_B[counted_B], share_B[counted_B], weight_B[counted_B]


class Piecewise:
    """Scores to probabilities by a curve of straight pieces for each class, (N, 1) or (N, K), divided by their sum."""

    def __init__(self, odds: list[np.ndarray], probability: list[np.ndarray]) -> None:
        self.odds = odds
        self.probability = probability

    def apply(self, score_NS: np.ndarray) -> np.ndarray:
        odds_NS = score_NS.astype(np.float64) if len(self.odds) == 1 else log_odds(score_NS)
        p_NS = np.stack([np.interp(odds_NS[:, k], x, p) for k, (x, p) in enumerate(zip(self.odds, self.probability, strict=True))], axis=1)
        if len(self.odds) == 1:
            return np.concatenate([1 - p_NS, p_NS], axis=1)
        return np.asarray(p_NS / p_NS.sum(axis=1, keepdims=True))

    def nodes(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """A tree for each class finds a score's piece: where it begins, the probability there, and its slope."""
        node = need("onnx.helper", "exporting a model").make_node
        curves = len(self.odds)
        single = curves == 1
        nodes, tensors = ([], []) if single else log_odds_nodes(curves)
        odds = export.SCORE if single else LOG_ODDS
        nodes += [
            node("TreeEnsembleRegressor", [odds], ["model/pieces"], domain="ai.onnx.ml", **self._trees()),
            node("Split", ["model/pieces", "model/thirds"], ["model/begin", "model/there", "model/rise"], axis=1),
            node("Sub", [odds, "model/begin"], ["model/past"]),
            node("Mul", ["model/past", "model/rise"], ["model/risen"]),
            node("Add", ["model/there", "model/risen"], ["model/calibrated"]),
        ]
        tensors.append(export.tensor("model/thirds", [curves] * 3, np.int64))
        if single:
            nodes += [
                node("Sub", ["model/whole", "model/calibrated"], ["model/negative"]),
                node("Concat", ["model/negative", "model/calibrated"], [export.PROBABILITY], axis=1),
            ]
            return nodes, [*tensors, export.tensor("model/whole", 1.0)]
        nodes += [
            node("ReduceSum", ["model/calibrated", "model/class_axis"], ["model/sum"]),
            node("Div", ["model/calibrated", "model/sum"], [export.PROBABILITY]),
        ]
        return nodes, [*tensors, export.tensor("model/class_axis", [1], np.int64)]

    def _trees(self) -> dict[str, Any]:
        """Attributes of the ensemble: targets are K beginnings, K probabilities and K slopes."""
        rows: list[tuple[int, int, int, str, float, int, int]] = []
        leaves: list[tuple[int, int, int, float]] = []
        curves = len(self.odds)
        for k, (x_B, p_B) in enumerate(zip(self.odds, self.probability, strict=True)):
            rise_B = np.diff(p_B) / np.diff(x_B)
            # Level before the first knot and from the last one on.
            pieces = [(x_B[0], p_B[0], 0.0), *zip(x_B[:-1], p_B[:-1], rise_B, strict=True), (x_B[-1], p_B[-1], 0.0)]
            for own, (piece, below, above) in enumerate(_halves(len(pieces))):
                if below < 0:
                    rows.append((k, own, 0, "LEAF", 0.0, 0, 0))
                    leaves += [(k, own, k + curves * part, float(value)) for part, value in enumerate(pieces[piece])]
                else:
                    rows.append((k, own, k, "BRANCH_LT", float(x_B[piece - 1]), below, above))
        tree, node, feature, mode, value, true, false = (list(column) for column in zip(*rows, strict=True))
        leaf_tree, leaf_node, leaf_target, leaf_value = (list(column) for column in zip(*leaves, strict=True))
        return {
            "n_targets": 3 * curves, "nodes_treeids": tree, "nodes_nodeids": node, "nodes_featureids": feature, "nodes_modes": mode,
            "nodes_values": value, "nodes_truenodeids": true, "nodes_falsenodeids": false, "target_treeids": leaf_tree,
            "target_nodeids": leaf_node, "target_ids": leaf_target, "target_weights": leaf_value,
        }  # fmt: skip


def _halves(num_pieces: int) -> list[tuple[int, int, int]]:
    """A search tree, its root first: of a branch the first piece above it and the places of both sides; of a leaf its piece, -1, -1."""
    nodes: list[tuple[int, int, int]] = []

    def grow(first: int, last: int) -> int:
        own = len(nodes)
        nodes.append((first, -1, -1))
        if first < last:
            middle = (first + last + 1) // 2
            below, above = grow(first, middle - 1), grow(middle, last)
            nodes[own] = (middle, below, above)
        return own

    grow(0, num_pieces - 1)
    return nodes
