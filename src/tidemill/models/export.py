"""From scores to the graph's output: the link that every scored model shares, native and as nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tidemill.core.graph import IR_VERSION, OPSETS
from tidemill.core.load import need

if TYPE_CHECKING:
    import onnx

FEATURES = "features"
SCORE = "model/score"
PROBABILITY = "probability"
PREDICTION = "prediction"
SHARE = "model/share"

# The least share that a class keeps where shares become scores, so that their logarithms are finite.
SMALLEST_SHARE = 1e-7


class Link(Protocol):
    """How scores become the output. Both paths compute the same."""

    def apply(self, score_NS: np.ndarray) -> np.ndarray: ...
    def nodes(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]: ...


class Sigmoid:
    """Log-odds (N, 1) to the probabilities of both classes (N, 2): softmax([-a/2, a/2]) of a = slope x score + offset."""

    def __init__(self, slope: float = 1.0, offset: float = 0.0) -> None:
        self.slope = slope
        self.offset = offset

    def apply(self, score_NS: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            positive_N = 1.0 / (1.0 + np.exp(-(self.slope * score_NS[:, 0].astype(np.float64) + self.offset)))
        return np.stack([1.0 - positive_N, positive_N], axis=1)

    def nodes(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        helper = need("onnx.helper", "exporting a model")
        nodes = [
            helper.make_node("Gemm", [SCORE, "model/slope", "model/offset"], ["model/odds"]),
            helper.make_node("Softmax", ["model/odds"], [PROBABILITY], axis=1),
        ]
        halves = np.array([-0.5, 0.5])
        return nodes, [tensor("model/slope", [self.slope * halves]), tensor("model/offset", self.offset * halves)]


class Softmax:
    """Class scores (N, K) to probabilities (N, K)."""

    def apply(self, score_NS: np.ndarray) -> np.ndarray:
        return softmax(score_NS.astype(np.float64))

    def nodes(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        helper = need("onnx.helper", "exporting a model")
        return [helper.make_node("Softmax", [SCORE], [PROBABILITY], axis=1)], []


class Identity:
    """The score (N, 1) is the prediction (N,)."""

    def apply(self, score_NS: np.ndarray) -> np.ndarray:
        return score_NS[:, 0].astype(np.float64)

    def nodes(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        helper = need("onnx.helper", "exporting a model")
        return [helper.make_node("Squeeze", [SCORE, "model/axis"], [PREDICTION])], [tensor("model/axis", [1], np.int64)]


def link(task: str) -> Link:
    """The link of a task, without calibration."""
    links: dict[str, type[Link]] = {"binary": Sigmoid, "multiclass": Softmax, "regression": Identity}
    return links[task]()


def assemble(
    scores: tuple[list[onnx.NodeProto], list[onnx.TensorProto]],
    link: Link,
    *,
    num_classes: int | None,
    num_features: int = 0,
    inputs: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:
    """A checked model from `features` to the task's output.

    Args:
        scores: Nodes and initializers that make the tensor `SCORE` from the inputs.
        num_classes: Columns of `probability`; None for regression.
        num_features: Columns of `features`.
        inputs: What the model takes in place of `features`.
    """
    helper = need("onnx.helper", "exporting a model")
    checker = need("onnx.checker", "exporting a model")
    link_nodes, link_tensors = link.nodes()
    kind = need("onnx", "exporting a model").TensorProto.FLOAT
    output = (PREDICTION, ["N"]) if num_classes is None else (PROBABILITY, ["N", num_classes])
    graph = helper.make_graph(
        [*scores[0], *link_nodes],
        "model",
        list(inputs) or [helper.make_tensor_value_info(FEATURES, kind, ["N", num_features])],
        [helper.make_tensor_value_info(output[0], kind, output[1])],
        [*scores[1], *link_tensors],
    )
    model: onnx.ModelProto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in OPSETS.items()],
        ir_version=IR_VERSION,
        producer_name="tidemill",
    )
    checker.check_model(model, full_check=True)
    return model


def share_scores(share_NK: np.ndarray, task: str) -> np.ndarray:
    """Scores under the task's link that answer given shares: of class 1 (N, 1) for binary, of each class (N, K) for multiclass."""
    share_NK = np.clip(share_NK, SMALLEST_SHARE, 1 - SMALLEST_SHARE)
    return np.asarray(np.log(share_NK) - np.log1p(-share_NK) if task == "binary" else np.log(share_NK))


def share_nodes(task: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The same as nodes from the tensor `SHARE` to `SCORE`."""
    node = need("onnx.helper", "exporting a model").make_node
    bounds = [tensor("model/least", SMALLEST_SHARE), tensor("model/most", 1 - SMALLEST_SHARE)]
    inside = node("Clip", [SHARE, "model/least", "model/most"], ["model/inside"])
    if task != "binary":
        return [inside, node("Log", ["model/inside"], [SCORE])], bounds
    nodes = [
        inside,
        node("Sub", ["model/unit", "model/inside"], ["model/rest"]),
        node("Div", ["model/inside", "model/rest"], ["model/ratio"]),
        node("Log", ["model/ratio"], [SCORE]),
    ]
    return nodes, [*bounds, tensor("model/unit", 1.0)]


def tensor(name: str, values: object, kind: type = np.float32) -> onnx.TensorProto:
    """An initializer of `values`, float32 unless told otherwise."""
    made: onnx.TensorProto = need("onnx.numpy_helper", "exporting a model").from_array(np.asarray(values, kind), name)
    return made


def softmax(score_NK: np.ndarray) -> np.ndarray:
    """Rows of exp(score), each divided by its sum."""
    power_NK = np.exp(score_NK - score_NK.max(axis=1, keepdims=True))
    return np.asarray(power_NK / power_NK.sum(axis=1, keepdims=True))
