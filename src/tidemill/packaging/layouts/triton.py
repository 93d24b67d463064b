"""NVIDIA Triton's model repository: `<name>/config.pbtxt`, `<name>/<version>/model.onnx`, for its ONNX Runtime backend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tidemill.core.errors import Unsupported
from tidemill.core.package import Package
from tidemill.core.schema import VALID_SUFFIX

LABELS = "labels.txt"

# The opset of every package, 19, came with it.
OLDEST_RUNTIME = "1.15"

_TYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8", "int16": "INT16",
    "int32": "INT32", "int64": "INT64", "float16": "FP16", "float": "FP32", "double": "FP64", "string": "STRING", "bfloat16": "BF16",
}  # fmt: skip
_NULLS = {
    "boolean": "2", "float32": "NaN", "float64": "NaN", "string": "the text U+FFFF", "timestamp": "the smallest int64",
}  # fmt: skip


def write(package: Package, folder: Path, *, max_batch: int = 0) -> list[str]:
    """Write the repository of one model into a new folder; what its users must know, a sentence each.

    Args:
        max_batch: Rows that Triton may put together out of several requests; 0 leaves requests as they come.

    Raises:
        Unsupported: If the package needs preprocessing that Triton does not run, or another runtime.
    """
    check(package)
    version = str(package.version) if str(package.version or "").isdecimal() else "1"
    notes = _notes(package, version, max_batch)
    model = folder / package.name
    (model / version).mkdir(parents=True)
    shutil.copyfile(package.graph_file, model / version / "model.onnx")
    (model / "config.pbtxt").write_text(config(package, max_batch=max_batch, notes=notes), encoding="utf-8")
    if package.classes:
        labels = [str(label).lower() if isinstance(label, bool) else str(label) for label in package.classes]
        (model / LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    return notes


def check(package: Package) -> None:
    """Let pass what Triton's ONNX Runtime backend runs by itself.

    Raises:
        Unsupported: If it does not.
    """
    runtime = package.manifest["runtime"]["kind"]
    preprocess = package.manifest["signature"].get("preprocess")
    if runtime != "onnxruntime":
        raise Unsupported(
            f"{package.name}: Triton's ONNX Runtime backend cannot run a package of runtime {runtime!r}", hint="tidemill serve does"
        )
    if preprocess is not None:
        raise Unsupported(
            f"{package.name}: its graph begins behind the preprocessing {preprocess!r}, which Triton's ONNX Runtime backend does not run",
            hint="tidemill serve runs both, and speaks the protocol that Triton's clients speak",
        )


def config(package: Package, *, max_batch: int = 0, notes: Sequence[str] = ()) -> str:
    """The text of `config.pbtxt`, from the graph's own inputs and outputs."""
    import onnxruntime as ort

    session = ort.InferenceSession(package.graph_file, providers=["CPUExecutionProvider"])
    lines = [
        *(f"# {note}" for note in notes),
        f"name: {json.dumps(package.name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {max_batch}",
    ]
    for node in session.get_inputs():
        lines += _tensor("input", node, max_batch)
    for node in session.get_outputs():
        label = package.classes is not None and node.name == "probability"
        lines += _tensor("output", node, max_batch, label=label)
    if max_batch:
        lines += ["dynamic_batching { }"]
    lines += [
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
        'parameters { key: "intra_op_thread_count" value: { string_value: "1" } }',
    ]
    return "\n".join(lines) + "\n"


def _tensor(kind: str, node: Any, max_batch: int, *, label: bool = False) -> list[str]:
    element = str(node.type).removeprefix("tensor(").removesuffix(")")
    dims = [size if isinstance(size, int) else -1 for size in node.shape]
    reshape = None
    if max_batch:  # Triton adds the rows itself, and takes no tensor that has nothing beside them
        dims = dims[1:]
        if not dims:
            dims, reshape = [1], "reshape: { shape: [ ] }"
    fields = [
        f"name: {json.dumps(node.name, ensure_ascii=False)}",
        f"data_type: TYPE_{_TYPES[element]}",
        f"dims: [ {', '.join(map(str, dims))} ]",
    ]
    fields += [reshape] if reshape else []
    fields += [f'label_filename: "{LABELS}"'] if label else []
    return [f"{kind} {{ {' '.join(fields)} }}"]


def _notes(package: Package, version: str, max_batch: int) -> list[str]:
    columns = list(package.schema)
    nulls = {column.type: _NULLS[column.type] for column in columns if column.nullable and column.type in _NULLS}
    notes = [
        f"{package.name}, version {version} of this repository; package identity {package.identity[:12]}",
        f"needs Triton's onnxruntime backend, on ONNX Runtime {OLDEST_RUNTIME} or later",
    ]
    if domains := package.manifest["runtime"].get("domains"):
        notes.append(f"its graph uses operators of {', '.join(domains)}: ONNX Runtime has them, TensorRT and OpenVINO backends do not")
    if any(column.type in ("boolean", "timestamp") for column in columns):
        notes.append("booleans are UINT8, times are INT64 microseconds since 1970 UTC")
    if nulls:
        notes.append("a missing value is " + ", ".join(f"{value} ({kind})" for kind, value in nulls.items()))
    if any(column.type == "int64" and column.nullable for column in columns):
        notes.append(f"a whole number that may be missing has a BOOL input <name>{VALID_SUFFIX} beside it: false says that it is")
    if max_batch:
        notes.append(f"Triton may put up to {max_batch} rows of several requests together; a request of more rows is refused")
    else:
        notes.append("requests run as they come, of any number of rows; --max-batch lets Triton put several together")
    notes.append("contract, baseline and limits of the package are not enforced there; tidemill serve does")
    return notes
