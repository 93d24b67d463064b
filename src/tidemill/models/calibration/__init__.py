"""Calibration: curves over a model's scores, fitted on the validation rows, that take the place of its link.

With more than two classes each is calibrated against the rest on its own log-odds, and the results are divided by their sum.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tidemill.core.artifact import write_json
from tidemill.core.errors import DataError, Unsupported
from tidemill.models import base, export
from tidemill.models.calibration.isotonic import Isotonic
from tidemill.models.calibration.odds import log_odds
from tidemill.models.calibration.platt import Platt

if TYPE_CHECKING:
    import onnx

CALIBRATION = "calibration.json"

# The graph compares every class with every other one, so that its memory grows with the square of their number.
MAX_CLASSES = 200


class Curve(Protocol):
    """A fitted curve for each class, or a single one for binary."""

    @property
    def num_classes(self) -> int: ...
    def link(self) -> export.Link: ...
    def to_json(self) -> dict[str, Any]: ...


CURVES: dict[str, type[Platt | Isotonic]] = {"platt": Platt, "isotonic": Isotonic}


class Calibrated:
    """A scored model whose link was fitted. Predicts, exports and saves as the model does."""

    def __init__(self, fitted: base.Scored, curve: Curve) -> None:
        self.fitted = fitted
        self.curve = curve
        self.task = fitted.task
        self.best_round = fitted.best_round

    def predict(self, x_NF: np.ndarray) -> np.ndarray:
        return self.curve.link().apply(self.fitted.score(x_NF))

    def to_onnx(self) -> onnx.ModelProto:
        plain = self.fitted.to_onnx().graph
        return export.assemble(self.fitted.score_graph(), self.curve.link(), inputs=plain.input, num_classes=self.curve.num_classes)

    def importance(self) -> dict[str, float]:
        return self.fitted.importance()

    def save(self, folder: Path) -> None:
        self.fitted.save(folder)
        write_json(folder / CALIBRATION, self.curve.to_json())


def calibrate(fitted: base.Fitted, valid: base.Matrix, *, task: str, num_classes: int | None, method: str = "platt") -> Calibrated:
    """The model with a curve fitted on `valid`, whose weights count.

    Args:
        method: A key of `CURVES`.

    Raises:
        Unsupported: If the task has no probabilities, the model gives no scores, or there are more than 200 classes.
        DataError: If `valid` has too few rows.
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
    first = 1 if score_NS.shape[1] == 1 else 0
    odds_NS = score_NS if first else log_odds(score_NS)
    positive_NS = y_N[:, None] == np.arange(first, first + odds_NS.shape[1])
    return Calibrated(fitted, CURVES[method].fit(odds_NS, positive_NS, weight_N))


def load(fitted: base.Scored, tree: dict[str, Any]) -> Calibrated:
    """The model with the curve that `calibration.json` holds.

    Raises:
        DataError: If it holds none.
    """
    try:
        return Calibrated(fitted, CURVES[tree["method"]].from_json(tree))
    except (KeyError, TypeError) as error:
        raise DataError(f"{CALIBRATION} must hold a curve of {', '.join(CURVES)}: {error}", hint="run the train stage again") from error
