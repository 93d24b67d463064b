"""A module as ONNX nodes, by PyTorch's tracing exporter, held against the module that it came from."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.errors import Unsupported
from tidemill.core.graph import IR_VERSION, OPSETS, session
from tidemill.core.load import need
from tidemill.models import export

if TYPE_CHECKING:
    import onnx

    Nodes = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]

# How far scores of the graph may be from the module's, relative to the largest of the row or 1. Single precision through some
# layers leaves a few millionths; a graph that computes something else is farther off.
_CLOSE = 1e-3

_PURPOSE = "exporting a network"


def exported(
    module: Any,
    inputs: Mapping[str, np.ndarray],
    axes: Mapping[str, Sequence[str | int]],
    *,
    expected_NS: np.ndarray,
    never: Mapping[int, float],
) -> Nodes:
    """Nodes and initializers from named inputs to `export.SCORE`.

    Args:
        module: In single precision, not training.
        inputs: Rows to trace with, and to hold the graph against the module.
        axes: Each input's shape, a name for an axis of any length.
        expected_NS: The module's scores of those rows.
        never: Columns of the scores that are always this number.

    Raises:
        Unsupported: If PyTorch cannot export the module, or the graph answers otherwise than the module.
    """
    model = _traced(module, inputs, axes, "raw" if never else "score")
    compose = need("onnx.compose", _PURPOSE)
    graph = compose.add_prefix(model, "model/", rename_inputs=False).graph
    nodes, tensors = list(graph.node), list(graph.initializer)
    if never:
        columns = np.arange(expected_NS.shape[1])
        fixed = np.array([never.get(int(k), 0.0) for k in columns])
        tensors += [export.tensor("model/never", np.isin(columns, list(never)), np.bool_), export.tensor("model/fixed", fixed)]
        nodes.append(need("onnx.helper", _PURPOSE).make_node("Where", ["model/never", "model/fixed", "model/raw"], [export.SCORE]))
    _check((nodes, tensors), list(graph.input), inputs, expected_NS)
    return nodes, tensors


def _traced(module: Any, inputs: Mapping[str, np.ndarray], axes: Mapping[str, Sequence[str | int]], output: str) -> onnx.ModelProto:
    import torch

    names = list(axes)

    class Positional(torch.nn.Module):
        """The module with inputs by position, as the exporter takes them."""

        def __init__(self) -> None:
            super().__init__()
            self.net = module

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.net(**dict(zip(names, tensors, strict=True)))
            return scores

    content = io.BytesIO()
    logger, level = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                Positional().eval(),
                tuple(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in names),
                content,
                input_names=names,
                output_names=[output],
                dynamic_axes={
                    **{name: {place: axis for place, axis in enumerate(axes[name]) if isinstance(axis, str)} for name in names},
                    output: {0: "N"},
                },
                opset_version=OPSETS[""],
                dynamo=False,
                do_constant_folding=False,  # weights keep their names and their layout
            )
        except Exception as error:
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
            raise Unsupported(f"PyTorch must be able to export the network, cannot: {type(error).__name__}: {said[:300]}") from error
        finally:
            logger.setLevel(level)
    model: onnx.ModelProto = need("onnx", _PURPOSE).load_from_string(content.getvalue())
    return model


def _check(nodes: Nodes, given: list[onnx.ValueInfoProto], inputs: Mapping[str, np.ndarray], expected_NS: np.ndarray) -> None:
    helper, kinds = need("onnx.helper", _PURPOSE), need("onnx", _PURPOSE).TensorProto
    answer = helper.make_tensor_value_info(export.SCORE, kinds.FLOAT, ["N", expected_NS.shape[1]])
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    model = helper.make_model(helper.make_graph(nodes[0], "scores", given, [answer], nodes[1]), opset_imports=opsets, ir_version=IR_VERSION)
    (found_NS,) = session(model.SerializeToString()).run(None, dict(inputs))
    with np.errstate(invalid="ignore"):
        apart_NS = np.abs(found_NS.astype(np.float64) - expected_NS) / np.maximum(np.abs(expected_NS).max(axis=1, keepdims=True), 1.0)
    wrong_N = ~(apart_NS.max(axis=1) <= _CLOSE)
    if found_NS.shape != expected_NS.shape or wrong_N.any():
        raise Unsupported(
            f"the network's graph must answer as the network does, answers {int(wrong_N.sum())} of {len(wrong_N)} trial rows otherwise",
            hint="does its forward branch on values, or loop over the rows? A graph is traced with one batch",
        )
