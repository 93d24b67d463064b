"""The stage `features`: fitted on the training rows, written as `features.onnx` and `features.json`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidemill.core.artifact import Artifact, write_json
from tidemill.core.engine import Source, open_engine
from tidemill.core.errors import ConfigError, DataError, Unsupported
from tidemill.core.events import Events
from tidemill.core.schema import VALID_SUFFIX, Schema
from tidemill.features.config import FeaturesConfig
from tidemill.features.fitting import fit
from tidemill.features.graph import build_graph, leave_out
from tidemill.features.training import TargetColumn, TrainingFeatures

if TYPE_CHECKING:
    import pyarrow as pa

    from tidemill.core.project import Project

# What the graphs of a package call their outputs; `<column>__valid` are inputs.
RESERVED = ("features", "prediction", "probability")


def run(project: Project, data: Artifact, out: Path, *, events: Events) -> dict[str, Any]:
    """Fit the features on the training split of `data` and fill the folder `out`; small results.

    Raises:
        ConfigError: If `[features]` does not fit the columns.
        DataError: If no column is left, or one has a name that the graphs keep for themselves.
    """
    description = data.read_json("schema.json")
    roles = {description["target"]: "the target", description.get("weight"): "the weight"}
    roles.update(dict.fromkeys(description.get("keys") or (), "a key"))
    config: FeaturesConfig = project.features
    for name in config.columns:
        if name in roles:
            raise ConfigError(f"features.{name}: must be no input, is {roles[name]}", hint="remove it from [features]")
    columns = Schema.from_json(description["columns"]).drop(name for name in roles if name is not None)
    config = replace(config, drop=tuple(name for name in config.drop if name not in roles))
    for name in (*RESERVED, *(name + VALID_SUFFIX for name in columns.names)):
        if name in columns and name not in config.drop:
            raise DataError(
                f"column {name!r} must have another name: an input or output of the graph is called so",
                field=name,
                hint="rename it in prepare",
            )
    with open_engine(project.engine, scratch=out) as engine:
        source = Source(path=str(data.path / "train"), format="parquet")
        rows = engine.scan(source, columns.names)
        made, graph = _made(fit(columns, config, lambda aggregate: engine.reduce(rows, aggregate)))
        if config.select:
            target = TargetColumn.of(description)
            read = engine.scan(source, list(dict.fromkeys([*Schema.from_json(made["inputs"]).names, *target.columns])))
            matrix = TrainingFeatures(made, read, target, num_rows=int(description["rows"]["train"]), threads=project.engine.threads or 1)
            made, graph = _made(leave_out(made, _unselected(config, matrix, seed=project.seed, events=events)))
    for name, reason in made["dropped"].items():
        if name not in config.drop:
            events.warn("features.dropped", f"column {name!r} is kept out: {reason}", column=name, reason=reason)
    (out / "features.onnx").write_bytes(graph)
    write_json(out / "features.json", made)
    events.emit("features.fitted", f"{len(made['inputs'])} columns became {len(made['names'])} features")
    return {"inputs": len(made["inputs"]), "features": len(made["names"]), "dropped": made["dropped"]}


def fit_table(table: pa.Table, features: Any = None, *, batch_rows: int = 65_536) -> tuple[dict[str, Any], bytes]:
    """What `features.json` and `features.onnx` hold for the columns of a table in memory.

    Args:
        features: A `FeaturesConfig`, or the tree of the section `[features]`.
    """
    from tidemill.core.project import build

    config = build(FeaturesConfig, features or {}, path="features")

    def reduce(aggregate: Any) -> Any:
        state = aggregate.init()
        for batch in table.to_batches(max_chunksize=batch_rows):
            state = aggregate.merge(state, aggregate.update(aggregate.init(), batch))
        return state

    return _made(fit(Schema.from_arrow(table.schema), config, reduce))


def _unselected(config: FeaturesConfig, matrix: TrainingFeatures, *, seed: int, events: Events) -> dict[str, str]:  # noqa: ARG001
    """Which features the steps of `select` leave out, and why."""
    raise Unsupported(f"features.select: {config.select[0]['op']!r} is not built in this version", hint="name columns in features.drop")


def _made(fitted: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    graph, names = build_graph(fitted)
    parts = {"inputs": fitted["inputs"], "names": names, "columns": fitted["columns"], "dropped": fitted["dropped"]}
    return {**parts, **{key: fitted[key] for key in ("left_out",) if fitted.get(key)}}, graph
