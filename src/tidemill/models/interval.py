"""Prediction intervals: two quantiles beside the prediction, moved apart until they cover what they say.

Method: conformalised quantile regression (Romano, Patterson and Candes 2019) on the validation rows. The interval always
holds the prediction: `low = min(lower quantile - widening, prediction)` and `high = max(upper quantile + widening,
prediction)`, so that quantiles that cross can do no harm. The widening may be negative, where the quantiles were too far apart.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from tidemill.core.artifact import write_json
from tidemill.core.errors import DataError, Unsupported
from tidemill.core.load import need
from tidemill.models import base, export

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

INTERVAL = "interval.json"
OUTPUT = "interval"

# What no quantile needs to be moved by, and a float32 holds.
_FARTHEST = 1e30


class Quantiles(Protocol):
    """Fitted quantiles of a target."""

    def predict(self, x_NF: np.ndarray) -> np.ndarray:
        """Float64 [N, Q], in the order of the levels, by the model's own library."""

    def graph(self, output: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Nodes and initializers from `features` to the tensor `output` [N, Q]."""

    def save(self, folder: Path) -> None:
        """Write files into `folder`, beside the model's own, that hold numbers and text, no code."""


@runtime_checkable
class QuantileModel(Protocol):
    """A kind of model that can also fit quantiles, with the parameters of its point prediction."""

    def fit_quantiles(
        self, train: base.Matrix, valid: base.Matrix | None, *, levels: Sequence[float], params: Any, seed: int, threads: int
    ) -> Quantiles: ...

    def load_quantiles(self, folder: Path) -> Quantiles: ...


class Ranged:
    """A model of a number with an interval around it. Predicts, exports and saves as the model does, and the interval with it."""

    def __init__(self, fitted: base.Fitted, quantiles: Quantiles, *, level: float, widening: float) -> None:
        self.fitted = fitted
        self.quantiles = quantiles
        self.level = level
        self.widening = widening
        self.best_round = fitted.best_round

    def predict(self, x_NF: np.ndarray) -> np.ndarray:
        return self.fitted.predict(x_NF)

    def predict_interval(self, x_NF: np.ndarray) -> np.ndarray:
        """Low and high, float64 [N, 2]."""
        p_N, quantile_N2 = self.predict(x_NF), self.quantiles.predict(x_NF)
        low_N, high_N = quantile_N2[:, 0] - self.widening, quantile_N2[:, 1] + self.widening
        return np.stack([np.minimum(low_N, p_N), np.maximum(high_N, p_N)], axis=1)

    def to_onnx(self) -> onnx.ModelProto:
        """The model's graph with the output `interval` float32 [N, 2]."""
        helper, checker = need("onnx.helper", "exporting a model"), need("onnx.checker", "exporting a model")
        model = self.fitted.to_onnx()
        nodes, tensors = self.quantiles.graph("interval/quantiles")
        axis = export.tensor("interval/axis", [1], np.int64)
        moved = [
            helper.make_node("Add", ["interval/quantiles", "interval/widening"], ["interval/moved"]),
            helper.make_node("Split", ["interval/moved"], ["interval/lower", "interval/upper"], axis=1, num_outputs=2),
            helper.make_node("Unsqueeze", [export.PREDICTION, "interval/axis"], ["interval/prediction"]),
            helper.make_node("Min", ["interval/lower", "interval/prediction"], ["interval/low"]),
            helper.make_node("Max", ["interval/upper", "interval/prediction"], ["interval/high"]),
            helper.make_node("Concat", ["interval/low", "interval/high"], [OUTPUT], axis=1),
        ]
        model.graph.node.extend([*nodes, *moved])
        model.graph.initializer.extend([*tensors, axis, export.tensor("interval/widening", [[-self.widening, self.widening]])])
        kind = need("onnx", "exporting a model").TensorProto.FLOAT
        model.graph.output.append(helper.make_tensor_value_info(OUTPUT, kind, ["N", 2]))
        checker.check_model(model, full_check=True)
        return model

    def importance(self) -> dict[str, float]:
        return self.fitted.importance()

    def save(self, folder: Path) -> None:
        self.fitted.save(folder)
        self.quantiles.save(folder)
        write_json(folder / INTERVAL, {"level": self.level, "widening": self.widening})


def fit_interval(
    model: base.Model,
    fitted: base.Fitted,
    train: base.Matrix,
    valid: base.Matrix | None,
    *,
    level: float,
    task: str,
    params: Any,
    seed: int,
    threads: int,
) -> Ranged:
    """`fitted` with an interval that holds `level` of new rows like the validation rows, whose weights count.

    The validation rows also chose the quantiles' best round, so that a little of the widening may be lacking: the share
    that is truly held is measured on the test split.

    Raises:
        Unsupported: If the task has no numbers, the model fits no quantiles, or there are no validation rows.
        DataError: If there are too few validation rows for such a level.
    """
    if task != "regression":
        raise Unsupported(f"model.interval: needs a regression task, got {task}", hint="probabilities already say how sure it is")
    if not isinstance(model, QuantileModel):
        raise Unsupported(f"model.interval: needs a model that fits quantiles, {type(model).__name__} does not", hint="xgboost does")
    if valid is None or not valid.num_rows:
        raise Unsupported("model.interval: needs validation rows to be held against", hint="raise data.split.valid")
    quantiles = model.fit_quantiles(train, valid, levels=[(1 - level) / 2, (1 + level) / 2], params=params, seed=seed, threads=threads)
    parts = [(batch.y_N, fitted.predict(batch.x_NF), quantiles.predict(batch.x_NF)) for batch in valid.batches()]
    y_N, p_N, quantile_N2 = (np.concatenate(part) for part in zip(*parts, strict=True))
    widening = conformal_widening(y_N, p_N, quantile_N2, level=level, weight_N=valid.targets()[1])
    return Ranged(fitted, quantiles, level=level, widening=widening)


def conformal_widening(
    y_N: np.ndarray, p_N: np.ndarray, quantile_N2: np.ndarray, *, level: float, weight_N: np.ndarray | None = None
) -> float:
    """How far the quantiles have to be moved so that the interval holds `level` of the rows, and of one more like them.

    Args:
        y_N: True values of rows that the quantiles were not fitted on.
        p_N: Predictions, which the interval holds whatever the quantiles say.
        quantile_N2: Lower and upper quantile.
        weight_N: Weights of rows, >= 0.

    Raises:
        DataError: If there are too few rows.

    Example:
        >>> y = np.arange(1.0, 20.0)
        >>> conformal_widening(y, np.zeros(19), np.zeros((19, 2)), level=0.9)
        18.0
    """
    lacking_N = np.where(y_N < p_N, quantile_N2[:, 0] - y_N, np.where(y_N > p_N, y_N - quantile_N2[:, 1], -_FARTHEST))
    weight_N = np.ones(len(y_N)) if weight_N is None else weight_N
    order = np.argsort(lacking_N, kind="stable")
    reached_N = np.cumsum(weight_N[order])
    counted = int(np.count_nonzero(weight_N))
    # One row more than there are, for the one to come; a little slack, so that rounding asks for none beyond.
    wanted = level * reached_N[-1] * (counted + 1) / max(counted, 1) * (1 - 1e-12)
    place = int(np.searchsorted(reached_N, wanted))
    if place >= len(order):
        least = math.ceil(level / (1 - level) - 1e-9)
        raise DataError(f"model.interval: {level:g} needs at least {least} validation rows, got {counted}", hint="raise data.split.valid")
    return float(np.float32(np.clip(lacking_N[order[place]], -_FARTHEST, _FARTHEST)))


def load(fitted: base.Fitted, model: Any, folder: Path) -> Ranged:
    """The model with the interval that `Ranged.save` left.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        facts = json.loads((folder / INTERVAL).read_text(encoding="utf-8"))
        return Ranged(fitted, model.load_quantiles(folder), **facts)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder / INTERVAL} must hold an interval: {error}") from error
