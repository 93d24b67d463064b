"""Platt calibration: a logistic curve over a model's score.

Method: Platt (1999), with the smoothed targets and the Newton iteration of Lin, Lin and Weng (2007).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.load import need
from tidemill.models import export
from tidemill.models.calibration.odds import LOG_ODDS, log_odds, log_odds_nodes

if TYPE_CHECKING:
    import onnx

_ITERATIONS = 100
_RIDGE = 1e-12


@dataclass(frozen=True, kw_only=True)
class Platt:
    """One curve per class (a single one for binary): probability = 1 / (1 + exp(-(slope x log-odds + offset)))."""

    slope: tuple[float, ...]
    offset: tuple[float, ...]

    def link(self) -> export.Link:
        if len(self.slope) == 1:
            return export.Sigmoid(self.slope[0], self.offset[0])
        return OneVersusRest(np.array(self.slope), np.array(self.offset))

    @classmethod
    def fit(cls, odds_NS: np.ndarray, positive_NS: np.ndarray, weight_N: np.ndarray | None) -> Platt:
        """The curve of each column of log-odds for its own outcomes, bool."""
        curves = [fit_curve(odds_NS[:, k], positive_NS[:, k], weight_N) for k in range(odds_NS.shape[1])]
        return cls(slope=tuple(a for a, _ in curves), offset=tuple(b for _, b in curves))

    @property
    def num_classes(self) -> int:
        return max(2, len(self.slope))

    def to_json(self) -> dict[str, Any]:
        return {"method": "platt", "slope": list(self.slope), "offset": list(self.offset)}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Platt:
        return cls(slope=tuple(tree["slope"]), offset=tuple(tree["offset"]))


class OneVersusRest:
    """Class scores (N, K) to calibrated probabilities (N, K)."""

    def __init__(self, slope_K: np.ndarray, offset_K: np.ndarray) -> None:
        self.slope_K = slope_K
        self.offset_K = offset_K

    def apply(self, score_NS: np.ndarray) -> np.ndarray:
        odds_NK = self.slope_K * log_odds(score_NS) + self.offset_K
        return export.softmax(-np.logaddexp(0.0, -odds_NK))

    def nodes(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        node = need("onnx.helper", "exporting a model").make_node
        nodes, tensors = log_odds_nodes(len(self.slope_K))
        nodes += [
            node("Mul", [LOG_ODDS, "model/slope"], ["model/scaled_NK"]),
            node("Add", ["model/scaled_NK", "model/offset"], ["model/negative_NK"]),
            node("Softplus", ["model/negative_NK"], ["model/loss_NK"]),
            node("Neg", ["model/loss_NK"], ["model/log_probability_NK"]),
            node("Softmax", ["model/log_probability_NK"], [export.PROBABILITY], axis=1),
        ]
        tensors += [export.tensor("model/slope", -self.slope_K), export.tensor("model/offset", -self.offset_K)]
        return nodes, tensors


def fit_curve(score_N: np.ndarray, positive_N: np.ndarray, weight_N: np.ndarray | None = None) -> tuple[float, float]:
    """Slope and offset of the logistic curve that fits a score best.

    Args:
        score_N: Finite scores, shape (N,).
        positive_N: Whether each row is of the class, shape (N,), bool.
        weight_N: Weights of rows, shape (N,), >= 0.
    """
    weight_N = np.ones(len(score_N)) if weight_N is None else weight_N
    # Scaled to about one, so that the Newton step is well conditioned whatever the score's unit.
    scale = float(np.sqrt(np.average(np.square(score_N), weights=weight_N))) or 1.0
    design_2N = np.stack([score_N / scale, np.ones(len(score_N))])
    num_positive, num_negative = float(weight_N[positive_N].sum()), float(weight_N[~positive_N].sum())
    target_N = np.where(positive_N, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))
    curve = np.array([0.0, np.log((num_positive + 1) / (num_negative + 1))])
    loss = _loss(design_2N, target_N, weight_N, curve)
    for _ in range(_ITERATIONS):
        p_N = 1 / (1 + np.exp(-np.clip(curve @ design_2N, -700, 700)))
        gradient = design_2N @ (weight_N * (p_N - target_N))
        hessian = (design_2N * (weight_N * p_N * (1 - p_N))) @ design_2N.T + _RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        if abs(gradient @ step) < 1e-12 * (1 + abs(loss)):
            break
        size = 1.0
        while size > 1e-10:
            trial = curve - size * step
            trial_loss = _loss(design_2N, target_N, weight_N, trial)
            if trial_loss <= loss - 1e-4 * size * float(gradient @ step):
                curve, loss = trial, trial_loss
                break
            size /= 2
        else:
            break
    return float(curve[0] / scale), float(curve[1])


def _loss(design_2N: np.ndarray, target_N: np.ndarray, weight_N: np.ndarray, curve: np.ndarray) -> float:
    odds_N = curve @ design_2N
    return float(weight_N @ (np.logaddexp(0, odds_N) - target_N * odds_N))
