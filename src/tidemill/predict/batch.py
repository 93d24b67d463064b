"""Batch prediction that a kill at any moment can neither shorten nor double.

The output is made in a hidden folder beside its final name, in parts of a fixed number of input rows. A part is
written, flushed, renamed, then entered into the progress file, itself replaced atomically. A rerun with the same
input and package goes on after the last entered part; the whole takes its final name only when every part is there.

Rows go through the graph in blocks counted from the first row, each on one thread, several at once: the kernels of a
runtime may round differently for other batch sizes or thread counts, and so an answer depends on neither, nor on a stop.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.core.artifact import PARTIAL, disk_errors, hash_json, lock, write_json
from tidemill.core.engine import DataEngine, EngineConfig, Rows, Source, open_engine
from tidemill.core.errors import ConfigError, ContractViolation, DataError, NotFound
from tidemill.core.events import Events
from tidemill.core.image import read_files
from tidemill.core.package import Answers, Package, Predictor
from tidemill.core.precision import keeps, measure_precision
from tidemill.core.runtime import DEFAULT, RanksConfig
from tidemill.core.source import FORMATS, source_files

# Rows that go through the graph at once.
BLOCK_ROWS = 4_096
# Rows whose answers are lost when a process is killed, at most.
PART_ROWS = 262_144
# Rows by which another runtime is compared with ONNX Runtime before it answers.
_COMPARED_ROWS = 16
_PROGRESS = "progress.json"


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a batch prediction wrote: rows in all, those taken over from a stopped run among them."""

    path: Path
    rows: int
    resumed_rows: int


def predict(
    package: Package,
    source: Path,
    output: Path,
    *,
    keep: Sequence[str] | None = None,
    batch_rows: int = 16_384,
    part_rows: int = PART_ROWS,
    runtime: str = DEFAULT,
    ranks: RanksConfig | None = None,
    engine: EngineConfig | None = None,
    events: Events | None = None,
) -> Predicted:
    """Predict every row of `source` into `output`, in the order of the input.

    Args:
        source: Parquet or CSV: file, glob or Hive folder.
        output: A file that ends in `.parquet`, or a folder of parts; an older one is replaced at the end.
        keep: Input columns to copy beside the prediction; the package's keys by default.
        batch_rows: Rows read at once, in whole blocks of 4,096. Changes memory and speed, never an answer.
        part_rows: Rows after which progress is entered, in whole blocks of 4,096.
        runtime: What runs the graph, in fp32.
        ranks: What the runtime torch divides the network over; by default as the package promises.

    Raises:
        ContractViolation: If answers of the runtime are farther from ONNX Runtime's than the contract allows.
        ConfigError: If `output` has another format's suffix, or a kept column the name of an answer.
        DataError: If a column is missing or of another type; nothing of `output` is touched.
        Conflict: If another process writes the same output now.
        Unavailable: If the output's disk is full or its folder cannot be written.
    """
    if min(batch_rows, part_rows) < 1:
        raise ConfigError(f"batch_rows and part_rows: must be at least 1, got {batch_rows} and {part_rows}")
    events = events or Events()
    config = engine or EngineConfig()
    kept = list(dict.fromkeys(package.keys if keep is None else keep))
    output = output.absolute()
    _check_output(output, source, kept)
    part_rows, batch_rows = _blocks(part_rows), _blocks(min(batch_rows, part_rows))
    threads = config.threads or len(os.sched_getaffinity(0))
    images = _Images(package.schema.names[0], source) if package.kind == "image" else None
    with closing(_predictor(package, runtime, ranks, events)) as predictor, open_engine(config) as data:
        rows = _rows(data, package, source, kept)
        with disk_errors(output.parent), lock(output.parent / f".{output.name}.lock", what=str(output), remove=True):
            progress = _Progress.open(output, key=_key(package, source, kept, part_rows, predictor))
            resumed = progress.rows
            try:
                _predict_parts(
                    rows,
                    predictor,
                    kept,
                    progress,
                    batch_rows=batch_rows,
                    part_rows=part_rows,
                    threads=threads,
                    events=events,
                    images=images,
                )
            except DataError:
                progress.discard()
                raise
            progress.finish()
    events.emit("predict.done", str(output), rows=progress.rows)
    return Predicted(path=output, rows=progress.rows, resumed_rows=resumed)


def _predictor(package: Package, runtime: str, ranks: RanksConfig | None, events: Events) -> Predictor:
    """What answers; one that is not ONNX Runtime is held to the contract first."""
    predictor = Predictor(package, runtime=runtime, ranks=ranks, events=events)
    if predictor.runtime.name != DEFAULT:
        evidence = measure_precision(predictor, Predictor(package), predictor.variants(package.example, _COMPARED_ROWS))
        broken = [str(verdict) for verdict in keeps(package, evidence) if verdict.kept is not True]
        if broken:
            predictor.close()
            raise ContractViolation(broken, hint=f"{DEFAULT} keeps it")
    return predictor


def _check_output(output: Path, source: Path, kept: Sequence[str]) -> None:
    suffix = output.suffix.lower()
    if not output.is_dir() and suffix in {*FORMATS, *_OTHER_FORMATS} - {".parquet"}:
        raise ConfigError(
            f"output must end in .parquet or be a folder, got {output.name}", hint=f"name it {output.with_suffix('.parquet').name}"
        )
    if output.suffix == ".parquet" and output.is_dir():
        raise ConfigError(f"output {output} must be a file, is a folder", hint="remove it or name another")
    if output == source.absolute():
        raise ConfigError(f"output must not be the input, got {output} for both")
    for name in kept:
        if name in ("prediction", "prediction_low", "prediction_high", "probability") or name.startswith("probability_"):
            raise ConfigError(f"keep: column {name!r} has the name of an answer", hint="rename it in the input, or use --keep without it")


_OTHER_FORMATS = (".json", ".jsonl", ".txt", ".gz", ".bz2", ".zip", ".arrow", ".feather", ".orc", ".avro", ".xlsx", ".db")


def _blocks(rows: int) -> int:
    """Rows of the fewest whole blocks that hold so many."""
    return -(-rows // BLOCK_ROWS) * BLOCK_ROWS


def _rows(data: DataEngine, package: Package, source: Path, kept: Sequence[str]) -> Rows:
    """The needed columns of the input; a CSV's are of the types that the package says, not those that their values look like."""
    columns = list(dict.fromkeys([*kept, *package.schema.names]))
    try:
        rows = data.scan(Source(path=str(source), types={column.name: column.type for column in package.schema}), None)
    except ConfigError:  # a CSV without one of them
        rows = data.scan(Source(path=str(source)), None)
    _check_columns(rows.schema.names, columns, kept)
    return data.rows(data.frame(rows).select(*columns))


def _check_columns(given: Sequence[str], needed: Sequence[str], kept: Sequence[str]) -> None:
    missing = [name for name in needed if name not in given]
    if missing:
        hint = (
            "use --keep to choose other columns" if set(missing) <= set(kept) else "predict on rows with the columns that it was trained on"
        )
        error = NotFound("column", missing[0], given)
        raise DataError(f"the input must have {', '.join(map(repr, missing))}: {error.message}", field=missing[0], hint=hint)


def _predict_parts(
    rows: Rows,
    predictor: Predictor,
    kept: Sequence[str],
    progress: _Progress,
    *,
    batch_rows: int,
    part_rows: int,
    threads: int,
    events: Events,
    images: _Images | None = None,
) -> None:
    """Answer for the rows that `progress` lacks, and commit them part by part."""

    def answer(block: pa.RecordBatch) -> pa.RecordBatch:
        answers = predictor.arrow(block if images is None else images.read(block))
        return _columns(answers, {name: block.column(name) for name in kept}, predictor.package.classes)

    answer(_no_rows(rows.schema))  # the bulk graph is made once, not by several threads; wrong types show before a row is read
    part: list[pa.RecordBatch] = []
    for answered in _in_order(answer, _cut(rows.batches(batch_rows), skip=progress.rows), threads):
        part.append(answered)
        if sum(batch.num_rows for batch in part) >= part_rows:
            progress.add(part)
            part = []
            events.emit("predict.rows", level="progress", rows=progress.rows)
    if part or not progress.parts:
        progress.add(part or [answer(_no_rows(rows.schema))])
        events.emit("predict.rows", level="progress", rows=progress.rows)


class _Images:
    """The column of images in batches of rows: bytes, or paths relative to the input's folder."""

    def __init__(self, column: str, source: Path) -> None:
        self._column = column
        self._folder = source if source.is_dir() else source.parent

    def read(self, block: pa.RecordBatch) -> pa.RecordBatch:
        """The images alone, as bytes.

        Raises:
            DataError: If a file cannot be read; names it.
        """
        return pa.RecordBatch.from_arrays([read_files(block, self._column, self._folder)], [self._column])


def _cut(batches: Iterator[pa.RecordBatch], *, skip: int) -> Iterator[pa.RecordBatch]:
    """The rows after the first `skip`, in blocks; both `skip` and the batches are whole blocks, the last batch excepted."""
    for batch in batches:
        for start in range(min(skip, batch.num_rows), batch.num_rows, BLOCK_ROWS):
            yield batch.slice(start, BLOCK_ROWS)
        skip -= min(skip, batch.num_rows)


def _in_order(fn: Callable[[pa.RecordBatch], pa.RecordBatch], blocks: Iterator[pa.RecordBatch], threads: int) -> Iterator[pa.RecordBatch]:
    """`fn` of each block, in order, on several threads, a few results ahead."""
    waiting: deque[Future[pa.RecordBatch]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="tidemill-predict") as pool:
        try:
            for block in blocks:
                waiting.append(pool.submit(fn, block))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Progress:
    """The hidden folder of a prediction under way."""

    def __init__(self, output: Path, key: str, parts: list[dict[str, Any]]) -> None:
        self._output = output
        self._folder = _work(output)
        self._key = key
        self.parts = parts

    @classmethod
    def open(cls, output: Path, *, key: str) -> _Progress:
        """What an earlier run with the same key left, else a fresh folder."""
        folder = _work(output)
        try:
            state = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
            if state["key"] == key and all((folder / part["file"]).stat().st_size == part["bytes"] for part in state["parts"]):
                return cls(output, key, state["parts"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return cls(output, key, [])

    @property
    def rows(self) -> int:
        return sum(part["rows"] for part in self.parts)

    def add(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Commit one part."""
        name = f"part-{len(self.parts):05d}.parquet"
        temporary = self._folder / f"{PARTIAL}{name}"
        pq.write_table(pa.Table.from_batches(batches), temporary, compression="zstd")
        _flush(temporary)
        os.replace(temporary, self._folder / name)
        rows = sum(batch.num_rows for batch in batches)
        self.parts.append({"file": name, "rows": rows, "bytes": (self._folder / name).stat().st_size})
        write_json(self._folder / _PROGRESS, {"key": self._key, "parts": self.parts})

    def discard(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def finish(self) -> None:
        """Give the whole its final name; the hidden folder is gone after that."""
        old = self._output.parent / f"{PARTIAL}old-{self._output.name}"
        if self._output.suffix == ".parquet":
            whole = self._folder / f"{PARTIAL}whole"
            with pq.ParquetWriter(whole, pq.read_schema(self._folder / self.parts[0]["file"]), compression="zstd") as writer:
                for part in self.parts:
                    writer.write_table(pq.read_table(self._folder / part["file"]))
            _flush(whole)
            os.replace(whole, self._output)
        else:
            parts = [{key: part[key] for key in ("file", "rows")} for part in self.parts]
            write_json(self._folder / "_manifest.json", {"rows": self.rows, "parts": parts})
            _remove(old)
            if self._output.exists():
                os.replace(self._output, old)
            os.replace(self._folder, self._output)
            (self._output / _PROGRESS).unlink()
        _flush(self._output.parent)
        _remove(old)
        self.discard()


def _work(output: Path) -> Path:
    return output.parent / f"{PARTIAL}predict-{output.name}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _columns(answers: Answers, kept: dict[str, pa.Array], classes: Sequence[Any] | None) -> pa.RecordBatch:
    """Kept columns beside `prediction` and `probability` (one `probability_<class>` each for more than two classes).

    With an interval `prediction_low` and `prediction_high` follow the prediction.
    """
    made = dict(kept)
    prediction = answers.prediction
    if prediction.ndim == 2 and prediction.shape[1] > 1:
        made["prediction"] = pa.FixedSizeListArray.from_arrays(pa.array(prediction.ravel()), prediction.shape[1])
    else:
        made["prediction"] = pa.array(prediction.ravel(), pa.string() if classes and isinstance(classes[0], str) else None)
    if answers.interval is not None:
        made |= {f"prediction_{end}": pa.array(np.ascontiguousarray(answers.interval[:, i])) for i, end in enumerate(("low", "high"))}
    if answers.probability is not None and classes is not None:
        probability = np.ascontiguousarray(answers.probability.T)
        if len(classes) == 2:
            made["probability"] = pa.array(probability[1])
        else:
            made.update({f"probability_{label}": pa.array(values) for label, values in zip(classes, probability, strict=True)})
    return pa.RecordBatch.from_pydict(made)


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _key(package: Package, source: Path, kept: Sequence[str], part_rows: int, predictor: Predictor) -> str:
    """What a stopped prediction must share with the one that goes on: package, columns, and the input as it lies."""
    files, _ = source_files(Source(path=str(source)))
    state = [[str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    made = {"package": package.identity, "source": state, "keep": list(kept), "part_rows": part_rows, "block_rows": BLOCK_ROWS}
    runtime = predictor.runtime
    return hash_json(made if runtime.name == DEFAULT else {**made, "runtime": f"{runtime.name} {runtime.version}"})


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
