"""Each class's log-odds against the rest, natively and as nodes: what a class is calibrated on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tidemill.core.load import need
from tidemill.models import export

if TYPE_CHECKING:
    import onnx

LOG_ODDS = "model/log_odds_NK"


def log_odds(score_NK: np.ndarray) -> np.ndarray:
    """Each class's log-odds against the rest under the softmax of `score_NK`, float64 (N, K).

    They are its score minus the log of the sum of the others' exponentials, which is exact where probabilities would have
    rounded to 0 or 1.
    """
    score_NK = score_NK.astype(np.float64)
    columns = []
    for k in range(score_NK.shape[1]):
        others = np.delete(score_NK, k, axis=1)
        top = others.max(axis=1)
        columns.append(score_NK[:, k] - top - np.log(np.exp(others - top[:, None]).sum(axis=1)))
    return np.stack(columns, axis=1)


def log_odds_nodes(num_classes: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The same as nodes from `SCORE` to the tensor `LOG_ODDS`."""
    node = need("onnx.helper", "exporting a model").make_node
    # -1e30 instead of the class itself: its exponential is 0, and no infinity enters the arithmetic.
    others_KK = np.where(np.eye(num_classes, dtype=bool), np.float32(-1e30), np.float32(0))
    nodes = [
        node("Unsqueeze", [export.SCORE, "model/one"], ["model/score_N1K"]),
        node("Add", ["model/score_N1K", "model/others_KK"], ["model/others_NKK"]),
        node("ReduceLogSumExp", ["model/others_NKK", "model/two"], ["model/rest_NK"], keepdims=0),
        node("Sub", [export.SCORE, "model/rest_NK"], [LOG_ODDS]),
    ]
    tensors = [
        export.tensor("model/one", [1], np.int64),
        export.tensor("model/two", [2], np.int64),
        export.tensor("model/others_KK", others_KK),
    ]
    return nodes, tensors
