"""The package: a folder that answers for a model the same everywhere. Nothing in it executes on load.

`Package.open` reads one and checks every byte, `write` makes one whole or not at all, `Predictor` answers for it,
`add_evidence` enters a measurement into a finished one.
The format is specified in docs/package-format.md.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tidemill.core.artifact import PARTIAL, hash_file, hash_json, replace_folder, sync, write_json
from tidemill.core.contract import TORCH
from tidemill.core.errors import DataError, Unsupported
from tidemill.core.events import Events, now
from tidemill.core.graph import Arrays, BulkGraph, Graph, RowSignature
from tidemill.core.image import ImageSignature
from tidemill.core.load import load
from tidemill.core.runtime import DEFAULT, Precision, RanksConfig, Runtime, takes_network
from tidemill.core.schema import Schema

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
MANIFEST = "tidemill.json"

# Rows that go through a graph with declared preprocessing at once.
PREPROCESSED_ROWS = 32

# Texts are brought to multiples of so many tokens for a runtime that compiles each shape anew: twenty lengths in place of 160 cost less than the padding.
LENGTH_STEP = 8

# What decides how a package answers, and so its identity.
_IDENTITY_FILES = (
    "features.onnx", "model.onnx", "full.onnx", "tokenizer.json", "image.json",
    "network/kind.json", "network/network.json", "network/weights.safetensors", "network/link.onnx",
)  # fmt: skip

# The folder of the network, in a package that also answers by the library that trained it.
NETWORK = "network"


@dataclass(frozen=True)
class Package:
    """An opened package. `version` is the ledger's number where it came from there."""

    path: Path
    manifest: dict[str, Any]
    version: str | None = None

    @classmethod
    def open(cls, path: Path | str, *, version: str | None = None) -> Package:
        """The package in the folder `path`, every byte checked against its manifest.

        Raises:
            DataError: If it is no package, of a newer format, or a file is missing or changed; names the file.
        """
        folder = Path(path)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            stated = manifest.pop("checksum")
        except FileNotFoundError:
            raise DataError(f"{folder} must be a package folder with {MANIFEST}") from None
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise DataError(f"{folder / MANIFEST} is corrupted: {error}") from error
        if hash_json(manifest) != stated:
            raise DataError(f"{folder / MANIFEST} is corrupted: its content is not what its checksum says")
        if manifest["format"] > FORMAT:
            raise Unsupported(
                f"{folder} has package format {manifest['format']}, this version reads up to {FORMAT}", hint="upgrade tidemill"
            )
        for name, entry in manifest["files"].items():
            file = folder / name
            if not file.is_file():
                raise DataError(f"{file} is missing from the package", hint="copy the package again")
            if file.stat().st_size != entry["bytes"] or hash_file(file) != entry["sha256"]:
                raise DataError(f"{file} is corrupted: its content is not what the manifest says", hint="copy the package again")
        return cls(folder, manifest, version)

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def task(self) -> str:
        return str(self.manifest["task"])

    @property
    def kind(self) -> str:
        return str(self.manifest["signature"]["kind"])

    @property
    def identity(self) -> str:
        return str(self.manifest["identity"])

    @property
    def schema(self) -> Schema:
        """The raw columns that a request brings."""
        return Schema.from_json(self.manifest["signature"]["inputs"])

    @property
    def outputs(self) -> list[dict[str, Any]]:
        return list(self.manifest["signature"]["outputs"])

    @property
    def classes(self) -> list[Any] | None:
        return cast("list[Any] | None", self.manifest["signature"].get("classes"))

    @property
    def interval(self) -> float | None:
        """Share of new rows whose true value the answered interval is to hold; None where none is answered."""
        return cast("float | None", self.manifest["signature"].get("interval"))

    @property
    def keys(self) -> list[str]:
        """Columns that batch prediction copies through."""
        return list(self.manifest["signature"].get("keys", []))

    @property
    def example(self) -> dict[str, Any]:
        """One real record, as a request would bring it."""
        return dict(self.manifest["signature"].get("example", {}))

    @property
    def ranks(self) -> RanksConfig | None:
        """The ranks on which its network was found to answer as its graph does; None where it promises none."""
        promised = next((promise for promise in self.contract() if promise["measure"] == TORCH), None)
        return None if promised is None else RanksConfig(tensor=promised["tensor"], pipeline=promised["pipeline"])

    @property
    def graph_file(self) -> Path:
        return self.path / str(self.manifest["runtime"]["graph"])

    def contract(self) -> list[dict[str, Any]]:
        return list(self._read("contract.json", {"promises": []})["promises"])

    def baseline(self) -> dict[str, Any]:
        return dict(self._read("baseline.json", {}))

    def evidence(self) -> dict[str, Any]:
        """Measurements by name, the newest: they may be added to a package that is in use."""
        files = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))["files"]
        found = {_evidence_name(file): self.path / file for file in files if file.startswith("evidence/")}
        return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in found.items()}

    def _read(self, name: str, default: Any) -> Any:
        return json.loads((self.path / name).read_text(encoding="utf-8")) if name in self.manifest["files"] else default


@dataclass(frozen=True)
class Answers:
    """Predictions of N rows.

    `probability` is [N, K] in the order of the package's classes, None without classes; `interval` is low and high [N, 2]
    around the prediction, None where the package has none.
    """

    prediction: np.ndarray
    probability: np.ndarray | None = None
    interval: np.ndarray | None = None

    @property
    def values(self) -> np.ndarray:
        """What is judged: probabilities [N, K], else predictions [N], or [N, D] for embeddings."""
        return self.prediction if self.probability is None else self.probability

    def take(self, rows: slice | Sequence[int]) -> Answers:
        """The answers of some of the rows."""
        return Answers(*(None if array is None else array[rows] for array in (self.prediction, self.probability, self.interval)))  # type: ignore[arg-type]

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """All answers of the parts, in their order."""
        if len(parts) == 1:
            return parts[0]
        arrays: dict[str, Any] = {
            name: None if value is None else np.concatenate([getattr(part, name) for part in parts])
            for name, value in vars(parts[0]).items()
        }
        return cls(**arrays)


class Predictor:
    """A package ready to answer. Safe from several threads.

    Args:
        threads: Threads of one run.
        runtime: What runs the graph, by name. One that takes no raw columns runs `model.onnx`, after `features.onnx` in ONNX Runtime;
            one that takes networks runs what is in `network`.
        parallel: Runs that may go on at once without waiting for each other.
        ranks: What a network is divided over; by default as the package promises.
        events: Hear what becomes of ranks.

    Raises:
        Unsupported: If the runtime cannot run the package's graph, or not in that precision on this hardware.
        ConfigError: If the network cannot be divided so.
    """

    def __init__(
        self,
        package: Package,
        *,
        threads: int = 1,
        runtime: str = DEFAULT,
        precision: Precision = "fp32",
        parallel: int = 1,
        ranks: RanksConfig | None = None,
        events: Events | None = None,
    ) -> None:
        self.package = package
        self._threads = threads
        preprocess, config = (package.manifest["signature"].get(key) for key in ("preprocess", "preprocess_config"))
        self._preprocess: Any = load("preprocess", preprocess)(package.path, **(config or {})) if preprocess else None
        graph, before = _graphs(package, runtime)
        if ranks is None and takes_network(runtime):
            ranks = package.ranks
        self._graph = Graph(
            graph, package.schema, threads=threads, runtime=runtime, precision=precision, parallel=parallel, before=before, ranks=ranks, events=events
        )  # fmt: skip
        self.runtime: Runtime = self._graph.runtime
        # What texts are brought to multiples of.
        self.length_step = 1
        pad_to = getattr(self._preprocess, "pad_to", None)
        if self.runtime.compiles_shapes and pad_to is not None:
            self.length_step = LENGTH_STEP
            pad_to(LENGTH_STEP)
        self.signature: RowSignature = ImageSignature(package.schema) if package.kind == "image" else self._graph.signature
        self._bulk: BulkGraph | None = None
        self._output = ["probability"] if package.classes else ["prediction"]
        self._output += [] if package.interval is None else ["interval"]
        self._labels = label_array(package.classes) if package.classes else None

    def run(self, inputs: Arrays) -> Answers:
        """Answers for inputs as `signature` makes them."""
        if self._preprocess is None:
            return self._answers(self._graph.run(inputs, self._output))
        return self._answers(self._preprocessed(inputs))

    def records(self, records: Sequence[Mapping[str, Any]]) -> Answers:
        return self.run(self.signature.from_records(records))

    def arrow(self, batch: pa.RecordBatch) -> Answers:
        """Answers for an Arrow batch, on the bulk route."""
        if self._preprocess is not None or self.runtime.name != DEFAULT:
            return self.run(self.signature.from_arrow(batch))
        if self._bulk is None:
            self._bulk = BulkGraph(self.package.graph_file, self.package.schema, threads=self._threads)
        return self._answers(self._bulk.run(batch, self._output))

    def prepare(self, inputs: Arrays) -> list[Any] | None:
        """What is done to each row by itself, the tokens of its text, for `run_prepared`; None where nothing is."""
        return self._preprocess.rows(inputs) if hasattr(self._preprocess, "rows") else None

    def prepared_sizes(self, rows: Sequence[Any]) -> list[int]:
        """How long each prepared row is, to batch like with like."""
        return list(self._preprocess.row_sizes(rows))

    def run_prepared(self, rows: Sequence[Any], *, alone: bool = True) -> Answers:
        """Answers for prepared rows, whichever calls they came in, at once.

        Args:
            alone: Whether no other run is likely to go on meanwhile.
        """
        return self._answers(self._graph.run(self._preprocess.stack(rows), self._output, alone=alone))

    def limit_images(self, *, max_pixels: int, max_bytes: int) -> None:
        """Refuse larger images from now on, where the package takes images."""
        if hasattr(self._preprocess, "limit"):
            self._preprocess.limit(max_pixels=max_pixels, max_bytes=max_bytes)

    def variants(self, example: Mapping[str, Any], count: int) -> Arrays:
        """Inputs of `count` rows to try the package on, like its example and its baseline; the same ones at every call."""
        one = self.signature.from_records([example])
        if hasattr(self._preprocess, "variants"):
            made: Arrays = self._preprocess.variants(one, count)
            return made
        return {name: np.repeat(array, count, axis=0) for name, array in one.items()}

    def close(self) -> None:
        """Give the graph's memory back; nothing may be asked then or later."""
        self._graph.close()
        self._bulk = None

    def _preprocessed(self, inputs: Arrays) -> Arrays:
        """The graph's output for raw inputs, a few rows at a time: attention takes memory with the square of the longest text."""
        size_N = self._preprocess.sizes(inputs)
        if len(size_N) == 0:
            # Exported encoders cannot take no row at all: one blank row says what the answer's shape is.
            if hasattr(self._preprocess, "blank"):
                return {name: values[:0] for name, values in self._graph.run(self._preprocess.blank(), self._output).items()}
            blank = {name: np.full((1, 1), "" if array.dtype.kind in "OU" else 0, array.dtype) for name, array in inputs.items()}
            return {name: values[:0] for name, values in self._graph.run(self._preprocess(blank), self._output).items()}
        if len(size_N) <= PREPROCESSED_ROWS:
            return self._graph.run(self._preprocess(inputs), self._output)
        # Texts of like length together, so that little is computed for padding.
        order = np.argsort(size_N, kind="stable")
        groups = [order[start : start + PREPROCESSED_ROWS] for start in range(0, len(order), PREPROCESSED_ROWS)]
        parts = [
            self._graph.run(self._preprocess({name: array[rows] for name, array in inputs.items()}), self._output)[self._output[0]]
            for rows in groups
        ]
        values = np.concatenate(parts)
        back = np.empty_like(values)
        back[order] = values
        return {self._output[0]: back}

    def _answers(self, results: Arrays) -> Answers:
        values = results[self._output[0]]
        if self._labels is None:
            return Answers(values, interval=results.get("interval"))
        return Answers(self._labels[values.argmax(axis=1)], values)


def _graphs(package: Package, runtime: str) -> tuple[Path, Path | None]:
    """The graph, or network, that a runtime is to run, and the graph that ONNX Runtime runs before it."""
    if takes_network(runtime):
        folder = package.path / NETWORK
        if not folder.is_dir():
            raise Unsupported(
                f"runtime {runtime} needs the network that a package was made from, {package.name} carries none",
                hint="a project's [contract] torch = { tensor = 2 } has its packages carry it; onnxruntime runs every graph",
            )
        return folder, package.path / "features.onnx" if package.kind == "row" else None
    if package.kind != "row" or load("runtime", runtime).takes_columns:
        return package.graph_file, None
    parts = package.path / "model.onnx", package.path / "features.onnx"
    if not all(part.is_file() for part in parts):
        raise Unsupported(
            f"runtime {runtime} takes features, {package.name} has one graph for raw columns and model",
            hint="onnxruntime takes raw columns",
        )
    return parts


def label_array(classes: Sequence[Any]) -> np.ndarray:
    """Class labels as an array to gather from: bool, int64, or text as objects."""
    if all(isinstance(label, bool) for label in classes):
        return np.array(classes, bool)
    if all(isinstance(label, int) for label in classes):
        return np.array(classes, np.int64)
    return np.array(classes, object)


def write(
    path: Path,
    *,
    name: str,
    task: str,
    signature: Mapping[str, Any],
    files: Mapping[str, bytes | Path],
    documents: Mapping[str, Any],
    lineage: Mapping[str, Any],
    fitted: Any = None,
    graph: str = "full.onnx",
    runtime: str = "onnxruntime",
) -> Package:
    """Write a package whole or not at all; an older one at `path` is replaced.

    Args:
        signature: `kind`, `inputs` (columns), `outputs`, and where they apply `target`, `classes`, `keys`, `example`,
            `interval`, `preprocess`, `preprocess_config`.
        files: Graphs and preprocessing by file name: bytes, or a file to copy.
        documents: JSON-able values by file name (`contract.json`, `evidence/quality.json`, ...), text for `card.md`.
        lineage: Artifact ids and versions that the package was made from.
        fitted: Fitted statistics, for the identity.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f"{PARTIAL}{path.name}-{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        for file, content in files.items():
            (partial / file).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                (partial / file).write_bytes(content)
            else:
                shutil.copyfile(content, partial / file)
        for file, document in documents.items():
            (partial / file).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(document, str):
                (partial / file).write_text(document, encoding="utf-8")
            else:
                write_json(partial / file, document)
        seal(partial, name=name, task=task, signature=signature, lineage=lineage, fitted=fitted, graph=graph, runtime=runtime)
        sync(partial)
        replace_folder(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Package.open(path)


def seal(
    folder: Path,
    *,
    name: str,
    task: str,
    signature: Mapping[str, Any],
    lineage: Mapping[str, Any],
    fitted: Any = None,
    graph: str = "full.onnx",
    runtime: str = "onnxruntime",
    domains: Sequence[str] = (),
) -> None:
    """Write the manifest of a folder that holds all the package's other files.

    Args:
        domains: Domains of operators that the graph needs of ONNX Runtime, beyond standard ONNX.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    entries = {file.relative_to(folder).as_posix(): {"sha256": hash_file(file), "bytes": file.stat().st_size} for file in files}
    answers = {key: value for key, value in signature.items() if key != "example"}
    graphs = {file: entries[file]["sha256"] for file in _IDENTITY_FILES if file in entries}
    manifest = {
        "format": FORMAT,
        "name": name,
        "task": task,
        "signature": dict(signature),
        "identity": hash_json({"format": FORMAT, "task": task, "signature": answers, "graphs": graphs, "fitted": fitted}),
        "lineage": dict(lineage),
        "runtime": {"kind": runtime, "graph": graph, **({"domains": list(domains)} if domains else {})},
        "files": entries,
        "created": now(),
    }
    write_json(folder / MANIFEST, {**manifest, "checksum": hash_json(manifest)})


def add_evidence(package: Package, name: str, document: Mapping[str, Any]) -> Package:
    """The package with the measurement `name` added, or replaced by this one; its identity stays.

    Readers see the old measurement or the new one, whole, whenever they look and wherever this is cut off. Several
    processes may add to the same folder at once.

    Raises:
        DataError: If the package on disk is not whole.
        OSError: If its folder cannot be written.
    """
    folder = os.open(package.path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        current = Package.open(package.path, version=package.version)
        entries = dict(current.manifest["files"])
        older = [file for file in entries if file.startswith("evidence/") and _evidence_name(file) == name]
        content = json.dumps(document, indent=1, ensure_ascii=False, default=float) + "\n"
        # A name of its own: the manifest's switch from one file to the other is then a single step.
        file = f"evidence/{name}.{hashlib.sha256(content.encode()).hexdigest()[:12]}.json"
        (package.path / "evidence").mkdir(exist_ok=True)
        (package.path / file).write_text(content, encoding="utf-8")
        for old in older:
            del entries[old]
        entries[file] = {"sha256": hash_file(package.path / file), "bytes": (package.path / file).stat().st_size}
        manifest = {**current.manifest, "files": dict(sorted(entries.items()))}
        sync(package.path / "evidence")
        write_json(package.path / MANIFEST, {**manifest, "checksum": hash_json(manifest)})
        for old in older:
            if old != file:
                (package.path / old).unlink(missing_ok=True)
        return Package(package.path, manifest, package.version)
    finally:
        os.close(folder)


def _evidence_name(file: str) -> str:
    return file.removeprefix("evidence/").partition(".")[0]
