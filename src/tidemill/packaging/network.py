"""A package's network, for a runtime that runs it by the library that trained it: weights, facts, and the graph after its scores.

The features before it and the link, calibration and interval after it stay the nodes of the package's own graph; only what lies
between is computed otherwise.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.core.artifact import write_json
from tidemill.core.errors import Unsupported
from tidemill.core.load import need
from tidemill.core.package import NETWORK
from tidemill.core.runtimes.torch_ranks import FACTS, LINK, SCORE
from tidemill.packaging import merge

if TYPE_CHECKING:
    import onnx

WEIGHTS = "weights.safetensors"


def write_network(native: Path, package: Path) -> None:
    """Put the network that `native` holds into a package's folder, which holds its `model.onnx`.

    Raises:
        Unsupported: If the model is no single network.
    """
    model = need("onnx", "packaging a model").load(str(package / "model.onnx"))
    kind = json.loads((native / FACTS).read_text(encoding="utf-8"))["kind"]
    link = after(model, SCORE)
    if link is None or not (native / WEIGHTS).is_file():
        raise Unsupported(
            f"contract.torch: needs a model that is one network, {kind!r} is none",
            hint="mlp, dcn, text, image, decoder, or one of your own",
        )
    folder = package / NETWORK
    folder.mkdir()
    for file in sorted(native.iterdir()):
        shutil.copyfile(file, folder / file.name)
    write_json(folder / FACTS, {"kind": kind, "inputs": [value.name for value in model.graph.input]})
    (folder / LINK).write_bytes(merge.to_bytes(merge.checked(link)))


def after(model: onnx.ModelProto, tensor: str) -> onnx.ModelProto | None:
    """The part of a graph from `tensor`, float32 [N, S], to all outputs; None where they do not come of it."""
    helper, kinds = need("onnx.helper", "packaging a model"), need("onnx", "packaging a model").TensorProto
    graph = model.graph
    needed = {value.name for value in graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if tensor not in node.output and needed.intersection(node.output):
            nodes.insert(0, node)
            needed.update(node.input)
    if tensor not in needed:
        return None
    made: onnx.ModelProto = helper.make_model(
        helper.make_graph(
            nodes,
            "link",
            [helper.make_tensor_value_info(tensor, kinds.FLOAT, ["N", None]), *(v for v in graph.input if v.name in needed)],
            list(graph.output),
            [value for value in graph.initializer if value.name in needed],
        ),
        opset_imports=list(model.opset_import),
        ir_version=model.ir_version,
        producer_name="tidemill",
    )
    return made
