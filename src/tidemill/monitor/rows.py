"""Live rows: a file of raw rows, or the folder of a server's prediction log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from tidemill.core.engine import EngineConfig, Source, open_engine
from tidemill.core.errors import DataError
from tidemill.core.package import Package

LOG_FILES = "predictions-*.jsonl"
BATCH_ROWS = 16_384


class LiveRows:
    """Rows with the package's raw columns, in batches; `first` and `last` are their times where the log says so."""

    def __init__(self, package: Package, path: Path, *, columns: tuple[str, ...] = ()) -> None:
        self._package = package
        self._path = path
        self._columns = columns
        self.first: str | None = None
        self.last: str | None = None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows; for a log only those that this package answered.

        Raises:
            DataError: If there is nothing to read, or a column is missing.
        """
        logs = sorted(self._path.glob(LOG_FILES)) if self._path.is_dir() else []
        if logs or self._path.suffix == ".jsonl":
            return self._logged(logs or [self._path])
        return self._scanned()

    def _scanned(self) -> Iterator[pa.RecordBatch]:
        source = Source(path=str(self._path), types={column.name: column.type for column in self._package.schema})
        with open_engine(EngineConfig()) as engine:
            yield from engine.scan(source, [*self._package.schema.names, *self._columns]).batches(BATCH_ROWS)

    def _logged(self, files: list[Path]) -> Iterator[pa.RecordBatch]:
        records = self._records(files)
        schema = self._package.schema.to_arrow()
        while chunk := list(islice(records, BATCH_ROWS)):
            columns = {name: [record.get(name) for record in chunk] for name in schema.names}
            arrays = [_typed(values, schema.field(name).type) for name, values in columns.items()]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _records(self, files: list[Path]) -> Iterator[dict[str, Any]]:
        for file in files:
            with file.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        entry = json.loads(line)
                    except ValueError as error:
                        if not line.endswith("\n"):
                            continue  # the line that a killed server did not finish
                        raise DataError(f"{file}:{number} must be a line of a prediction log: {error}") from error
                    if entry["model"] != self._package.name or str(entry["version"]) != str(self._package.version or entry["version"]):
                        continue
                    self.first = min(filter(None, (self.first, entry["at"])))
                    self.last = max(filter(None, (self.last, entry["at"])))
                    yield entry["inputs"]


def _typed(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values as JSON has them, times as ISO text or microseconds, as an Arrow array."""
    if pa.types.is_timestamp(kind) and any(isinstance(value, str) for value in values):
        return pa.array(values, pa.string()).cast(kind)
    return pa.array(values, kind)
