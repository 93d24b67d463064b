"""The seam of runtimes: what runs a package's graph, on which device and how exactly.

ONNX Runtime on the processor is the default and the measure of the others: it runs every graph of a package, in single
precision. The others are found by name (`tidemill.core.load`, kind `runtime`), each where its library is installed, and say
at once which graphs they cannot run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from tidemill.core.errors import Unsupported
from tidemill.core.load import load

if TYPE_CHECKING:
    from tidemill.core.graph import Arrays

DEFAULT = "onnxruntime"

# How exactly a graph is computed: in single precision, or with products of numbers of 16 bits, summed in single precision.
Precision = Literal["fp32", "bf16"]


class Runtime(Protocol):
    """A graph that is loaded and answers.

    Made as `made(model, threads=..., parallel=..., precision=...)`: a file or its bytes, the threads that one run may use, the runs that
    may go on at once without waiting for each other, and the precision. It raises `Unsupported` for a graph, or a precision, that it cannot
    run here, before the first run.

    A run that is not `alone` shares the processor with others, which are quicker on a thread each than together on several; it
    may use fewer.

    `run` is safe from several threads, waits for the answer and lets other Python threads run meanwhile. Threads of a
    runtime sleep while there is nothing to do. Arrays that go in are not kept, those that come out are the caller's.
    `close` gives the memory back; nothing may run then or later.
    """

    name: str
    """As it is called in a configuration, such as `openvino`."""
    version: str
    """Of the library that runs it."""
    device: str
    """`cpu` or `cuda`."""
    precision: Precision
    takes_columns: bool
    """Whether raw columns go in as they are: texts, doubles, whole numbers of 64 bits; of the class, as it is asked before one is made."""
    compiles_shapes: bool
    """Whether the first run of each shape takes longer and leaves something in memory, so that few shapes are better than many."""
    inputs: list[str]
    outputs: list[str]

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None, *, alone: bool = True) -> Arrays:
        """The named outputs, all by default; `inputs` are those that the graph has."""

    def close(self) -> None:
        """Let go of the graph."""


def open_runtime(name: str, model: Path | bytes, *, threads: int = 1, parallel: int = 1, precision: Precision = "fp32") -> Runtime:
    """`model` loaded in the runtime called `name`.

    Args:
        threads: Threads that one run may use.
        parallel: Runs that may go on at once without waiting for each other.

    Raises:
        NotFound: If there is no runtime of that name.
        MissingDependency: If its library is not installed.
        Unsupported: If it cannot run the graph, or not in that precision on this hardware.
        DataError: If `model` is no graph.
    """
    made: Runtime = load("runtime", name)(model, threads=threads, parallel=parallel, precision=precision)
    return made


def threads_each(threads: int, parallel: int) -> int:
    """Threads of one of `parallel` runs at once: an even share of the processor where there are several, at most `threads`."""
    return threads if parallel == 1 else max(1, min(threads, (os.cpu_count() or 1) // parallel))


def fp32_alone(name: str, precision: str) -> None:
    """Refuse any other precision for a runtime that has none.

    Raises:
        Unsupported: If `precision` is not fp32.
    """
    if precision != "fp32":
        raise Unsupported(f"runtime {name} computes in fp32, got {precision}", hint="openvino computes in bf16 where the processor does")
