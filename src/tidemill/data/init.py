"""A commented project file from a look at the data."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import narwhals as nw
import pyarrow as pa

from tidemill.core.engine import EngineConfig, Source, open_engine
from tidemill.core.errors import Conflict, DataError, NotFound
from tidemill.core.project import check_name
from tidemill.core.schema import Column, Schema
from tidemill.data.target import TargetFacts, told

LOOK_ROWS = 50_000
NOTE_COLUMN = 42


def write_project(data: Path, *, target: str, name: str | None = None, out: Path = Path("tidemill.toml"), force: bool = False) -> Path:
    """Write a project file for one table: task, split, suspicious columns and defaults, each with the reason beside it.

    Args:
        data: Parquet or CSV: file, glob or Hive folder. The first 50,000 rows are looked at.
        name: Name of the project; the data's name when absent.
        force: Replace an older file.

    Raises:
        ConfigError: If `name` is none for a project.
        Conflict: If `out` exists and `force` is not said.
        DataError: If the data cannot be read or the target cannot be predicted.
        NotFound: If the target is no column.
    """
    if name is not None:
        check_name(name)
    if out.exists() and not force:
        raise Conflict(f"{out} must not exist yet", hint="--force replaces it")
    with open_engine(EngineConfig()) as engine:
        rows = engine.scan(Source(path=str(data.expanduser().absolute())), None)
        schema = Schema.from_arrow(rows.schema)
        if target not in schema:
            raise NotFound("target column", target, schema.names)
        seen, batches = 0, []
        for batch in rows.batches(16_384):
            batches.append(batch)
            seen += batch.num_rows
            if seen >= LOOK_ROWS:
                break
        table = pa.Table.from_batches(batches, schema=rows.schema)
        if not seen:
            raise DataError(f"{data} must hold rows, has none")
        facts = told(nw.from_native(table.select([target])).lazy(), schema[target], None)
    made = _text(name or _name(data), _relative(data, out), schema, table, facts)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(made, encoding="utf-8")
    return out


def _text(name: str, source: str, schema: Schema, table: pa.Table, facts: TargetFacts) -> str:
    target = facts.column.name
    features = [column for column in schema if column.name != target]
    times = [column.name for column in features if column.type == "timestamp"]
    identifiers = [column.name for column in features if _identifies(column, table)]
    lines = [
        f'name = "{name}"',
        _noted(f'task = "{facts.task}"', _told(facts)),
        "",
        "[data]",
        f"source = {_quoted(source)}",
        f"target = {_quoted(target)}",
        _noted(f"keys = [{', '.join(map(_quoted, identifiers))}]", "columns that identify a row: copied to predictions, no features"),
        _split(times, facts),
        "",
        _noted("[features]", "columns that are not named get the default of their type"),
        _noted("# drop = []", "columns that are known only after the event belong here"),
        *[_noted(f"# {_key(column.name)} = {_suggestion(column)}", column.type) for column in features if column.name not in identifiers],
        "",
        "[model]",
        _noted('kind = "xgboost"', 'or "linear", which is trained beside it in any case'),
        "",
        _noted("# [tune]", "search the model's parameters on the validation rows"),
        "# trials = 20",
        "",
        _noted("[contract]", "a package below its promises is not written"),
        _noted("latency = { p99_ms = 50 }", "of one row, on hardware like this"),
        _quality(facts),
        "",
    ]
    return "\n".join(lines)


def _told(facts: TargetFacts) -> str:
    if facts.classes is None:
        return "the target is a quantity"
    shown = ", ".join(map(str, facts.classes[:6])) + (", ..." if len(facts.classes) > 6 else "")
    return f"the target has {len(facts.classes)} values: {shown}"


def _split(times: list[str], facts: TargetFacts) -> str:
    if times:
        return (
            f'split = {{ by = "time", column = {_quoted(times[0])}, valid = 0.1, test = 0.1 }}   # tested on the newest rows; '
            "random, stratified and group are the other ways"
        )
    by = "random" if facts.classes is None else "stratified"
    return f'split = {{ by = "{by}", valid = 0.1, test = 0.1 }}   # by = "time" or "group" where rows hang together'


def _quality(facts: TargetFacts) -> str:
    metric = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "rmse"}[facts.task]
    bound = "min = 0.7" if facts.task == "binary" else "max = 1.0"
    return _noted(f'# quality = {{ metric = "{metric}", {bound} }}', "set it when a first run has shown what is possible")


def _noted(line: str, note: str) -> str:
    """A line with its comment, which stands in one column where the line leaves room."""
    return f"{line.ljust(NOTE_COLUMN - 1)} # {note}"


def _suggestion(column: Column) -> str:
    return {"string": '["one_hot"]', "timestamp": '["date_parts"]', "boolean": '["impute"]'}.get(column.type, '["impute", "standardize"]')


def _identifies(column: Column, table: pa.Table) -> bool:
    """Whether every row has a value of its own, as an identifier does; for text and whole numbers."""
    if column.type not in ("string", "int64") or table.num_rows < 2:
        return False
    values = table[column.name]
    return bool(values.null_count == 0 and len(values.unique()) == table.num_rows)


def _name(data: Path) -> str:
    stem = re.split(r"[.*?\[]", data.name)[0] or data.parent.name
    return re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-") or "project"


def _relative(data: Path, out: Path) -> str:
    """The path as the project file resolves it: from its own folder."""
    return os.path.relpath(data.expanduser().absolute(), out.absolute().parent)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _key(name: Any) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)
