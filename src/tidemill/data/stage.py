"""The `data` stage: sources in; checked, split, described rows out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tidemill.core.artifact import write_json
from tidemill.core.engine import DataEngine, Rows, Source, Target, open_engine
from tidemill.core.errors import DataError
from tidemill.core.events import Events
from tidemill.core.project import Project
from tidemill.core.schema import Schema
from tidemill.data import leakage
from tidemill.data.checks import checked, refused, said
from tidemill.data.config import DataConfig
from tidemill.data.images import encoded
from tidemill.data.prepare import called, name_of, source_hash
from tidemill.data.profile import Sketches, TableSketch, described
from tidemill.data.sample import sample_of
from tidemill.data.sources import QUERIES, content_hashes, scanned
from tidemill.data.split import SPLITS, Cuts, find_cuts
from tidemill.data.storage import Extent, Extents, Together, stored_schema
from tidemill.data.table import KEY, ORDER, ROW, STRATUM, checked_table, staged
from tidemill.data.target import TargetFacts, class_counts, told

STAGING = ".staging"
SAMPLING = ".sampling"


def run(project: Project, out: Path, *, events: Events, sample: float = 1.0, cache: Path | None = None) -> dict[str, Any]:
    """Fill `out` with `train`, `valid` and `test`, schema, profile, checks and signs of leakage; returns the main figures.

    Args:
        sample: Share of rows to work on, in (0, 1], of those that the project takes.
        cache: The folder that `inputs` was given, so that a query's rows are those that it hashed.

    Raises:
        ConfigError: If the configuration does not fit the data.
        DataError: If a source, `prepare`, a check, the target or a split is at fault; names which and what to do.
    """
    config: DataConfig = project.data
    config.check()
    with open_engine(project.engine, scratch=out) as engine:
        rows, schema = _prepared(engine, project, out, events, sample=sample, cache=cache)
        counts, extents = engine.reduce(rows, Together((leakage.NullCounts(schema.names, config.target), Extents(schema))))
        known, unknown = (int(count) for count in counts[-1])
        _some_rows(project, known, unknown, events)
        results = _checks(engine.frame(rows), config, schema, events)
        facts = told(engine.frame(rows), schema[config.target], project.task)
        if project.task is None:
            events.emit("data.task", f"task is {facts.task}, told from the values of {config.target}", task=facts.task)
        _check_weight(engine, rows, config, schema)
        cuts = find_cuts(engine, _select(engine, rows, [ORDER, STRATUM]), config.split)
        final = _final_schema(schema, counts, facts)
        stored = _stored(schema, final, extents, facts)
        sizes = {split: _write_split(engine, rows, cuts, split, stored, facts, out) for split in SPLITS}
        classes = _check_classes(engine, out, facts, events)
        _check_shares(sizes, config, events)
        events.emit("data.split", ", ".join(f"{split} {size:,}" for split, size in sizes.items()) + " rows", rows=sizes)
        sketches = {split: engine.reduce(_scan(engine, out / split), TableSketch(final)) for split in SPLITS}
        warnings = _leaks(engine, rows, cuts, final, facts, config, counts, known=known)
        _write_tables(out, config, final, facts, sizes, sketches, results, warnings)
    for warning in warnings:
        events.warn("data.leakage", warning["message"], sign=warning["kind"], column=warning["column"], value=warning["value"])
    shutil.rmtree(out / STAGING, ignore_errors=True)
    return {
        "task": facts.task,
        "rows": sizes,
        "columns": len(final),
        "target_null": unknown,
        "checks_failed": sum(not result["passed"] for result in results),
        "leakage": len(warnings),
        **({"classes": classes} if classes and len(classes) <= 20 else {}),
    }


def inputs(project: Project, *, cache: Path | None = None) -> dict[str, Any]:
    """What the stage's output depends on besides the configuration: the sources' content and the source of `prepare`.

    Args:
        cache: Folder that remembers the hashes of files that did not change, and keeps a query's rows until `forget`.

    Raises:
        DataError: If a source is missing, or the module of `prepare` cannot be imported.
    """
    config: DataConfig = project.data
    config.check()
    hashes = content_hashes(config, project.folder, cache=cache, engine=project.engine)
    return {"sources": hashes, "prepare": source_hash(config.prepare, project.folder)}


def forget(cache: Path) -> None:
    """Remove the rows of queries that `inputs` kept for the run."""
    shutil.rmtree(cache / QUERIES, ignore_errors=True)


def _prepared(engine: DataEngine, project: Project, out: Path, events: Events, *, sample: float, cache: Path | None) -> tuple[Rows, Schema]:
    """The user's table, staged."""
    config: DataConfig = project.data
    sources = scanned(engine, config, project.folder, cache=cache)
    events.emit("data.sources", f"reading {', '.join(sources)}", level="progress")
    table = next(iter(sources.values()))
    where = ""
    if config.prepare is not None:
        where = f"prepare {name_of(config.prepare)}: "
        result = called(config.prepare, {name: engine.frame(rows) for name, rows in sources.items()}, project.folder)
        with _blaming(where):
            table = engine.rows(result)
    if project.model.reads == "image":
        table = encoded(engine, table)
    with _blaming(where):
        table, schema = checked_table(engine, table, config)
        chosen = sample_of(engine, table, schema, config, out / SAMPLING, seed=project.seed + 1, share=sample)
        rows = staged(engine, table, schema, config, out / STAGING, seed=project.seed, sample=chosen)
        shutil.rmtree(out / SAMPLING, ignore_errors=True)
    events.emit("data.prepared", f"{len(schema)} columns", level="progress", columns=len(schema))
    return rows, schema


class _blaming:  # noqa: N801 - reads as a statement
    """Says that it is `prepare` whose table cannot be computed."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self._where and isinstance(error, DataError) and not error.message.startswith(("data.", self._where)):
            raise DataError(self._where + error.message, field=error.field, hint=error.hint) from error


def _some_rows(project: Project, known: int, unknown: int, events: Events) -> None:
    config: DataConfig = project.data
    after = f"after prepare {name_of(config.prepare)}" if config.prepare is not None else f"in {config.source}"
    if known + unknown == 0:
        raise DataError(f"the table must have rows, has none {after}", hint="does a filter or join drop them all?")
    if known == 0:
        raise DataError(f"target {config.target!r} must have values, all {unknown:,} rows are null {after}", field=config.target)
    if unknown:
        events.warn("data.target_null", f"{unknown:,} of {known + unknown:,} rows have no {config.target} and are left out", rows=unknown)


def _checks(frame: Any, config: DataConfig, schema: Schema, events: Events) -> list[dict[str, Any]]:
    results = checked(frame, config.checks, schema, keys=config.keys)
    for result in results:
        if not result["passed"]:
            level = "warning" if result["severity"] == "warn" else "error"
            events.emit("data.check", said(result), level=level, column=result["column"], rule=result["rule"], failed=result["failed"])  # type: ignore[arg-type]
    if error := refused(results):
        raise error
    return results


def _check_weight(engine: DataEngine, rows: Rows, config: DataConfig, schema: Schema) -> None:
    if config.weight is None:
        return
    column = schema[config.weight]
    if not column.is_number:
        raise DataError(f"data.weight: {column.name!r} must be a number, is {column.type}", field=column.name)
    import narwhals as nw

    value = nw.col(column.name)
    bad = engine.frame(rows).filter(value.is_null() | (value < 0) | (value == float("inf"))).select(nw.len().alias("rows"))
    found = bad.collect("pyarrow").to_arrow()["rows"][0].as_py()
    if found:
        raise DataError(f"data.weight: {column.name!r} must be at least 0 and finite, {found:,} rows are not", field=column.name)


def _final_schema(schema: Schema, counts: np.ndarray, facts: TargetFacts) -> Schema:
    """The columns as written: nullable only where a row that is kept holds a null."""
    nullable = dict(zip(schema.names, counts[:-1, 0] > 0, strict=True))
    columns = (facts.column if c.name == facts.column.name else replace(c, nullable=bool(nullable[c.name])) for c in schema)
    return Schema(tuple(columns))


def _stored(schema: Schema, final: Schema, extents: Sequence[Extent], facts: TargetFacts) -> pa.Schema:
    """Types of the files: narrow where no value changes; the target's own, which may be another than it came in."""
    wide = Extent(low=-(2**63), high=2**63 - 1, single=False)
    return stored_schema(final, [wide if column.name == facts.column.name else one for column, one in zip(schema, extents, strict=True)])


def _write_split(engine: DataEngine, rows: Rows, cuts: Cuts, split: str, arrow: pa.Schema, facts: TargetFacts, out: Path) -> int:
    wanted, target = SPLITS.index(split), facts.column.name

    def chosen(batch: pa.RecordBatch) -> pa.RecordBatch:
        kept = batch.filter(pa.array(cuts.split_of(batch) == wanted))
        columns = [facts.stored(kept.column(name)) if name == target else kept.column(name) for name in arrow.names]
        return pa.record_batch([column.cast(field.type) for column, field in zip(columns, arrow, strict=True)], schema=arrow)

    return engine.write(engine.map_batches(rows, chosen, arrow), Target(path=out / split)).rows


def _check_shares(sizes: Mapping[str, int], config: DataConfig, events: Events) -> None:
    """Warn where rows that may not be parted are so many that a share is far from what was asked for."""
    total = sum(sizes.values())
    for split, wanted in (("valid", config.split.valid), ("test", config.split.test)):
        share = sizes[split] / total
        if total >= 100 and abs(share - wanted) > 0.25 * wanted:
            kept = f"rows of one {config.split.column}" if config.split.by in ("time", "group") else "equal rows"
            message = f"{split} has {share:.1%} of the rows, {wanted:.1%} was asked for: {kept} stay together"
            events.warn("data.shares", message, split=split, share=share)


def _check_classes(engine: DataEngine, out: Path, facts: TargetFacts, events: Events) -> dict[str, dict[str, int]] | None:
    """Rows by class and split; every class must be in train."""
    if facts.classes is None:
        return None
    name = facts.column.name
    by_split = {}
    for split in SPLITS:
        parts = [batch.column(0) for batch in _scan(engine, out / split, [name]).batches()]
        counts = class_counts(pa.chunked_array(parts))
        missing = [label for label in facts.classes if label not in counts]
        if missing and split == "train":
            listed = ", ".join(map(repr, missing[:5]))
            raise DataError(
                f"target {name!r}: every class must be in train, {len(missing)} of {len(facts.classes)} are not: {listed}",
                field=name,
                hint='split = { by = "stratified" } spreads them; classes of a row or two are better merged in prepare',
            )
        if missing:
            events.warn("data.classes", f"{split} lacks {len(missing)} of the {len(facts.classes)} classes of {name}", split=split)
        by_split[split] = {str(label): counts.get(label, 0) for label in facts.classes}
    return by_split


def _leaks(
    engine: DataEngine, rows: Rows, cuts: Cuts, schema: Schema, facts: TargetFacts, config: DataConfig, counts: np.ndarray, *, known: int
) -> list[leakage.Sign]:
    found = leakage.post_event(counts, schema.names, config.target)
    every = max(1, -(-known // leakage.COUNTED_ROWS))
    for column in (ROW, KEY) if config.keys else (ROW,):
        hashes = engine.reduce(_select(engine, rows, [column, ORDER, STRATUM]), leakage.SplitHashes(cuts, column, every))
        found += leakage.shared(hashes, column, config.keys, every=every)
    batches = engine.reduce(rows, leakage.TrainSample(cuts, leakage.sample_share(rows, known)))
    features = [name for name in schema.names if name not in (config.target, config.weight, *config.keys)]
    sample = pa.Table.from_batches(batches)
    found += leakage.giveaways(sample, features, facts, threshold=config.leakage)
    return leakage.merged(found)


def _write_tables(
    out: Path,
    config: DataConfig,
    schema: Schema,
    facts: TargetFacts,
    sizes: Mapping[str, int],
    sketches: Mapping[str, Sketches],
    results: list[dict[str, Any]],
    warnings: list[leakage.Sign],
) -> None:
    tree = {
        "columns": schema.to_json(),
        "target": facts.column.name,
        "task": facts.task,
        "classes": facts.classes,
        "keys": list(config.keys),
        "weight": config.weight,
        "rows": dict(sizes),
    }
    write_json(out / "schema.json", tree)
    write_json(out / "profile.json", described(sketches))
    write_json(out / "checks.json", {"checks": results})
    write_json(out / "leakage.json", warnings)


def _select(engine: DataEngine, rows: Rows, columns: list[str]) -> Rows:
    return engine.rows(engine.frame(rows).select(*[name for name in columns if name in rows.schema.names]))


def _scan(engine: DataEngine, folder: Path, columns: list[str] | None = None) -> Rows:
    return engine.scan(Source(path=str(folder), format="parquet"), columns)
