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
from tidemill.core.runtime import Precision, fp32_alone


class OnnxRuntime:
    """On the processor; runs every graph of a package. Several runs go on at once, each begun on its caller's thread."""

    name = "onnxruntime"
    device = "cpu"
    precision: Precision = "fp32"
    takes_columns = True
    providers: ClassVar[list[Any]] = ["CPUExecutionProvider"]

    def __init__(self, model: Path | bytes, *, threads: int = 1, parallel: int = 1, precision: Precision = "fp32") -> None:
        fp32_alone(self.name, precision)
        self.version = str(ort.__version__)
        self._check_providers()
        self._session: ort.InferenceSession | None = session(model, threads=threads, providers=self.providers)
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]
        self._needed = frozenset(self.inputs)
        # `InferenceSession.run` looks for every input in a list, a fifth of the time of a row of 39 columns. What it
        # calls after that is private to ONNX Runtime, though as old: without it, the longer way is taken.
        self._run = getattr(getattr(self._session, "_sess", None), "run", None)

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> Arrays:
        wanted = list(outputs or self.outputs)
        if self._run is not None and self._needed <= inputs.keys():
            return dict(zip(wanted, self._run(wanted, inputs, None), strict=True))
        if self._session is None:
            raise RuntimeError("a runtime that was closed must not run")
        return dict(zip(wanted, self._session.run(wanted, inputs), strict=True))

    def close(self) -> None:
        self._run = self._session = None

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


class Cuda(OnnxRuntime):
    """On an NVIDIA device through CUDA; what has no kernel there runs on the processor. Products are computed in full single precision."""

    name = "cuda"
    device = "cuda"
    providers: ClassVar[list[Any]] = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]

    def __init__(self, model: Path | bytes, *, threads: int = 1, parallel: int = 1, precision: Precision = "fp32") -> None:
        super().__init__(model, threads=threads, parallel=parallel, precision=precision)
        # ONNX Runtime falls back to the processor with a line on stderr where the driver or a library is missing.
        active = [] if self._session is None else self._session.get_providers()
        if self.providers[0][0] not in active:
            raise Unsupported(
                f"runtime {self.name} must find its device and libraries, found {', '.join(active)}",
                hint="is the driver installed, and the CUDA of the release notes?",
            )


class TensorRT(Cuda):
    """On an NVIDIA device through TensorRT, then CUDA. An engine is built for each range of shapes that is met, which takes seconds to minutes."""

    name = "tensorrt"
    providers: ClassVar[list[Any]] = [
        ("TensorrtExecutionProvider", {"trt_fp16_enable": "0"}),
        ("CUDAExecutionProvider", {"use_tf32": "0"}),
        "CPUExecutionProvider",
    ]
