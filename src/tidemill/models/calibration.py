"""Platt calibration: a logistic curve over a model's score, fitted on the validation rows.

Method: Platt (1999), with the smoothed targets and the Newton iteration of Lin, Lin and Weng (2007). With more than two
classes each is calibrated against the rest on its own log-odds, and the results are divided by their sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.artifact import write_json
from tidemill.core.errors import DataError, Unsupported
from tidemill.core.load import need
from tidemill.models import base, export

if TYPE_CHECKING:
    import onnx

CALIBRATION = "calibration.json"

# The graph compares every class with every other one, so that its memory grows with the square of their number.
MAX_CLASSES = 200

_ITERATIONS = 100
_RIDGE = 1e-12


class Calibrated:
    """A scored model whose link was fitted. Predicts, exports and saves as the model does."""

    def __init__(self, fitted: base.Scored, curve: Platt) -> None:
        self.fitted = fitted
        self.curve = curve
        self.task = fitted.task
        self.best_round = fitted.best_round

    def predict(self, x_NF: np.ndarray) -> np.ndarray:
        return self.curve.link().apply(self.fitted.score(x_NF))

    def to_onnx(self) -> onnx.ModelProto:
        plain = self.fitted.to_onnx().graph
        width = plain.input[0].type.tensor_type.shape.dim[1].dim_value
        classes = max(2, len(self.curve.slope))
        return export.assemble(self.fitted.score_graph(), self.curve.link(), num_features=width, num_classes=classes)

    def importance(self) -> dict[str, float]:
        return self.fitted.importance()

    def save(self, folder: Path) -> None:
        self.fitted.save(folder)
        write_json(folder / CALIBRATION, self.curve.to_json())


@dataclass(frozen=True, kw_only=True)
class Platt:
    """One curve per class (a single one for binary): probability = 1 / (1 + exp(-(slope x log-odds + offset)))."""

    slope: tuple[float, ...]
    offset: tuple[float, ...]

    def link(self) -> export.Link:
        if len(self.slope) == 1:
            return export.Sigmoid(self.slope[0], self.offset[0])
        return OneVersusRest(np.array(self.slope), np.array(self.offset))

    def to_json(self) -> dict[str, Any]:
        return {"method": "platt", "slope": list(self.slope), "offset": list(self.offset)}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Platt:
        return cls(slope=tuple(tree["slope"]), offset=tuple(tree["offset"]))


class OneVersusRest:
    """Class scores (N, K) to calibrated probabilities (N, K).

    A class's log-odds are its score minus the log of the sum of the others' exponentials, which is exact where
    probabilities would have rounded to 0 or 1.
    """

    def __init__(self, slope_K: np.ndarray, offset_K: np.ndarray) -> None:
        self.slope_K = slope_K
        self.offset_K = offset_K

    def apply(self, score_NS: np.ndarray) -> np.ndarray:
        odds_NK = self.slope_K * log_odds(score_NS) + self.offset_K
        return export.softmax(-np.logaddexp(0.0, -odds_NK))

    def nodes(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        node = need("onnx.helper", "exporting a model").make_node
        classes = len(self.slope_K)
        # -1e30 instead of the class itself: its exponential is 0, and no infinity enters the arithmetic.
        others_KK = np.where(np.eye(classes, dtype=bool), np.float32(-1e30), np.float32(0))
        nodes = [
            node("Unsqueeze", [export.SCORE, "model/one"], ["model/score_N1K"]),
            node("Add", ["model/score_N1K", "model/others_KK"], ["model/others_NKK"]),
            node("ReduceLogSumExp", ["model/others_NKK", "model/two"], ["model/rest_NK"], keepdims=0),
            node("Sub", [export.SCORE, "model/rest_NK"], ["model/log_odds_NK"]),
            node("Mul", ["model/log_odds_NK", "model/slope"], ["model/scaled_NK"]),
            node("Add", ["model/scaled_NK", "model/offset"], ["model/negative_NK"]),
            node("Softplus", ["model/negative_NK"], ["model/loss_NK"]),
            node("Neg", ["model/loss_NK"], ["model/log_probability_NK"]),
            node("Softmax", ["model/log_probability_NK"], [export.PROBABILITY], axis=1),
        ]
        tensors = [
            export.tensor("model/one", [1], np.int64),
            export.tensor("model/two", [2], np.int64),
            export.tensor("model/others_KK", others_KK),
            export.tensor("model/slope", -self.slope_K),
            export.tensor("model/offset", -self.offset_K),
        ]
        return nodes, tensors


def calibrate(fitted: base.Fitted, valid: base.Matrix, *, task: str, num_classes: int | None) -> Calibrated:
    """The model with a Platt curve fitted on `valid`, whose weights count.

    Raises:
        Unsupported: If the task has no probabilities, the model gives no scores, or there are more than 200 classes.
        DataError: If `valid` has no rows.
    """
    if task not in ("binary", "multiclass"):
        raise Unsupported(f"model.calibrate: needs a binary or multiclass task, got {task}", hint="remove it")
    if not isinstance(fitted, base.Scored):
        raise Unsupported(f"model.calibrate: needs a model with scores, {type(fitted).__name__} has none", hint="linear and xgboost have")
    if num_classes is not None and num_classes > MAX_CLASSES:
        raise Unsupported(f"model.calibrate: takes at most {MAX_CLASSES} classes, got {num_classes}", hint="remove it")
    if not valid.num_rows:
        raise DataError("model.calibrate: needs validation rows, got none", hint="raise data.split.valid")
    score_NS = np.concatenate([fitted.score(batch.x_NF) for batch in valid.batches()])
    y_N, weight_N = valid.targets()
    if score_NS.shape[1] == 1:
        curves = [fit_curve(score_NS[:, 0], y_N == 1, weight_N)]
    else:
        odds_NK = log_odds(score_NS)
        curves = [fit_curve(odds_NK[:, k], y_N == k, weight_N) for k in range(odds_NK.shape[1])]
    return Calibrated(fitted, Platt(slope=tuple(a for a, _ in curves), offset=tuple(b for _, b in curves)))


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


def log_odds(score_NK: np.ndarray) -> np.ndarray:
    """Each class's log-odds against the rest under the softmax of `score_NK`, float64 (N, K)."""
    score_NK = score_NK.astype(np.float64)
    columns = []
    for k in range(score_NK.shape[1]):
        others = np.delete(score_NK, k, axis=1)
        top = others.max(axis=1)
        columns.append(score_NK[:, k] - top - np.log(np.exp(others - top[:, None]).sum(axis=1)))
    return np.stack(columns, axis=1)


def _loss(design_2N: np.ndarray, target_N: np.ndarray, weight_N: np.ndarray, curve: np.ndarray) -> float:
    odds_N = curve @ design_2N
    return float(weight_N @ (np.logaddexp(0, odds_N) - target_N * odds_N))
