"""The seam of runtimes: what runs a package's graph, on which device and how exactly.

ONNX Runtime on the processor is the default and the measure of the others: it runs every graph of a package, in single
precision. The others are found by name (`tidemill.core.load`, kind `runtime`), each where its library is installed, and say
at once which graphs they cannot run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from tidemill.core.errors import ConfigError, Unsupported
from tidemill.core.events import Events
from tidemill.core.load import load

if TYPE_CHECKING:
    from tidemill.core.graph import Arrays

DEFAULT = "onnxruntime"

# How exactly a graph is computed: in single precision, or with products of numbers of 16 bits, summed in single precision.
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class RanksConfig:
    """`parallel = { tensor = 2 }`: the ranks that a network is divided over by the runtime torch; their number is the product."""

    tensor: int = field(default=1, metadata={"min": 1, "max": 1024})
    """Ranks that divide single layers, as the network's `tp_plan` says."""
    pipeline: int = field(default=1, metadata={"min": 1, "max": 1024})
    """Ranks that hold consecutive layers, from the network's `split_points`."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where they compute; cuda takes a GPU for each."""
    answer_s: float = field(default=30.0, metadata={"min": 1.0, "max": 3600.0})
    """Seconds that one batch may take; a rank that takes longer counts as hung, and all are started again."""
    build: str | None = None
    """The function of your own that builds the network, `my.module:build`; a package that names a function that was not allowed so is refused."""

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline

    @property
    def said(self) -> str:
        """The layout in words: `tensor 2 x pipeline 2`."""
        return f"tensor {self.tensor} x pipeline {self.pipeline}"


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

    A runtime whose `takes_network` is true takes the folder of a network in place of a graph, and two arguments more: `ranks`,
    a `RanksConfig`, and `events`.
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


def open_runtime(
    name: str,
    model: Path | bytes,
    *,
    threads: int = 1,
    parallel: int = 1,
    precision: Precision = "fp32",
    ranks: RanksConfig | None = None,
    events: Events | None = None,
) -> Runtime:
    """`model` loaded in the runtime called `name`.

    Args:
        threads: Threads that one run may use.
        parallel: Runs that may go on at once without waiting for each other.
        ranks: What a network is divided over, in a runtime that takes networks.
        events: Hear what becomes of the ranks.

    Raises:
        NotFound: If there is no runtime of that name.
        MissingDependency: If its library is not installed.
        Unsupported: If it cannot run the graph, or not in that precision on this hardware.
        ConfigError: If it does not run on ranks and some are given.
        DataError: If `model` is no graph.
    """
    kind = load("runtime", name)
    more: dict[str, Any] = {}
    if takes_network(name):
        more = {"ranks": ranks or RanksConfig(), "events": events or Events()}
    elif ranks is not None:
        raise ConfigError(f"runtime {name} runs in one process, got {ranks.said}", hint="torch runs on ranks")
    made: Runtime = kind(model, threads=threads, parallel=parallel, precision=precision, **more)
    return made


def takes_network(name: str) -> bool:
    """Whether the runtime called `name` runs a network by its library, in place of a graph."""
    return bool(getattr(load("runtime", name), "takes_network", False))


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
