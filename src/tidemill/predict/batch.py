"""Batch prediction that a kill at any moment can neither shorten nor double.

The output is made in a hidden folder beside its final name, in parts of a fixed number of input rows. A part is
written, flushed, renamed, then entered into the progress file, itself replaced atomically. A rerun with the same
input and package goes on after the last entered part; the whole takes its final name only when every part is there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.core.artifact import PARTIAL, hash_json, lock, write_json
from tidemill.core.engine import EngineConfig, Rows, Source, open_engine
from tidemill.core.errors import ConfigError, DataError, NotFound
from tidemill.core.events import Events
from tidemill.core.package import Answers, Package, Predictor

PART_ROWS = 262_144
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
    engine: EngineConfig | None = None,
    events: Events | None = None,
) -> Predicted:
    """Predict every row of `source` into `output`, in the order of the input.

    Args:
        source: Parquet or CSV: file, glob or Hive folder.
        output: A file that ends in `.parquet`, or a folder of parts; an older one is replaced at the end.
        keep: Input columns to copy beside the prediction; the package's keys by default.
        batch_rows: Rows through the graph at once. Changes memory and speed, never an answer.

    Raises:
        DataError: If a column is missing or of another type; nothing of `output` is touched.
        Conflict: If another process writes the same output now.
    """
    if batch_rows < 1:
        raise ConfigError(f"batch_rows: must be at least 1, got {batch_rows}")
    events = events or Events()
    config = engine or EngineConfig()
    kept = list(package.keys if keep is None else keep)
    columns = list(dict.fromkeys([*kept, *package.schema.names]))
    types = {column.name: column.type for column in package.schema}
    with open_engine(config) as data:
        _check_columns(data.scan(Source(path=str(source)), None).schema.names, columns, kept)
        # A CSV's columns are what the package says, not what their values look like.
        rows = data.scan(Source(path=str(source), types=types), columns)
        predictor = Predictor(package, threads=config.threads or os.cpu_count() or 1)
        batches = min(batch_rows, PART_ROWS)
        done = _predict(predictor, rows, output.absolute(), key=_key(package, source, kept), kept=kept, batch_rows=batches, events=events)
    events.emit("predict.done", str(output), rows=done.rows)
    return done


def _predict(
    predictor: Predictor, rows: Rows, output: Path, *, key: str, kept: Sequence[str], batch_rows: int, events: Events
) -> Predicted:
    output.parent.mkdir(parents=True, exist_ok=True)
    work = output.parent / f"{PARTIAL}predict-{output.name}"
    with lock(output.parent / f".{output.name}.lock"):
        progress = _Progress.open(work, key=key)
        resumed = progress.rows
        try:
            for part in _parts(rows.batches(batch_rows), skip=progress.rows):
                progress.add(pa.Table.from_batches([_answer(predictor, batch, kept) for batch in part]))
                events.emit("predict.rows", level="progress", rows=progress.rows)
            if not progress.parts:
                empty = next(iter(rows.batches(1)), None) or pa.RecordBatch.from_pylist([], schema=rows.schema)
                progress.add(pa.Table.from_batches([_empty(predictor, empty, kept)]))
        except DataError:
            shutil.rmtree(work, ignore_errors=True)
            raise
        progress.finish(output)
        (output.parent / f".{output.name}.lock").unlink(missing_ok=True)
    return Predicted(path=output, rows=progress.rows, resumed_rows=resumed)


class _Progress:
    """The hidden folder of a prediction under way."""

    def __init__(self, folder: Path, key: str, parts: list[dict[str, Any]]) -> None:
        self._folder = folder
        self._key = key
        self.parts = parts

    @classmethod
    def open(cls, folder: Path, *, key: str) -> _Progress:
        """What an earlier run with the same key left, else a fresh folder."""
        try:
            state = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
            if state["key"] == key and all((folder / part["file"]).stat().st_size == part["bytes"] for part in state["parts"]):
                return cls(folder, key, state["parts"])
        except (OSError, ValueError, KeyError):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return cls(folder, key, [])

    @property
    def rows(self) -> int:
        return sum(part["rows"] for part in self.parts)

    def add(self, table: pa.Table) -> None:
        """Commit one part."""
        name = f"part-{len(self.parts):05d}.parquet"
        temporary = self._folder / f"{PARTIAL}{name}"
        pq.write_table(table, temporary, compression="zstd")
        _flush(temporary)
        os.replace(temporary, self._folder / name)
        self.parts.append({"file": name, "rows": table.num_rows, "bytes": (self._folder / name).stat().st_size})
        write_json(self._folder / _PROGRESS, {"key": self._key, "parts": self.parts})

    def finish(self, output: Path) -> None:
        """Give the whole its final name; the hidden folder is gone after that."""
        if output.suffix == ".parquet":
            whole = self._folder / f"{PARTIAL}whole"
            with pq.ParquetWriter(whole, pq.read_schema(self._folder / self.parts[0]["file"]), compression="zstd") as writer:
                for part in self.parts:
                    writer.write_table(pq.read_table(self._folder / part["file"]))
            _flush(whole)
            os.replace(whole, output)
            shutil.rmtree(self._folder)
            return
        parts = [{key: part[key] for key in ("file", "rows")} for part in self.parts]
        write_json(self._folder / "_manifest.json", {"rows": self.rows, "parts": parts})
        old = None
        if output.exists():
            old = output.parent / f"{PARTIAL}old-{output.name}"
            shutil.rmtree(old, ignore_errors=True)
            os.replace(output, old)
        os.replace(self._folder, output)
        (output / _PROGRESS).unlink()
        if old is not None:
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def _parts(batches: Iterator[pa.RecordBatch], *, skip: int) -> Iterator[list[pa.RecordBatch]]:
    """Batches of `PART_ROWS` rows in all at a time, from row `skip` on."""
    part: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        batch, skip = batch.slice(skip), 0
        while size + batch.num_rows >= PART_ROWS:
            take = PART_ROWS - size
            yield [*part, batch.slice(0, take)]
            batch, part, size = batch.slice(take), [], 0
        if batch.num_rows:
            part.append(batch)
            size += batch.num_rows
    if part:
        yield part


def _answer(predictor: Predictor, batch: pa.RecordBatch, kept: Sequence[str]) -> pa.RecordBatch:
    """Kept columns beside `prediction` and `probability` (one `probability_<class>` each for more than two classes)."""
    answers = predictor.arrow(batch)
    return _columns(answers, {name: batch.column(name) for name in kept}, predictor.package.classes)


def _columns(answers: Answers, kept: dict[str, pa.Array], classes: Sequence[Any] | None) -> pa.RecordBatch:
    made = dict(kept)
    prediction = answers.prediction
    if prediction.ndim == 2 and prediction.shape[1] > 1:
        made["prediction"] = pa.FixedSizeListArray.from_arrays(pa.array(prediction.ravel()), prediction.shape[1])
    else:
        made["prediction"] = pa.array(prediction.ravel())
    if answers.probability is not None and classes is not None:
        probability = np.ascontiguousarray(answers.probability.T)
        if len(classes) == 2:
            made["probability"] = pa.array(probability[1])
        else:
            made.update({f"probability_{label}": pa.array(values) for label, values in zip(classes, probability, strict=True)})
    return pa.RecordBatch.from_pydict(made)


def _empty(predictor: Predictor, batch: pa.RecordBatch, kept: Sequence[str]) -> pa.RecordBatch:
    """The columns of an answer to no rows."""
    nothing = batch.slice(0, 0)
    classes = predictor.package.classes
    labels = np.empty(0, object if classes and isinstance(classes[0], str) else np.int64 if classes else np.float32)
    if classes and isinstance(classes[0], bool):
        labels = labels.astype(bool)
    answers = Answers(labels, np.empty((0, len(classes)), np.float32) if classes else None)
    made = _columns(answers, {name: nothing.column(name) for name in kept}, classes)
    if classes and isinstance(classes[0], str):
        made = made.set_column(made.schema.get_field_index("prediction"), "prediction", pa.array([], pa.string()))
    return made


def _check_columns(given: Sequence[str], needed: Sequence[str], kept: Sequence[str]) -> None:
    missing = [name for name in needed if name not in given]
    if missing:
        hint = "use --keep to choose other columns" if set(missing) <= set(kept) else None
        error = NotFound("column", missing[0], given)
        raise DataError(f"the input must have {', '.join(map(repr, missing))}: {error.message}", field=missing[0], hint=hint)


def _key(package: Package, source: Path, kept: Sequence[str]) -> str:
    """What a stopped prediction must share with the one that goes on: package, columns, and the input as it lies."""
    files = sorted(source.parent.glob(source.name)) if any(c in source.name for c in "*?[") else [source]
    files = [inner for file in files for inner in (sorted(file.rglob("*")) if file.is_dir() else [file])]
    state = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
    return hash_json({"package": package.identity, "source": state, "keep": list(kept), "part_rows": PART_ROWS})


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
