"""Graphs in ONNX Runtime: on the processor, and through its providers for NVIDIA's devices where its build has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort

from tidemill.core.errors import Unsupported
from tidemill.core.graph import Arrays, session
from tidemill.core.load import names
from tidemill.core.runtime import Precision, fp32_alone, threads_each

# How long threads look out for the next node of a run that is alone before they sleep: longer than from most nodes of an encoder to the next, so that
# one text takes a fifth less time, and too short for a processor that others need.
SPIN_US = 200


class OnnxRuntime:
    """On the processor; runs every graph of a package. Several runs go on at once, each begun on its caller's thread.

    Where the processor has not as many threads for each of the runs at once as one alone may use, there are two sessions, one for
    either. The threads of runs at once would wait for each other at every node.
    """

    name = "onnxruntime"
    device = "cpu"
    precision: Precision = "fp32"
    takes_columns = True
    compiles_shapes = False
    providers: ClassVar[list[Any]] = ["CPUExecutionProvider"]

    def __init__(self, model: Path | bytes, *, threads: int = 1, parallel: int = 1, precision: Precision = "fp32") -> None:
        fp32_alone(self.name, precision)
        self.version = str(ort.__version__)
        self._check_providers()
        each = threads_each(threads, parallel) if self.device == "cpu" else threads
        made = session(model, threads=threads, providers=self.providers, spin_us=SPIN_US if each < threads else 0)
        self._alone: ort.InferenceSession | None = made
        self._shared: ort.InferenceSession | None = session(model, threads=each, providers=self.providers) if each < threads else made
        self.inputs = [value.name for value in made.get_inputs()]
        self.outputs = [value.name for value in made.get_outputs()]
        self._needed = frozenset(self.inputs)
        self._runs = {alone: _direct(one) for alone, one in ((True, made), (False, self._shared))}

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None, *, alone: bool = True) -> Arrays:
        wanted = list(outputs or self.outputs)
        direct = self._runs.get(alone)
        if direct is not None and self._needed <= inputs.keys():
            return dict(zip(wanted, direct(wanted, inputs, None), strict=True))
        chosen = self._alone if alone else self._shared
        if chosen is None:
            raise RuntimeError("a runtime that was closed must not run")
        return dict(zip(wanted, chosen.run(wanted, inputs), strict=True))

    def close(self) -> None:
        self._runs.clear()
        self._alone = self._shared = None

    def _check_providers(self) -> None:
        """Refuse where the installed build, or the machine, lacks the provider; ONNX Runtime itself would go on without a word."""
        found = ort.get_available_providers()
        wanted = self.providers[0] if isinstance(self.providers[0], str) else self.providers[0][0]
        if wanted not in found:
            others = [name for name in names("runtime") if name not in ("cuda", "tensorrt")]
            raise Unsupported(
                f"runtime {self.name} needs {wanted} of ONNX Runtime, the installed {ort.__version__} has {', '.join(found)}",
                hint=f"install onnxruntime-gpu in place of onnxruntime, or choose {' or '.join(others)}",
            )


def _direct(made: ort.InferenceSession | None) -> Any:
    """What `InferenceSession.run` calls after it has looked for every input in a list, a fifth of the time of a row of 39 columns.

    It is private to ONNX Runtime, though as old: None without it, and the longer way is taken.
    """
    return getattr(getattr(made, "_sess", None), "run", None)


class Cuda(OnnxRuntime):
    """On an NVIDIA device through CUDA; what has no kernel there runs on the processor. Products are computed in full single precision."""

    name = "cuda"
    device = "cuda"
    providers: ClassVar[list[Any]] = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]

    def __init__(self, model: Path | bytes, *, threads: int = 1, parallel: int = 1, precision: Precision = "fp32") -> None:
        super().__init__(model, threads=threads, parallel=parallel, precision=precision)
        # ONNX Runtime falls back to the processor with a line on stderr where the driver or a library is missing.
        active = [] if self._alone is None else self._alone.get_providers()
        if self.providers[0][0] not in active:
            raise Unsupported(
                f"runtime {self.name} must find its device and libraries, found {', '.join(active)}",
                hint="is the driver installed, and the CUDA of the release notes?",
            )


class TensorRT(Cuda):
    """On an NVIDIA device through TensorRT, then CUDA. An engine is built for each range of shapes that is met, which takes seconds to minutes."""

    name = "tensorrt"
    compiles_shapes = True
    providers: ClassVar[list[Any]] = [
        ("TensorrtExecutionProvider", {"trt_fp16_enable": "0"}),
        ("CUDAExecutionProvider", {"use_tf32": "0"}),
        "CPUExecutionProvider",
    ]
