"""Networks by PyTorch on tensor- and pipeline-parallel ranks; this process itself does without PyTorch."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from tidemill.core.errors import ConfigError, DataError, MissingDependency, Unsupported
from tidemill.core.events import Events
from tidemill.core.graph import Arrays, session
from tidemill.core.launcher import RankJob, Resources
from tidemill.core.ranks.answering import Answering
from tidemill.core.ranks.wire import packed, unpacked
from tidemill.core.runtime import Precision, RanksConfig, fp32_alone

# The files of a network's folder: what it is and takes, and the rest of its graph, from scores to answers.
FACTS = "kind.json"
LINK = "link.onnx"
SCORE = "model/score"

# Rows that the ranks compute at once.
MAX_ROWS = 8_192


class TorchRanks:
    """A network's scores by ranks; what becomes of scores by the rest of its own graph, in ONNX Runtime here.

    Each rank is a process. One that dies or hangs has them all started again; until then what is asked is refused as
    `Unavailable`. Runs are answered one after the other.
    """

    name = "torch"
    precision: Precision = "fp32"
    takes_columns = False
    takes_network = True

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int = 1,
        parallel: int = 1,
        precision: Precision = "fp32",
        ranks: RanksConfig | None = None,
        events: Events | None = None,
    ) -> None:
        del parallel
        fp32_alone(self.name, precision)
        ranks = ranks or RanksConfig()
        try:
            library = version("torch")
        except PackageNotFoundError:
            raise MissingDependency("torch", "torch", "the runtime torch") from None
        # The layout is a part of it: sums are rounded otherwise in each.
        self.version = f"{library} {ranks.said}"
        self.device = ranks.device
        # A pipeline agrees on shapes anew for each that it meets.
        self.compiles_shapes = ranks.pipeline > 1
        folder, kind, self.inputs = _facts(model)
        _check_build(kind, ranks.build)
        self._link = session(folder / LINK)
        self._linked = [value.name for value in self._link.get_inputs()]
        self.outputs = [value.name for value in self._link.get_outputs()]
        job = RankJob(
            target="network",
            arguments={"folder": str(folder.resolve()), "kind": kind, "tensor": ranks.tensor, "pipeline": ranks.pipeline},
            folder=folder,
            hang_s=ranks.answer_s,
            paths=tuple(path for path in sys.path if path),
            events=events or Events(),
        )
        resources = Resources(threads=max(1, threads // ranks.ranks), gpus=1.0 if ranks.device == "cuda" else 0.0)
        self._ranks = Answering(job, ranks.ranks, resources)
        self._end = weakref.finalize(self, self._ranks.close)

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None, *, alone: bool = True) -> Arrays:
        del alone
        given = {name: inputs[name] for name in self.inputs}
        rows = len(next(iter(given.values())))
        if rows > MAX_ROWS:
            starts = range(0, rows, MAX_ROWS)
            parts = [self.run({name: array[start : start + MAX_ROWS] for name, array in given.items()}, outputs) for start in starts]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if rows == 0:  # one row says what the answer's shape is
            blank = {name: np.zeros((1, *array.shape[1:]), array.dtype) for name, array in given.items()}
            return {name: values[:0] for name, values in self.run(blank, outputs).items()}
        given[SCORE] = unpacked(self._ranks.ask(packed(given)))[SCORE]
        wanted = list(outputs or self.outputs)
        return dict(zip(wanted, self._link.run(wanted, {name: given[name] for name in self._linked}), strict=True))

    def close(self) -> None:
        self._end()


def _facts(model: Path | bytes) -> tuple[Path, str, list[str]]:
    """The folder of a network, its kind, and the names of what it takes.

    Raises:
        Unsupported: If it is a graph.
        DataError: If it is no network's folder.
    """
    if isinstance(model, bytes) or model.is_file():
        raise Unsupported("runtime torch runs networks that PyTorch trained, got a graph", hint="onnxruntime runs every graph")
    try:
        facts = json.loads((model / FACTS).read_text(encoding="utf-8"))
        return model, str(facts["kind"]), [str(name) for name in facts["inputs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{model} must hold a network for the runtime torch: {error}") from error


def _check_build(kind: str, allowed: str | None) -> None:
    """Refuse to call a function that only the package names: what a package holds must not say which code runs."""
    if ":" in kind and kind != allowed:
        raise ConfigError(
            f"parallel.build: must be {kind!r} to let the package's network be built by it, got {allowed!r}",
            hint="it is imported and called here: allow it if it is your own",
        )
