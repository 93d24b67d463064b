"""Every column described, as a whole and by split."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.distinct import Distinct
from tidemill.core.schema import Schema
from tidemill.core.sketch import ColumnSketch, Counts

SHARES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BINS = 20
TOP = 10

Sketches = dict[str, ColumnSketch]


@dataclass(frozen=True)
class TableSketch:
    """A mergeable sketch of each column of a table."""

    schema: Schema

    def init(self) -> Sketches:
        return {}

    def update(self, state: Sketches, batch: pa.RecordBatch) -> Sketches:
        return self.merge(state, {column.name: _sketch(column.type, batch.column(column.name)) for column in self.schema})

    def merge(self, left: Sketches, right: Sketches) -> Sketches:
        return {name: left[name].merge(right[name]) for name in left} if left and right else left or right


def described(sketches: Mapping[str, Sketches]) -> dict[str, Any]:
    """`profile.json`: the columns of all splits together, each with `splits`, its main figures in every split.

    Times are ISO 8601 texts. Quantiles and histograms come from sketches and say their error in rank; `distinct` is exact for up
    to 1,000 texts, else within some 2 %. The end bins of a histogram hold what lies beyond their edges.
    """
    parts = [split for split in sketches.values() if split]
    columns = []
    for name in parts[0]:
        whole = parts[0][name]
        for part in parts[1:]:
            whole = whole.merge(part[name])
        by_split = {split: _brief(found[name]) for split, found in sketches.items() if found}
        columns.append({"name": name, **_column(whole), "splits": by_split})
    return {"rows": {split: next(iter(found.values())).rows if found else 0 for split, found in sketches.items()}, "columns": columns}


def _sketch(kind: Any, values: pa.Array) -> ColumnSketch:
    if kind == "string":
        # Counted in Arrow: the texts of a column repeat, and only the distinct ones become Python's.
        pairs = pc.value_counts(values.drop_null())
        counts = dict(zip(pairs.field(0).to_pylist(), pairs.field(1).to_pylist(), strict=True))
        distinct = Distinct.of(list(counts))
        return ColumnSketch(type=kind, rows=len(values), nulls=values.null_count, distinct=distinct, counts=Counts.of(counts))
    valid = np.asarray(values.is_valid().to_numpy(zero_copy_only=False))
    if kind == "timestamp":
        values = values.cast(pa.int64())
    filled = pc.fill_null(values, False if kind == "boolean" else 0)
    return ColumnSketch.of(kind, filled.to_numpy(zero_copy_only=False), valid)


def _column(sketch: ColumnSketch) -> dict[str, Any]:
    tree = {"type": sketch.type, **_brief(sketch)}
    if sketch.counts is not None:
        tree["top"] = [{"value": value, "count": count} for value, count in sketch.counts.top(TOP)]
    quantiles, moments = sketch.quantiles, sketch.moments
    if quantiles is None or moments is None or not quantiles.count:
        return tree
    tree["infinite"] = moments.infinite
    tree["quantiles"] = {
        f"{share:g}": _shown(sketch, value) for share, value in zip(SHARES, quantiles.quantile(SHARES).tolist(), strict=True)
    }
    tree["rank_error"] = quantiles.rank_error
    low, high = (float(value) for value in quantiles.quantile([0.005, 0.995]))
    if low == high:
        low, high = float(moments.min or 0.0), float(moments.max or 0.0)
    if low < high:
        edges = np.linspace(low, high, BINS + 1)
        counts = np.rint(quantiles.counts(edges[1:-1])).astype(int).tolist()
        tree["histogram"] = {"edges": [_shown(sketch, edge) for edge in edges.tolist()], "counts": counts}
    else:
        tree["histogram"] = {"edges": [_shown(sketch, low), _shown(sketch, high)], "counts": [quantiles.count]}
    return tree


def _brief(sketch: ColumnSketch) -> dict[str, Any]:
    tree: dict[str, Any] = {"rows": sketch.rows, "nulls": sketch.nulls, "distinct": sketch.num_distinct}
    moments = sketch.moments
    if moments is not None and moments.count:
        tree |= {"min": _shown(sketch, moments.min), "max": _shown(sketch, moments.max), "mean": _shown(sketch, moments.mean)}
        tree["std"] = moments.std / 1e6 if sketch.type == "timestamp" else moments.std
    elif sketch.counts is not None and sketch.type == "boolean":
        tree["mean"] = sketch.counts.counts.get(True, 0) / max(1, sketch.counts.total)
    return tree


def _shown(sketch: ColumnSketch, value: float | None) -> Any:
    """A time as text, a whole number of an integer column as such."""
    if value is None:
        return None
    if sketch.type == "timestamp":
        try:
            return (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=round(value))).isoformat().replace("+00:00", "Z")
        except OverflowError:  # beyond the year 9999
            return str(np.datetime64(round(value), "us")) + "Z"
    return int(value) if sketch.type == "int64" and float(value).is_integer() else value
