"""Conformance of feature operators: every route answers as the plain NumPy reference does.

A third party's operator passes by subclassing in a test module:

    from tidemill.testing.operator import OperatorConformance

    class TestSquareRoot(OperatorConformance):
        operator = "my_company.features:SquareRoot"
        chains = {"float64": [["my_company.features:SquareRoot"]]}

One that joins columns says in `derived` which, one that learns from the target is given several in turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tidemill.core.folds import FOLD, Folds
from tidemill.core.graph import BulkGraph, Graph
from tidemill.core.load import load
from tidemill.core.schema import Schema

if TYPE_CHECKING:
    import pyarrow as pa

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
FLOAT64_MAX = 1.7976931348623157e308

# Values that have broken somebody's operator, by column type. Null comes beside them.
AWKWARD: dict[str, list[Any]] = {
    "boolean": [True, False],
    "int64": [0, 1, -1, 7, 2**53, 2**53 + 1, -(2**53) - 1, INT64_MAX, INT64_MIN],
    "float32": [0.0, -0.0, 1.5, -2.25, 1e-45, 3.4028234663852886e38, float("nan"), float("inf"), float("-inf")],
    "float64": [0.0, -0.0, 0.1, -7.0, 5e-324, 1e-17, 2.0**53 + 2, FLOAT64_MAX, -FLOAT64_MAX, float("nan"), float("inf"), float("-inf")],
    "string": ["", " ", "a", "A", "a\0", "\0", "nan", "None", "(null)", "(rare)", "é", "e\u0301", "中文", "🙂", "\ufffe", "x" * 200, "1e5"],
    "timestamp": [
        0,
        -1,
        1,
        951_782_400_000_000,
        -62_135_596_800_000_001,
        253_402_300_800_000_000,
        INT64_MIN + 1,
        INT64_MAX,
        -86_400_000_000,
    ],
}
ORDINARY: dict[str, list[Any]] = {
    "boolean": [True, False],
    "int64": [1, 2, 3, 5, 8],
    "float32": [0.5, 1.5, 2.5, -3.5],
    "float64": [0.1, 0.2, 0.3, -40.5],
    "string": ["red", "green", "blue"],
    "timestamp": [1_700_000_000_000_000, 1_600_000_000_123_456, -1_000_000],
}


# What operators that learn from the target are given, in turn: as `schema.json` says it.
TARGET = "(target)"
TARGETS: tuple[dict[str, Any], ...] = (
    {"target": f"{TARGET} binary", "classes": [False, True]},
    {"target": f"{TARGET} multiclass", "classes": ["high", "low", "mid"]},
    {"target": f"{TARGET} regression"},
)


class OperatorConformance:
    """The tests that an operator must pass. Set `operator` and `chains` in a subclass whose name starts with Test."""

    operator: ClassVar[str]
    """The operator's name or "module:attribute"."""
    chains: ClassVar[Mapping[str, Sequence[Sequence[Any]]]] = {}
    """By column type: chains of steps as in [features], the operator among them, ending in numbers."""
    derived: ClassVar[Sequence[tuple[Sequence[str], Sequence[Any]]]] = ()
    """For an operator that joins columns: the types of the columns, and the steps as in [features], ending in numbers."""
    tolerance: ClassVar[float] = 2.4e-7
    """Relative difference allowed between a route and the reference: two roundings of float32."""
    least: ClassVar[float] = 1e-16
    """Absolute difference that is allowed at any rate."""

    def test_it_is_a_frozen_dataclass_that_says_what_it_does(self) -> None:
        struct: Any = load("operator", self.operator)
        parameters = getattr(struct, "__dataclass_params__", None)
        assert parameters is not None, "must be a dataclass"
        assert parameters.frozen
        assert struct.__doc__
        assert not struct.__doc__.startswith(f"{struct.__name__}(")
        assert set(struct.accepts) <= {"number", "integer", "string", "time"}

    def test_every_route_answers_as_the_reference(self) -> None:
        for table, chains in self._tables():
            self._agree(table, *_fitted(table, chains))

    def test_rows_that_fitting_did_not_see(self) -> None:
        for table, chains in self._tables():
            ordinary = _with_targets(_table({name: _type_of(table, name) for name in _raw(table)}, ORDINARY))
            self._agree(table, *_fitted(ordinary, chains))

    def test_only_nulls(self) -> None:
        for table, chains in self._tables():
            nulls = table.slice(0, 0).schema.empty_table()
            nulls = nulls.from_pylist([dict.fromkeys(table.column_names)] * 3, schema=table.schema)
            self._agree(nulls, *_fitted(table, chains))

    def test_columns_without_nulls(self) -> None:
        import pyarrow as pa

        for table, chains in self._tables():
            whole = table.drop_null()
            schema = pa.schema([field.with_nullable(False) for field in whole.schema])
            self._agree(whole.cast(schema), *_fitted(whole.cast(schema), chains))

    def test_fitting_in_pieces_comes_to_the_same(self) -> None:
        # Of ordinary values: the mean of 1e308 and -1e308 is rounding, whole or in pieces.
        for table, chains in self._tables(ORDINARY):
            whole = _fitted(table, chains)[0]["columns"]
            for rows in (1, 7):
                _same_statistics(_fitted(table, chains, batch_rows=rows)[0]["columns"], whole)

    def test_fitting_twice_gives_the_same_bytes(self) -> None:
        for table, chains in self._tables():
            first, second = (_fitted(table, chains, batch_rows=5) for _ in range(2))
            assert json.dumps(first[0]) == json.dumps(second[0])
            assert first[1] == second[1]

    def test_statistics_are_strict_json(self) -> None:
        for table, chains in self._tables():
            description = _fitted(table, chains)[0]
            assert json.loads(json.dumps(description["columns"], allow_nan=False)) == description["columns"]

    def test_no_training_row_is_told_its_own_target(self) -> None:
        for table, chains in self._tables(ORDINARY):
            # What comes after may take all features of all rows into account, as standardize does.
            last = {name: steps for name, steps in chains.get("columns", {}).items() if _op(steps[-1]) == self.operator}
            if chains[TARGET] is None or not last:
                continue
            chains = {TARGET: chains[TARGET], "columns": last, "drop": [name for name in _raw(table) if name not in last]}
            fold_N, _ = _training(_fitted(table, chains)[0], table)
            for fold in set(fold_N.tolist()):
                other = _otherwise(table, chains, fold_N == fold)
                first, second = (_training(_fitted(one, chains)[0], table)[1][fold_N == fold] for one in (table, other))
                np.testing.assert_array_equal(first, second)

    def _tables(self, values: Mapping[str, Sequence[Any]] = AWKWARD) -> Iterator[tuple[pa.Table, dict[str, Any]]]:
        """For each type: every chain on a column of its own, and twice, since columns with one chain share nodes.

        Where the operator learns from the target, all that for each kind of target.
        """
        learns = getattr(load("operator", self.operator), "needs_target", False)
        for target in TARGETS if learns else (None,):
            for kind, variants in self.chains.items():
                names = {f"{kind} {i}{twin}": chain for i, chain in enumerate(variants) for twin in "ab"}
                yield _with_targets(_table(dict.fromkeys(names, kind), values)), {"columns": names, TARGET: target}
            if self.derived:
                made, raw = {}, {}
                for i, (kinds, steps) in enumerate(self.derived):
                    for twin in "ab":
                        columns = {f"{i}{twin}{place} {kind}": kind for place, kind in enumerate(kinds)}
                        raw.update(columns)
                        made[f"derived {i}{twin}"] = {"of": list(columns), "steps": list(steps)}
                yield _with_targets(_table(raw, values)), {"derived": made, "drop": list(raw), TARGET: target}

    def _agree(self, table: pa.Table, description: Mapping[str, Any], graph: bytes) -> None:
        expected = load("reference", "features")(json.loads(json.dumps(description)), table)
        assert expected.shape == (table.num_rows, len(description["names"]))
        assert expected.dtype == np.float32
        assert len(set(description["names"])) == len(description["names"])
        for route, answer in routes(graph, Schema.from_json(description["inputs"]), table.select(_raw(table))).items():
            self._same(description, answer, expected, route)
        if "folds" in description:
            fold_N, answer = _training(description, table)
            self._same(description, answer, load("reference", "features")(description, table, fold_N), "the graph for training")

    def _same(self, description: Mapping[str, Any], answer: np.ndarray, expected: np.ndarray, route: str) -> None:
        for i, name in enumerate(description["names"]):
            np.testing.assert_allclose(
                answer[:, i], expected[:, i], rtol=self.tolerance, atol=self.least, equal_nan=True, err_msg=f"{name} by {route}"
            )


def routes(graph: bytes, schema: Schema, table: pa.Table) -> dict[str, np.ndarray]:
    """The features of a table by every route that a package has: single rows, records, batches, dictionaries."""
    import pyarrow as pa

    one, bulk = Graph(graph, schema), BulkGraph(graph, schema)
    records = _records(table, schema)
    texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
    coded = table
    for name in texts:
        place = coded.schema.get_field_index(name)
        coded = coded.set_column(place, name, coded.column(place).combine_chunks().dictionary_encode())
    made = {
        "records": one.run(one.signature.from_records(records)),
        "arrow": one.run(one.signature.from_arrow(table)),
        "bulk": bulk.run(_batch(table)),
        "bulk, dictionaries": bulk.run(_batch(coded)),
        "bulk, again": bulk.run(_batch(coded)),
    }
    answers = {route: answer["features"] for route, answer in made.items()}
    rows = [one.run(one.signature.from_record(record))["features"] for record in records[:40]]
    if len(rows) == len(records) and rows:
        answers["row by row"] = np.concatenate(rows)
    return answers


def _records(table: pa.Table, schema: Schema) -> list[dict[str, Any]]:
    """Rows as JSON has them, times in microseconds, which hold what `datetime` cannot."""
    import pyarrow as pa

    columns = {}
    for column in schema:
        values = table.column(column.name)
        columns[column.name] = (values.cast(pa.int64()) if column.type == "timestamp" else values).to_pylist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _batch(table: pa.Table) -> pa.RecordBatch:
    import pyarrow as pa

    columns = [column.combine_chunks() for column in table.columns]
    return pa.RecordBatch.from_arrays([c.chunk(0) if isinstance(c, pa.ChunkedArray) else c for c in columns], schema=table.schema)


def _table(kinds: Mapping[str, str], values: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Columns of awkward or ordinary values, each in an order of its own, frequent and rare ones and nulls among them."""
    import pyarrow as pa

    from tidemill.core.schema import Column

    random = np.random.default_rng(7)
    made = {}
    for name, kind in kinds.items():
        known = values[kind]
        pool = [*known, *known[: len(known) // 2], *known[:2], *ORDINARY[kind], None]
        picked = [pool[i] for i in [*random.permutation(len(pool)), *random.integers(0, len(pool), 34 - min(34, len(pool)))]]
        picked += [None] * (40 - len(picked))
        target = Schema((Column(name=name, type=kind),)).to_arrow().field(0).type  # type: ignore[arg-type]
        made[name] = pa.array(picked, pa.int64()).cast(target) if kind == "timestamp" else pa.array(picked, target)
    rows = min(len(column) for column in made.values())
    return pa.table({name: column[:rows] for name, column in made.items()})


def _type_of(table: pa.Table, name: str) -> str:
    return Schema.from_arrow(table.schema)[name].type


def _fitted(table: pa.Table, features: Mapping[str, Any], *, batch_rows: int = 65_536) -> tuple[dict[str, Any], bytes]:
    tree = {key: value for key, value in features.items() if key != TARGET}
    target = features.get(TARGET)
    columns = table.select([*_raw(table), *([target["target"]] if target else [])])
    made: tuple[dict[str, Any], bytes] = load("fit", "features")(columns, tree, target=target, batch_rows=batch_rows)
    return made


def _op(step: Any) -> Any:
    return step["op"] if isinstance(step, Mapping) else step


def _raw(table: pa.Table) -> list[str]:
    """The columns that may be inputs."""
    return [name for name in table.column_names if not name.startswith(TARGET)]


def _with_targets(table: pa.Table) -> pa.Table:
    """The table with a column for each kind of target."""
    import pyarrow as pa

    random = np.random.default_rng(11)
    columns = [
        random.random(table.num_rows) < 0.4,
        random.choice(["low", "mid", "high"], table.num_rows),
        random.normal(50, 9, table.num_rows),
    ]
    for target, values in zip(TARGETS, columns, strict=True):
        table = table.append_column(pa.field(target["target"], pa.array(values).type, nullable=False), pa.array(values))
    return table


def _otherwise(table: pa.Table, features: Mapping[str, Any], rows_N: np.ndarray) -> pa.Table:
    """The table with another target in some rows."""
    import pyarrow as pa

    target = features[TARGET]
    values, classes = table[target["target"]].to_pylist(), target.get("classes")
    changed = [(classes[classes.index(v) - 1] if classes else -v) if there else v for v, there in zip(values, rows_N, strict=True)]
    place = table.schema.get_field_index(target["target"])
    return table.set_column(place, table.schema.field(place), pa.array(changed))


def _training(description: Mapping[str, Any], table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Each row's fold, and its features as a model is trained on them."""
    folds = Folds.from_json(description["folds"])
    batch = next(folds.beside([_batch(table)]))
    graph, _ = load("graph", "features")(description, training=True)
    made = BulkGraph(graph, folds.schema(Schema.from_json(description["inputs"]))).run(batch)["features"]
    return np.asarray(batch.column(FOLD).to_numpy()), made


def _same_statistics(left: Any, right: Any) -> None:
    """Equal, numbers up to rounding."""
    if isinstance(left, float) and isinstance(right, float):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key, value in left.items():
            _same_statistics(value, right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            _same_statistics(one, other)
    else:
        assert left == right
