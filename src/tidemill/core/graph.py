"""The graph in ONNX Runtime, and the one place where rows become its inputs.

Every raw column is one graph input of shape [N, 1], named as the column; how nulls are written is said in `schema`.
`RowSignature` converts JSON records, protocol tensors and Arrow batches to these inputs. `Graph` answers for them.
`BulkGraph` answers for Arrow batches through the same nodes, faster: what depends on one string column alone is
evaluated once per distinct value of the batch and gathered.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from tidemill.core.errors import DataError, nearest
from tidemill.core.events import Events
from tidemill.core.runtime import DEFAULT, Precision, RanksConfig, Runtime, open_runtime
from tidemill.core.schema import NULL_BOOLEAN, NULL_STRING, NULL_TIMESTAMP, VALID_SUFFIX, Column, Schema

if TYPE_CHECKING:
    import pyarrow as pa

Arrays = dict[str, np.ndarray]

# What every graph of a package is written in, so that any two can be merged.
OPSETS = {"": 19, "ai.onnx.ml": 3}
IR_VERSION = 9

# Domains beyond standard ONNX that ONNX Runtime brings along, in the graphs that use them.
RUNTIME_OPSETS = {"com.microsoft": 1}

NUMPY_TYPES: dict[str, Any] = {
    "boolean": np.uint8, "int64": np.int64, "float32": np.float32, "float64": np.float64, "string": np.object_, "timestamp": np.int64,
}  # fmt: skip

# Texts that are made one array, all as wide as the longest of them.
TEXTS_TOGETHER = 4096

# Beyond this width a fixed-width NumPy string array costs more than one of Python strings.
MAX_FIXED_WIDTH = 64

# The doc string of nodes that take texts apart: row by row a function of one string column, ending in float32 [N, K].
TAKEN_APART = "of one text"

# Characters of texts that are taken apart at once: each of them is a tensor element of its own, of some 100 bytes in all.
CHARACTERS_AT_ONCE = 1_048_576

# Rows of a batch that go through the graph together, for each thread.
ROWS_AT_ONCE = 16_384

_NO_VALUES = np.empty((0, 1), object)
_VALID = np.ones((1, 1), bool)
_VALID.flags.writeable = False
# Types of values that one conversion takes as they stand; what else a column may hold takes the longer way.
_AS_THEY_STAND: dict[str, set[type]] = {
    "float32": {float, int},
    "float64": {float, int},
    "int64": {int},
    "boolean": {bool},
    "string": {str},
    "timestamp": {int},
}
_NULLS = {"float32": float("nan"), "float64": float("nan"), "string": NULL_STRING, "timestamp": NULL_TIMESTAMP}
_INT64 = range(-(2**63), 2**63)
_NO_NULLS = "the data that the model was made from has no nulls there, so what it would answer was never measured"
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class RowSignature:
    """Rows in any form as graph inputs. Immutable, safe from several threads.

    Extra columns and fields are ignored; a missing one is an error that names it.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self._columns = [(column.name, column, _RECORD_CONVERTERS[column.type]) for column in schema]
        kinds = dict.fromkeys(column.type for column in schema)
        self._of_type = [(kind, [column for column in schema if column.type == kind]) for kind in kinds]

    def from_records(self, records: Sequence[Mapping[str, Any]]) -> Arrays:
        """Inputs of N rows given as mappings, as JSON has them.

        Times are ISO 8601 text (UTC where no zone is given) or whole microseconds since 1970.

        Raises:
            DataError: If a field is missing, of another type, out of range, or null where the column has none.
        """
        inputs = self._together(records)
        for name, column, convert in self._columns:
            if name in inputs:
                continue
            try:
                values = [record[name] for record in records]
            except KeyError:
                raise self._missing(name, _first_without(records, name)) from None
            except TypeError:
                raise DataError("every record must be an object of fields") from None
            if not column.nullable and None in values:
                raise _null(column, values.index(None))
            convert(column, values, inputs)
        return inputs

    def from_record(self, record: Mapping[str, Any]) -> Arrays:
        """As `from_records` of one; columns of a type are converted together, which takes a quarter of the time.

        Raises:
            DataError: As `from_records` does.
        """
        inputs: Arrays = {}
        for kind, columns in self._of_type:
            try:
                values = [record[column.name] for column in columns]
            except (KeyError, TypeError):
                return self.from_records((record,))
            if not columns_together(kind, columns, values, inputs):
                for column, value in zip(columns, values, strict=True):
                    if value is None and not column.nullable:
                        raise _null(column, 0)
                    _RECORD_CONVERTERS[kind](column, [value], inputs)
        return inputs

    def from_tensors(self, tensors: Mapping[str, np.ndarray]) -> Arrays:
        """Inputs from named tensors of N values each, shape [N] or [N, 1]; `<name>__valid` defaults to all valid.

        Raises:
            DataError: If a tensor is missing, of another type or shape, or the lengths differ.
        """
        inputs: Arrays = {}
        rows: int | None = None
        for name, column, _ in self._columns:
            if name not in tensors:
                raise self._missing(name, tensors)
            array = _column_vector(name, tensors[name])
            if rows is not None and len(array) != rows:
                raise DataError(f"input {name!r} must hold {rows} rows like the others, got {len(array)}", field=name)
            rows = len(array)
            inputs[name] = _typed_tensor(column, array)
            if column.type == "int64" and column.nullable:
                valid = tensors.get(name + VALID_SUFFIX)
                vector = np.ones((rows, 1), bool) if valid is None else _column_vector(name + VALID_SUFFIX, valid).astype(bool)
                if len(vector) != rows:
                    raise DataError(f"input {name + VALID_SUFFIX!r} must hold {rows} rows, got {len(vector)}", field=name)
                inputs[name + VALID_SUFFIX] = vector
        return inputs

    def from_arrow(self, batch: pa.RecordBatch | pa.Table) -> Arrays:
        """Inputs from an Arrow batch or table.

        Raises:
            DataError: If a column is missing or of another type; names it.
        """
        inputs: Arrays = {}
        for column in self.schema:
            array = self.arrow_column(batch, column)
            if column.type == "string":
                inputs[column.name] = _strings_to_numpy(array)
            else:
                _numbers_to_numpy(column, array, inputs)
        return inputs

    def arrow_column(self, batch: pa.RecordBatch | pa.Table, column: Column) -> pa.Array:
        """One column of `batch`, narrowed to its declared type without changing a value."""
        import pyarrow as pa

        index = batch.schema.get_field_index(column.name)
        if index < 0:
            raise self._missing(column.name, batch.schema.names)
        array = batch.column(index)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        array = narrow(array, column)
        if array.null_count and not column.nullable:
            raise DataError(f"column {column.name!r} must not be null, is in {array.null_count} rows", field=column.name, hint=_NO_NULLS)
        return array

    def _together(self, records: Sequence[Mapping[str, Any]]) -> Arrays:
        """Inputs of the columns that need no care; the others are left out, and their mistakes to be found."""
        made: Arrays = {}
        for kind, columns in self._of_type:
            names = [column.name for column in columns]
            try:
                values = [record[name] for record in records for name in names]
            except (KeyError, TypeError):
                continue
            columns_together(kind, columns, values, made)
        return made

    def _missing(self, name: str, given: Any) -> DataError:
        close = nearest(name, [str(key) for key in given])
        return DataError(f"field {name!r} must be given", field=name, hint=f"did you mean {close!r}?" if close else None)


class Graph:
    """A package's graph in a runtime, ONNX Runtime on CPU by default. `run` is safe from several threads.

    Args:
        parallel: Runs that may go on at once without waiting for each other.
        before: A graph that ONNX Runtime runs first, whose outputs `model` takes.
        ranks: What a network is divided over, where the runtime takes one.
        events: Hear what becomes of the ranks.
    """

    def __init__(
        self,
        model: Path | bytes,
        schema: Schema,
        *,
        threads: int = 1,
        runtime: str = DEFAULT,
        precision: Precision = "fp32",
        parallel: int = 1,
        before: Path | None = None,
        ranks: RanksConfig | None = None,
        events: Events | None = None,
    ) -> None:
        self.signature = RowSignature(schema)
        self._before = None if before is None else open_runtime(DEFAULT, before, threads=threads, parallel=parallel)
        self.runtime: Runtime = open_runtime(
            runtime, model, threads=threads, parallel=parallel, precision=precision, ranks=ranks, events=events
        )
        self.inputs = self.runtime.inputs if self._before is None else self._before.inputs
        self.outputs = self.runtime.outputs

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None, *, alone: bool = True) -> Arrays:
        """The named outputs (all of them by default) for inputs as `RowSignature` makes them.

        Args:
            alone: Whether no other run is likely to go on meanwhile.
        """
        if self._before is not None:
            inputs = self._before.run(inputs, alone=alone)
        return self.runtime.run(inputs, outputs, alone=alone)

    def close(self) -> None:
        """Give the memory back; nothing may run then or later."""
        self.runtime.close()
        if self._before is not None:
            self._before.close()


class BulkGraph:
    """The same nodes for Arrow batches: string columns go through once per distinct value. Needs `onnx`, `pyarrow`."""

    def __init__(self, model: Path | bytes, schema: Schema, *, threads: int = 1) -> None:
        self.signature = RowSignature(schema)
        content = model if isinstance(model, bytes) else model.read_bytes()
        self._strings, self._taken_apart, per_value, rest = _split_strings(content, schema)
        self._per_value = session(per_value, threads=1) if per_value else None
        self._rest = session(rest, threads=threads)
        self._threads = max(1, threads)
        self._rest_inputs = {value.name for value in self._rest.get_inputs()}
        self.outputs = [value.name for value in self._rest.get_outputs()]
        self._last: dict[str, tuple[pa.Array, Arrays]] = {}

    def run(self, batch: pa.RecordBatch, outputs: Sequence[str] | None = None) -> Arrays:
        """The named outputs for a batch of raw rows.

        Raises:
            DataError: If a column is missing or of another type.
        """
        wanted = list(outputs or self.outputs)
        inputs: Arrays = {}
        coded: dict[str, tuple[pa.Array, np.ndarray]] = {}
        for column in self.signature.schema:
            array = self.signature.arrow_column(batch, column)
            if column.type != "string":
                _numbers_to_numpy(column, array, inputs)
            elif column.name in self._strings:
                coded[column.name] = _dictionary(array)
            if column.type == "string" and column.name in self._rest_inputs:
                inputs[column.name] = _strings_to_numpy(array)
        made = self._of_values({name: dictionary for name, (dictionary, _) in coded.items()})
        for column_name, tensors in self._strings.items():
            places = coded[column_name][1]
            for name in tensors:
                inputs[name] = made[name].take(places, axis=0)
        used = {name: value for name, value in inputs.items() if name in self._rest_inputs}
        return dict(zip(wanted, self._run_rest(wanted, used, batch.num_rows), strict=True))

    def _run_rest(self, wanted: list[str], inputs: Arrays, rows: int) -> list[np.ndarray]:
        """The rest of the graph, a piece of the rows at a time: what lies between the nodes stays small and in the cache."""
        step = ROWS_AT_ONCE * self._threads
        if rows < 2 * step:
            return list(self._rest.run(wanted, inputs))
        starts = range(0, rows, step)
        pieces = [self._rest.run(wanted, {name: value[start : start + step] for name, value in inputs.items()}) for start in starts]
        if any(value.shape[:1] != (min(step, rows - start),) for piece, start in zip(pieces, starts, strict=True) for value in piece):
            return list(self._rest.run(wanted, inputs))  # an output that has no row for each row
        return [np.concatenate(values) for values in zip(*pieces, strict=True)]

    def _of_values(self, dictionaries: Mapping[str, pa.Array]) -> Arrays:
        """What crosses the cut, one row for each distinct value of its column and a last one for null.

        Batches of one row group share their dictionaries: a column's last one is kept with its results.
        """
        made: Arrays = {}
        stale: Arrays = {}
        for name, dictionary in dictionaries.items():
            last = self._last.get(name)
            if last is not None and dictionary.equals(last[0]):
                made.update(last[1])
            else:
                stale[name] = _distinct_values(dictionary)
        if stale and self._per_value is not None:
            whole = {name: values for name, values in stale.items() if name not in self._taken_apart}
            if whole:
                made.update(self._per_value_run(self._per_value, whole))
            for name in self._taken_apart.intersection(stale):
                made.update(self._in_pieces(self._per_value, name, stale[name]))
            for name in stale:
                self._last[name] = dictionaries[name], {tensor: made[tensor] for tensor in self._strings[name]}
        return made

    def _per_value_run(self, graph: ort.InferenceSession, values: Arrays) -> Arrays:
        crossing = [tensor for name in values for tensor in self._strings[name]]
        feeds = {name: values.get(name, _NO_VALUES) for name in self._strings}
        return dict(zip(crossing, graph.run(crossing, feeds), strict=True))

    def _in_pieces(self, graph: ort.InferenceSession, name: str, values: np.ndarray) -> Arrays:
        """What the texts of a column become, so many at once that their characters fit in memory."""
        longest = max(map(len, values[:, 0].tolist()))
        step = max(1, CHARACTERS_AT_ONCE // max(longest, 1))
        pieces = [self._per_value_run(graph, {name: values[start : start + step]}) for start in range(0, len(values), step)]
        return {tensor: np.concatenate([piece[tensor] for piece in pieces]) for tensor in self._strings[name]}


def session(
    model: Path | bytes, *, threads: int = 1, providers: Sequence[Any] = ("CPUExecutionProvider",), spin_us: int = 0
) -> ort.InferenceSession:
    """An ONNX Runtime session; on the processor, unless other providers are named.

    Args:
        spin_us: How long its threads look out for work between the nodes of a run before they sleep, in microseconds; never after a run.

    Raises:
        DataError: If ONNX Runtime cannot load the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin_us else "0")
    if spin_us:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
        options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return ort.InferenceSession(os.fspath(model) if isinstance(model, Path) else model, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime raises a family without a public root
        raise DataError(f"the graph must load in ONNX Runtime {ort.__version__}: {error}") from error


def narrow(array: pa.Array, column: Column) -> pa.Array:
    """An Arrow array as the column's declared type, no value changed.

    Raises:
        DataError: If the array is of a type that cannot hold the column's values, or a value would change.
    """
    import pyarrow as pa
    import pyarrow.types as t

    kind = array.type.value_type if t.is_dictionary(array.type) else array.type
    target = Schema((column,)).to_arrow().field(0).type
    if kind == target or t.is_null(kind):
        return array.cast(target) if t.is_null(kind) else array
    fits = {
        "boolean": t.is_boolean(kind),
        "int64": t.is_integer(kind),
        "float32": t.is_floating(kind) or t.is_integer(kind),
        "float64": t.is_floating(kind) or t.is_integer(kind) or t.is_decimal(kind),
        "string": t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind),
        "timestamp": t.is_timestamp(kind) or t.is_date(kind),
    }[column.type]
    if not fits:
        raise DataError(
            f"column {column.name!r} must be {column.type}, got {kind}", field=column.name, hint="cast it, or train on it as it is"
        )
    if column.type == "string" and t.is_dictionary(array.type):
        return array
    try:
        if t.is_timestamp(kind) and kind.tz is None:
            array = array.cast(pa.timestamp(kind.unit, tz="UTC"))
        return array.cast(target, safe=not t.is_floating(kind) and not t.is_timestamp(kind) and not t.is_decimal(kind))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"column {column.name!r} must be {column.type}: {error}", field=column.name) from error


def _numbers_to_numpy(column: Column, array: pa.Array, inputs: Arrays) -> None:
    import pyarrow as pa

    if column.type in ("float32", "float64"):
        values = array.fill_null(float("nan")) if array.null_count else array
        inputs[column.name] = values.to_numpy(zero_copy_only=False).reshape(-1, 1)
    elif column.type == "boolean":
        values = array.cast(pa.uint8())
        inputs[column.name] = (values.fill_null(NULL_BOOLEAN) if array.null_count else values).to_numpy(zero_copy_only=False).reshape(-1, 1)
    elif column.type == "timestamp":
        values = array.cast(pa.int64())
        inputs[column.name] = (
            (values.fill_null(NULL_TIMESTAMP) if array.null_count else values).to_numpy(zero_copy_only=False).reshape(-1, 1)
        )
    else:
        values = array.fill_null(0) if array.null_count else array
        inputs[column.name] = values.to_numpy(zero_copy_only=False).reshape(-1, 1)
        if column.nullable:
            inputs[column.name + VALID_SUFFIX] = array.is_valid().to_numpy(zero_copy_only=False).reshape(-1, 1)


def _strings_to_numpy(array: pa.Array) -> np.ndarray:
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    values = array.fill_null(NULL_STRING) if array.null_count else array
    texts: np.ndarray = values.to_numpy(zero_copy_only=False)
    return texts.astype(object, copy=False).reshape(-1, 1)


def _dictionary(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The dictionary of a string array, and each row's place [N] in it; a null's place is the one after the last."""
    import pyarrow as pa

    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    indices = array.indices
    if indices.null_count:
        wide = indices if indices.type.bit_width >= 32 else indices.cast(pa.int32())
        indices = wide.fill_null(pa.scalar(len(array.dictionary), wide.type))
    places: np.ndarray = indices.to_numpy(zero_copy_only=False)
    return array.dictionary, places


def _distinct_values(dictionary: pa.Array) -> np.ndarray:
    """The values of a dictionary as a graph's input [D + 1, 1], null last."""
    values = np.empty((len(dictionary) + 1, 1), object)
    values[:-1, 0] = (dictionary.fill_null(NULL_STRING) if dictionary.null_count else dictionary).to_numpy(zero_copy_only=False)
    values[-1, 0] = NULL_STRING
    return values


def _split_strings(content: bytes, schema: Schema) -> tuple[dict[str, list[str]], set[str], bytes | None, bytes]:
    """The graph cut where each string column has become something else.

    Returns:
        The tensors that cross the cut by string column; columns whose texts are taken apart into characters; the part
        before the cut (None where nothing can be cut); the rest.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_from_string(content)
    graph = model.graph
    strings = {column.name for column in schema if column.type == "string"}
    owner = {value.name: value.name for value in graph.input if value.name in strings}
    constants = {value.name for value in graph.initializer}
    apart: dict[str, str] = {}
    crossing: dict[str, tuple[str, int]] = {}
    before = []
    for node in graph.node:
        if node.doc_string == TAKEN_APART and (made_of := {**owner, **apart}.keys() & set(node.input)):
            name = made_of.pop()
            before.append(node)
            apart.update(dict.fromkeys(node.output, owner.get(name) or apart[name]))
            continue
        sources = {owner[name] for name in node.input if name in owner}
        # What was told of the same texts may help to choose among them.
        known = owner.keys() | {name for name, (source, _) in crossing.items() if source in sources}
        alone = all(name in known or name in constants or not name for name in node.input)
        kind = _element_wise_output(node) if len(sources) == 1 and alone else None
        if kind is None:
            continue
        before.append(node)
        source = sources.pop()
        for name in node.output:
            if kind == TensorProto.STRING:
                owner[name] = source
            else:
                crossing[name] = (source, kind)
    taken = {name for node in before for name in node.output}
    after = [node for node in graph.node if node.output[0] not in taken]
    needed = {name for node in after for name in node.input} | {value.name for value in graph.output}
    # A string that the rest still reads goes there as it is; what was made from it before the cut is made there again.
    for node in reversed(before):
        if any(name in needed and name in owner for name in node.output):
            after.insert(0, node)
            needed |= set(node.input)
    whole = {name: (source, int(TensorProto.FLOAT)) for name, source in apart.items()}
    crossing = {name: place for name, place in {**crossing, **whole}.items() if name in needed}
    if not crossing:
        return {}, set(), None, content

    by_column: dict[str, list[str]] = {}
    for name, (source, _) in crossing.items():
        by_column.setdefault(source, []).append(name)
    cut = [helper.make_tensor_value_info(name, kind, [None, None if name in apart else 1]) for name, (_, kind) in crossing.items()]

    def part(nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> bytes:
        used = {name for node in nodes for name in node.input}
        initializers = [value for value in graph.initializer if value.name in used]
        sub = helper.make_graph(nodes, graph.name, [value for value in inputs if value.name in used], outputs, initializers)
        made = helper.make_model(sub, opset_imports=model.opset_import, ir_version=model.ir_version)
        return bytes(made.SerializeToString())

    columns = [helper.make_tensor_value_info(name, TensorProto.STRING, [None, 1]) for name in by_column]
    plain = [value for value in graph.input if value.name not in crossing]
    return by_column, set(apart.values()), part(before, columns, cut), part(after, [*plain, *cut], list(graph.output))


def _element_wise_output(node: Any) -> int | None:
    """Element type of the output of a node that maps strings value by value; None for any other node."""
    from onnx import TensorProto

    if node.op_type == "LabelEncoder":
        attributes = {attribute.name for attribute in node.attribute}
        if "values_strings" in attributes:
            return int(TensorProto.STRING)
        return int(TensorProto.INT64 if "values_int64s" in attributes else TensorProto.FLOAT)
    if node.op_type == "MurmurHash3":
        positive = next((attribute.i for attribute in node.attribute if attribute.name == "positive"), 1)
        return int(TensorProto.UINT32 if positive else TensorProto.INT32)
    return {"Equal": int(TensorProto.BOOL), "Identity": int(TensorProto.STRING), "Where": int(TensorProto.STRING)}.get(node.op_type)


def _first_without(records: Sequence[Mapping[str, Any]], name: str) -> Any:
    return next((record for record in records if name not in record), ())


def _column_vector(name: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim == 1:
        array = array.reshape(-1, 1)
    if array.ndim != 2 or array.shape[1] != 1:
        raise DataError(f"input {name!r} must have shape [N] or [N, 1], got {list(array.shape)}", field=name)
    return array


def _typed_tensor(column: Column, array: np.ndarray) -> np.ndarray:
    """A protocol tensor as the column's input; whole numbers may stand for floats, never the reverse."""
    kind = array.dtype.kind
    if column.type == "string":
        return _text_tensor(column, array)
    fits = {"boolean": kind in "bu" and (kind == "b" or array.dtype.itemsize == 1), "int64": kind in "iu", "timestamp": kind in "iu"}
    if not fits.get(column.type, kind in "fiu"):
        raise DataError(f"input {column.name!r} must be {column.type}, got {array.dtype}", field=column.name)
    if array.dtype == np.uint64 and array.size and array.max() > 2**63 - 1:
        raise DataError(f"input {column.name!r} must fit in int64, got {array.max()}", field=column.name)
    if column.type == "boolean" and array.size and array.max() > NULL_BOOLEAN:
        raise DataError(f"input {column.name!r} must be 0, 1 or 2 (null), got {array.max()}", field=column.name)
    return array.astype(NUMPY_TYPES[column.type], copy=False)


def _text_tensor(column: Column, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "U":
        return array
    if array.dtype.kind not in "OS":
        raise DataError(f"input {column.name!r} must be text, got {array.dtype}", field=column.name)
    try:
        values = [value.decode() if isinstance(value, bytes) else value for value in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise DataError(f"input {column.name!r} must be UTF-8: {error}", field=column.name) from error
    made: Arrays = {}
    _records_to_text(column, values, made)
    return made[column.name]


def _wrong(column: Column, row: int, value: Any, expected: str) -> DataError:
    shown = "null" if value is None else repr(value)[:60]
    return DataError(f"field {column.name!r} must be {expected}, got {shown} in row {row}", field=column.name)


def column_inputs(column: Column, values: list[Any], inputs: Arrays) -> None:
    """Add what one column's values, as JSON has them, become; nulls in a column without them are the caller's to refuse.

    Raises:
        DataError: If a value is of another type or out of range.
    """
    _RECORD_CONVERTERS[column.type](column, values, inputs)


def columns_together(kind: str, columns: Sequence[Column], values: list[Any], inputs: Arrays) -> bool:
    """Add columns of one type, given row after row, where every value is of a type that needs no care; whether that was so."""
    if kind == "string" and len(values) > TEXTS_TOGETHER:
        return False
    if None in values and kind in _NULLS:
        if not all(column.nullable for column, value in zip(cycle(columns), values, strict=False) if value is None):
            return False
        values = [_NULLS[kind] if value is None else value for value in values]
    if not _AS_THEY_STAND[kind].issuperset(map(type, values)):
        return False
    if kind == "string" and (
        "\0" in (joined := "".join(values)) or max(map(len, values), default=0) > MAX_FIXED_WIDTH or not _is_unicode(joined)
    ):
        return False
    try:
        with np.errstate(over="raise"):
            together = np.array(values, None if kind == "string" and values else NUMPY_TYPES[kind])
    except (OverflowError, FloatingPointError):
        return False
    by_column = np.ascontiguousarray(together.reshape(-1, len(columns)).T)[:, :, None]
    for column, array in zip(columns, by_column, strict=True):
        inputs[column.name] = array
        if kind == "int64" and column.nullable:
            inputs[column.name + VALID_SUFFIX] = _VALID if len(array) == 1 else np.ones((len(array), 1), bool)
    return True


def _is_unicode(text: str) -> bool:
    """Whether no lone surrogate is in it."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _null(column: Column, row: int) -> DataError:
    return DataError(f"field {column.name!r} must not be null, is in row {row}", field=column.name, hint=_NO_NULLS)


def _records_to_float(column: Column, values: list[Any], inputs: Arrays) -> None:
    kind = NUMPY_TYPES[column.type]
    made = np.empty((len(values), 1), kind)
    for row, value in enumerate(values):
        if value is None:
            value = float("nan")
        elif type(value) is not float and type(value) is not int:
            raise _wrong(column, row, value, "a number or null")
        try:
            with np.errstate(over="raise"):
                made[row, 0] = value
        except (OverflowError, FloatingPointError):
            raise _wrong(column, row, value, f"a number within {column.type}") from None
    inputs[column.name] = made


def _records_to_int(column: Column, values: list[Any], inputs: Arrays) -> None:
    made = np.zeros((len(values), 1), np.int64)
    valid = np.ones((len(values), 1), bool)
    for row, value in enumerate(values):
        if value is None:
            valid[row, 0] = False
            continue
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or value not in _INT64:
            raise _wrong(column, row, value, "a whole number of 64 bits or null")
        made[row, 0] = value
    inputs[column.name] = made
    if column.nullable:
        inputs[column.name + VALID_SUFFIX] = valid


def _records_to_bool(column: Column, values: list[Any], inputs: Arrays) -> None:
    for row, value in enumerate(values):
        if value is not None and type(value) is not bool:
            raise _wrong(column, row, value, "true, false or null")
    inputs[column.name] = np.array([[NULL_BOOLEAN if value is None else value] for value in values], np.uint8).reshape(-1, 1)


def _records_to_text(column: Column, values: list[Any], inputs: Arrays) -> None:
    width = 0
    texts = []
    for row, value in enumerate(values):
        if value is None:
            value = NULL_STRING
        elif type(value) is not str:
            raise _wrong(column, row, value, "text or null")
        width = max(width, len(value))
        texts.append(value)
    joined = "".join(texts)
    if not joined.isascii():
        try:
            joined.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"field {column.name!r} must be valid Unicode: {error.reason}", field=column.name) from None
    # A fixed-width array is quicker to hand over, and drops trailing U+0000, which must not happen.
    fixed = width <= MAX_FIXED_WIDTH and "\0" not in joined
    inputs[column.name] = np.array(texts, None if fixed and texts else object).reshape(-1, 1)


def _records_to_time(column: Column, values: list[Any], inputs: Arrays) -> None:
    made = np.empty((len(values), 1), np.int64)
    for row, value in enumerate(values):
        made[row, 0] = NULL_TIMESTAMP if value is None else _microseconds(column, row, value)
    inputs[column.name] = made


def _microseconds(column: Column, row: int, value: Any) -> int:
    if type(value) is int and value in _INT64:
        return value
    if isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value)
        except ValueError:
            raise _wrong(column, row, value, "ISO 8601 time, microseconds since 1970 or null") from None
    if isinstance(value, dt.datetime):
        moment = value if value.tzinfo is not None else value.replace(tzinfo=dt.UTC)
        return (moment - _EPOCH) // dt.timedelta(microseconds=1)
    if isinstance(value, dt.date):
        return (value - _EPOCH.date()).days * 86_400_000_000
    raise _wrong(column, row, value, "ISO 8601 time, microseconds since 1970 or null")


_RECORD_CONVERTERS: dict[str, Callable[[Column, list[Any], Arrays], None]] = {
    "boolean": _records_to_bool,
    "int64": _records_to_int,
    "float32": _records_to_float,
    "float64": _records_to_float,
    "string": _records_to_text,
    "timestamp": _records_to_time,
}
