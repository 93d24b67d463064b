"""Rows in lists and frames: how each kind is cut into requests, and what its answers become."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tidemill.client import calls
from tidemill.client.calls import Outgoing, Record
from tidemill.client.http1 import Reply
from tidemill.core.errors import DataError
from tidemill.core.load import need

ARROW = "application/vnd.apache.arrow.stream"

# What one request carries at most, until the server says that it takes less.
PART_ROWS = 50_000
PART_RECORDS = 10_000
PART_BYTES = 8_000_000


class Rows:
    """Rows of one kind.

    `needs_names` says that the columns are without names until `name_columns` was called; `is_tensors` that they go to the inference
    protocol's address; `plainer` makes the same rows in JSON, where a server may not take this kind.
    """

    needs_names = False
    is_tensors = False
    plainer: Callable[[], Rows] | None = None

    def __init__(self, num_rows: int, part_rows: int) -> None:
        self.num_rows = num_rows
        self.part_rows = part_rows

    def name_columns(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        """Take the names and types of the model's columns."""

    def request(self, at: str, start: int, stop: int) -> Outgoing:
        raise TypeError("a kind of rows must say how it travels")

    def answer(self, reply: Reply) -> Any:
        """What one answer holds.

        Raises:
            TidemillError: As `calls.check` does.
        """
        raise TypeError("a kind of rows must say how it is answered")

    def mend(self, field: str | None) -> bool:
        """Write a column that the server refused in the way that it may have been meant; False where there is no other way."""
        return False

    def joined(self, answers: Sequence[Any]) -> Any:
        raise TypeError("a kind of rows must say how it is answered")


class RecordRows(Rows):
    """A list of records or texts; `finish` makes of the answers what the caller is to have."""

    def __init__(self, records: Sequence[Record], finish: Callable[[list[dict[str, Any]]], Any] = list) -> None:
        images = sum(len(record) for record in records if isinstance(record, bytes))
        super().__init__(len(records), min(PART_RECORDS, _part_rows(len(records), images)) if images else PART_RECORDS)
        self._records = records
        self._finish = finish

    def request(self, at: str, start: int, stop: int) -> Outgoing:
        return calls.predict_batch(at, self._records[start:stop])

    def answer(self, reply: Reply) -> list[dict[str, Any]]:
        return list(calls.read_answer(reply)["predictions"])

    def joined(self, answers: Sequence[Any]) -> Any:
        return self._finish([row for part in answers for row in part])


class ArrowRows(Rows):
    """An Arrow table, a record batch, or what exports either."""

    def __init__(self, given: Any) -> None:
        self._pa = need("pyarrow", "Arrow")
        try:
            self._table = given if isinstance(given, self._pa.Table) else self._pa.table(given)
        except (self._pa.ArrowException, TypeError, ValueError) as error:
            raise DataError(f"rows must be a table that Arrow can read: {error}") from error
        super().__init__(self._table.num_rows, _part_rows(self._table.num_rows, self._table.nbytes))
        self.plainer = self._as_records

    def request(self, at: str, start: int, stop: int) -> Outgoing:
        sink = io.BytesIO()
        with self._pa.ipc.new_stream(sink, self._table.schema) as writer:
            writer.write_table(self._table.slice(start, stop - start))
        return _arrow_request(at, sink.getvalue())

    def answer(self, reply: Reply) -> Any:
        calls.check(reply)
        return self._pa.ipc.open_stream(reply.body).read_all()

    def joined(self, answers: Sequence[Any]) -> Any:
        return self._pa.concat_tables(answers)

    def _as_records(self) -> Rows:
        return RecordRows(self._table.to_pylist(), lambda rows: self._pa.Table.from_pylist([flat(row) for row in rows]))


class PandasRows(ArrowRows):
    """A pandas frame, by way of Arrow."""

    def __init__(self, frame: Any) -> None:
        pa = need("pyarrow", "Arrow")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # pyarrow reads times in a way that pandas gives up
                table = pa.Table.from_pandas(frame, preserve_index=False)
            super().__init__(table)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise DataError(f"every column of the frame must hold values of one type: {error}") from error
        self._frame = frame

    def mend(self, field: str | None) -> bool:
        """Whole numbers beside a missing one are floats in pandas."""
        if field is None or field not in self._table.column_names or not self._pa.types.is_floating(self._table[field].type):
            return False
        try:
            whole = self._table[field].cast(self._pa.int64())
        except self._pa.ArrowInvalid:
            return False
        self._table = self._table.set_column(self._table.column_names.index(field), field, whole)
        return True

    def joined(self, answers: Sequence[Any]) -> Any:
        made = super().joined(answers).to_pandas()
        made.index = self._frame.index
        return made

    def _as_records(self) -> Rows:
        return pandas_records(self._frame)


class PolarsRows(Rows):
    """A Polars frame, which reads and writes Arrow itself."""

    def __init__(self, frame: Any) -> None:
        super().__init__(frame.height, _part_rows(frame.height, frame.estimated_size()))
        self._polars: Any = sys.modules["polars"]
        self._frame = frame
        self.plainer = self._as_records

    def request(self, at: str, start: int, stop: int) -> Outgoing:
        sink = io.BytesIO()
        oldest = self._polars.CompatLevel.oldest()  # the server's library may be older than this one
        self._frame.slice(start, stop - start).write_ipc_stream(sink, compat_level=oldest)
        return _arrow_request(at, sink.getvalue())

    def answer(self, reply: Reply) -> Any:
        calls.check(reply)
        return self._polars.read_ipc_stream(reply.body)

    def joined(self, answers: Sequence[Any]) -> Any:
        return self._polars.concat(answers)

    def _as_records(self) -> Rows:
        return RecordRows(
            self._frame.to_dicts(), lambda rows: self._polars.DataFrame([flat(row) for row in rows], infer_schema_length=None)
        )


def flat(answer: Mapping[str, Any]) -> dict[str, Any]:
    """One answer in the columns that Arrow has them in."""
    made: dict[str, Any] = {"prediction": answer["prediction"]}
    if "interval" in answer:
        made |= {"prediction_low": answer["interval"][0], "prediction_high": answer["interval"][1]}
    probability = answer.get("probability")
    if isinstance(probability, Mapping):
        made |= {f"probability_{label}": value for label, value in probability.items()}
    elif probability is not None:
        made["probability"] = probability
    return made


def pandas_records(frame: Any) -> Rows:
    return RecordRows(frame.to_dict("records"), lambda rows: type(frame)([flat(row) for row in rows], index=frame.index))


def _arrow_request(at: str, body: bytes) -> Outgoing:
    return Outgoing("POST", f"{at}/predict_batch", body, (("content-type", ARROW), ("accept", ARROW)))


def _part_rows(num_rows: int, num_bytes: int) -> int:
    return min(PART_ROWS, max(1, num_rows * PART_BYTES // max(num_bytes, 1)))
