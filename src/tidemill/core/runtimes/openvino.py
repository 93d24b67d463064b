"""Graphs in OpenVINO on the processor: in single precision, or in bf16 where the processor computes in it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.core.errors import Unsupported
from tidemill.core.graph import Arrays
from tidemill.core.load import need
from tidemill.core.runtime import Precision, threads_each

# OpenVINO's processor plugin computes in 32 bits: whole numbers and doubles of 64 are narrowed without a word. Token ids and
# features survive that, times in microseconds and doubles do not.
_CHANGED = ("f64", "string")
_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVino:
    """On the processor.

    Where the processor has not as many threads for each of the runs at once as one alone may use, the graph is compiled twice, for
    either. Shapes may differ from run to run. What is compiled for a shape is kept for the next runs of
    it; see `CACHED_KERNELS`.
    """

    name = "openvino"
    device = "cpu"
    takes_columns = False
    compiles_shapes = True

    def __init__(self, model: Path | bytes, *, threads: int = 1, parallel: int = 1, precision: Precision = "fp32") -> None:
        openvino = _library()
        self.version = str(openvino.__version__).partition("-")[0]
        core = _core()
        if precision not in _HINTS:
            raise Unsupported(f"runtime openvino computes in {' or '.join(_HINTS)}, got {precision}")
        if precision == "bf16" and not has_bf16():
            raise Unsupported("runtime openvino computes in bf16 on processors that have instructions for it, this one has none")
        try:
            read = core.read_model(model if isinstance(model, Path) else bytes(model))
            _check_types(read)
            if precision == "bf16":
                halve_weights(read)
                self.version += " with fp16 constants"  # a part of it: evidence of other constants is of another runtime
            each = threads_each(threads, parallel)
            shared = _Requests(core.compile_model(read, "CPU", _settings(precision, threads=each * parallel, streams=parallel)))
            alone = shared
            if each < threads:
                alone = _Requests(core.compile_model(read, "CPU", _settings(precision, threads=threads, streams=1)))
        except RuntimeError as error:
            raise Unsupported(
                f"runtime openvino {self.version} cannot run this graph: {_first_lines(error)}", hint="onnxruntime runs every graph"
            ) from error
        self.precision: Precision = precision
        self.inputs = [port.get_any_name() for port in read.inputs]
        self.outputs = [port.get_any_name() for port in read.outputs]
        self._places = {name: place for place, name in enumerate(self.outputs)}
        self._alone, self._shared = alone, shared

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None, *, alone: bool = True) -> Arrays:
        requests = self._alone if alone else self._shared
        request = requests.take()
        try:
            made = request.infer({name: inputs[name] for name in self.inputs}, share_inputs=True, share_outputs=False)
            return {name: made[self._places[name]] for name in outputs or self.outputs}
        finally:
            requests.give(request)

    def close(self) -> None:
        self._alone.close()
        self._shared.close()


class _Requests:
    """Those of one compiled graph that nobody uses: one serves one run at a time."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._free: list[Any] = []
        self._lock = threading.Lock()

    def take(self) -> Any:
        with self._lock:
            if self._compiled is None:
                raise RuntimeError("a runtime that was closed must not run")
            return self._free.pop() if self._free else self._compiled.create_infer_request()

    def give(self, request: Any) -> None:
        with self._lock:
            if self._compiled is not None:
                self._free.append(request)

    def close(self) -> None:
        with self._lock:
            self._free.clear()
            self._compiled = None


def _settings(precision: Precision, *, threads: int, streams: int) -> dict[str, Any]:
    """How OpenVINO compiles for so many runs at once, on so many threads in all."""
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
        # Pinned threads of several processes would sit on the same cores.
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": str(CACHED_KERNELS),
    }


# What OpenVINO keeps of what it compiled for shapes that it met, in kernels: an encoder of six layers takes some half
# megabyte a shape, and texts bring a hundred shapes.
CACHED_KERNELS = 300


def has_bf16() -> bool:
    """Whether OpenVINO is installed and computes in bf16 on this processor faster than it would in single precision."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@cache
def _core() -> Any:
    return _library().Core()


@cache
def _library() -> Any:
    # OpenVINO reports each import over the network through this library, and does without where it is absent.
    absent = "openvino_telemetry" not in sys.modules
    if absent:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return need("openvino", "the runtime openvino")
    finally:
        if absent:
            del sys.modules["openvino_telemetry"]


# Of a constant: smaller ones are not worth a node more.
HALVED_BYTES = 65_536
# Within these, rounding to 16 bits with ten for the fraction is finer than bf16's seven, beside the largest weight of its constant.
HALVED_SIZES = (2.0**-14, 65_504.0)


def halve_weights(model: Any) -> None:
    """Keep large constants of a graph in fp16, half as large, where that rounds them less than products in bf16 do anyway.

    What is turned to bf16 for products is the runtime's copy, beside which it holds the graph's own for as long as it runs.
    """
    opset = need("openvino.opset13", "the runtime openvino")
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type().get_type_name() != "f32" or node.get_byte_size() < HALVED_BYTES:
            continue
        weights = node.data
        if HALVED_SIZES[0] <= max(float(weights.max()), -float(weights.min())) <= HALVED_SIZES[1]:
            restored = opset.convert(opset.constant(weights.astype(np.float16)), "f32")
            restored.get_rt_info()["decompression_0"] = ""  # else the compiler would undo it before anything runs
            for place in node.output(0).get_target_inputs():
                place.replace_source_output(restored.output(0))


def _check_types(model: Any) -> None:
    """Refuse inputs whose values would be changed.

    Raises:
        Unsupported: If one holds text or doubles.
    """
    for port in model.inputs:
        kind = port.get_element_type().get_type_name()
        if kind in _CHANGED:
            raise Unsupported(
                f"runtime openvino takes no {kind} input, {port.get_any_name()!r} is one", hint="onnxruntime takes every column"
            )


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Exception from src" not in line]
    return " ".join(lines)[:300]
