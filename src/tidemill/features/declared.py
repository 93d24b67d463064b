"""Features of models that read texts or images themselves: no graph, but what is done to each row before the model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidemill.core.artifact import Artifact, write_json
from tidemill.core.errors import ConfigError, DataError
from tidemill.core.events import Events
from tidemill.core.load import load
from tidemill.core.schema import Column, Schema
from tidemill.features.config import FeaturesConfig

if TYPE_CHECKING:
    from tidemill.core.project import Project


def declare(project: Project, data: Artifact, out: Path, *, events: Events) -> dict[str, Any]:
    """Write `features.json`, with the column that is read and its `preprocess`, and the files that go with that.

    Raises:
        ConfigError: If `[features]` says more than what to drop, or the column that the model names is not there.
        DataError: If there is none that it could read, or several.
    """
    config: FeaturesConfig = project.features
    kind = project.model.kind
    given = next(iter([*config.columns, *config.derived, *(["select"] if config.select else [])]), None)
    if given is not None:
        raise ConfigError(f"features.{given}: has no effect, model.kind {kind!r} reads its column as it is", hint="remove it")
    description = data.read_json("schema.json")
    roles = {description["target"], description.get("weight"), *(description.get("keys") or ())}
    columns = Schema.from_json(description["columns"]).drop(name for name in (*roles, *config.drop) if name is not None)
    model, params = project.model.model(), project.model.parameters()
    column = _column(columns, params.column, model.reads)
    left = [name for name in columns.names if name != column.name]
    if left:
        events.warn("features.dropped", f"model.kind {kind!r} reads column {column.name!r} alone, not {', '.join(left)}", columns=left)
    said = model.preprocess(params, column.name, project.folder)
    settings, files = said["config"], said["files"]
    for name, content in files.items():
        if isinstance(content, Path):
            shutil.copyfile(content, out / name)
        else:
            write_json(out / name, content)
    load("preprocess", model.reads)(out, **settings)
    nullable = column.nullable and model.reads != "image"
    made = {
        "inputs": Schema((Column(name=column.name, type="string", nullable=nullable),)).to_json(),
        "names": [],
        "columns": {column.name: []},
        "dropped": dict.fromkeys(left, f"{kind} does not read it"),
        "preprocess": model.reads,
        "preprocess_config": settings,
        "files": list(files),
        "loading": said["loading"],
    }
    write_json(out / "features.json", made)
    events.emit("features.fitted", f"column {column.name!r} is read as {model.reads}")
    return {"inputs": 1, "features": 0, "dropped": made["dropped"]}


def _column(columns: Schema, named: str | None, reads: str) -> Column:
    if named is not None and named not in columns:
        raise ConfigError(f"model.column: must be a column of the table, got {named!r}", hint=f"it has {', '.join(columns.names)}")
    found = [columns[named]] if named is not None else [column for column in columns if column.type == "string"]
    called = [column for column in found if column.name == reads]
    if len(called or found) != 1:
        shown = ", ".join(column.name for column in found) or "none"
        raise DataError(f"the table must have one column of {reads}s, or call it {reads!r}; has {shown}", hint="model.column names it")
    chosen = (called or found)[0]
    if chosen.type != "string":
        raise DataError(f"column {chosen.name!r} must hold {reads}s, is {chosen.type}", field=chosen.name)
    return chosen
