"""The stage `features`: fitted on the training rows, written as `features.onnx` and `features.json`.

Where something was learnt from the target there is `training.onnx` beside, with the input `core.folds.FOLD`: a model is trained on
what it makes of the training rows, and everything else goes through `features.onnx`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidemill.core.artifact import Artifact, write_json
from tidemill.core.engine import Source, open_engine
from tidemill.core.errors import ConfigError, DataError
from tidemill.core.events import Events
from tidemill.core.folds import FOLD
from tidemill.core.schema import VALID_SUFFIX, Schema
from tidemill.features.config import FeaturesConfig
from tidemill.features.declared import declare
from tidemill.features.embedding import refuse_without_tables, tables
from tidemill.features.fitting import Reduce, fit
from tidemill.features.graph import build_graph, leave_out
from tidemill.features.select.run import select
from tidemill.features.select.selector import step_of
from tidemill.features.supervision import Supervision, TargetColumn, folds_of
from tidemill.features.training import TrainingFeatures

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
    if project.model.reads != "features":
        return declare(project, data, out, events=events)
    description = data.read_json("schema.json")
    roles = {description["target"]: "the target", description.get("weight"): "the weight"}
    roles.update(dict.fromkeys(description.get("keys") or (), "a key"))
    config: FeaturesConfig = project.features
    refuse_without_tables({**config.columns, **{name: derived.steps for name, derived in config.derived.items()}}, project.model.kind)
    for where, name in [
        *((name, name) for name in config.columns),
        *((f"{d}.of", name) for d, of in config.derived.items() for name in of.of),
    ]:
        if name in roles:
            raise ConfigError(f"features.{where}: must be no input, is {roles[name]}", hint="remove it from [features]")
    columns = Schema.from_json(description["columns"]).drop(name for name in roles if name is not None)
    config = replace(config, drop=tuple(name for name in config.drop if name not in roles))
    for name in (*RESERVED, FOLD, *(name + VALID_SUFFIX for name in columns.names)):
        if name in columns and name not in config.drop:
            raise DataError(
                f"column {name!r} must have another name: an input or output of the graph is called so",
                field=name,
                hint="rename it in prepare",
            )
    with open_engine(project.engine, scratch=out) as engine:
        source = Source(path=str(data.path / "train"), format="parquet")
        target = TargetColumn.of(description)
        keys = description.get("keys") or ()
        rows = engine.scan(source, list(dict.fromkeys([*columns.names, *target.columns, *keys])))

        def reduce(aggregate: Any) -> Any:
            return engine.reduce(rows, aggregate)

        def batches(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
            return engine.scan(source, names).batches()

        threads = project.engine.threads or os.cpu_count() or 1
        project.model.reach(project.folder)
        embeds = project.model.embeds
        made, graph = _made(_fitted(columns, config, target, keys, reduce, batches, embeds=embeds, threads=threads))
        for name, reason in made["dropped"].items():
            if name not in config.drop:
                events.warn("features.dropped", f"column {name!r} is kept out: {reason}", column=name, reason=reason)
        if config.select:
            threads = project.engine.threads or os.cpu_count() or 1
            matrix = TrainingFeatures(made, rows, target, num_rows=int(description["rows"]["train"]), threads=threads)
            steps = [step_of(table, f"features.select[{i}]", "project") for i, table in enumerate(config.select)]
            chosen = select(steps, matrix, seed=project.seed, threads=threads, events=events)
            made, graph = _made({**leave_out(made, chosen.reasons), "selected": chosen.description})
    (out / "features.onnx").write_bytes(graph)
    if "folds" in made:
        (out / "training.onnx").write_bytes(build_graph(made, training=True)[0])
    write_json(out / "features.json", made)
    events.emit("features.fitted", f"{len(made['inputs'])} columns became {len(made['names'])} features")
    facts = {"inputs": len(made["inputs"]), "features": len(made["names"]), "dropped": made["dropped"]}
    return {**facts, "left_out": len(made["selected"]["dropped"])} if "selected" in made else facts


def fit_table(
    table: pa.Table,
    features: Any = None,
    *,
    target: Mapping[str, Any] | None = None,
    embeds: bool = False,
    batch_rows: int = 65_536,
) -> tuple[dict[str, Any], bytes]:
    """What `features.json` and `features.onnx` hold for the columns of a table in memory.

    Args:
        features: A `FeaturesConfig`, or the tree of the section `[features]`.
        target: Which column is the `target`, its `classes` in order where it has classes, and the `weight` and `keys`, if any, as
            `schema.json` says them; absent where nothing is learnt from it.
        embeds: Whether the model learns tables for codes of categories.
    """
    from tidemill.core.project import build

    config = build(FeaturesConfig, features or {}, path="features")

    def reduce(aggregate: Any) -> Any:
        return _folded(aggregate, table.to_batches(max_chunksize=batch_rows))

    predicted = TargetColumn.of(target) if target else None
    keys = (target or {}).get("keys") or ()
    columns = Schema.from_arrow(table.schema).drop([*(predicted.columns if predicted else ()), *keys])

    def batches(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return iter(table.select(list(names)).to_batches(max_chunksize=batch_rows))

    return _made(_fitted(columns, config, predicted, keys, reduce, batches, embeds=embeds))


def _fitted(
    columns: Schema,
    config: FeaturesConfig,
    target: TargetColumn | None,
    keys: Sequence[str],
    reduce: Reduce,
    batches: Callable[[Sequence[str]], Iterator[pa.RecordBatch]],
    *,
    embeds: bool,
    threads: int = 1,
) -> dict[str, Any]:
    """The fitted chains; with the target where an operator learns from it.

    Args:
        batches: Some columns of all rows, in order, for folds that go by position.
    """
    if target is None:
        return fit(columns, config, reduce, embeds=embeds, threads=threads)
    predicted = target

    @cache
    def supervise() -> Supervision:
        kept = [name for name in columns.names if name not in config.drop]
        return Supervision(target=predicted, folds=folds_of(config.folds, keys=keys, columns=kept, reduce=reduce))

    def reduced(level: Any) -> Any:
        if level.taught and not supervise().folds.columns:
            return _folded(level, supervise().folds.beside(batches(level.columns)))
        return reduce(level)

    return fit(columns, config, reduced, supervise=supervise, embeds=embeds, threads=threads)


def _folded(aggregate: Any, batches: Iterable[pa.RecordBatch]) -> Any:
    state = aggregate.init()
    for batch in batches:
        state = aggregate.merge(state, aggregate.update(aggregate.init(), batch))
    return state


def _made(fitted: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    graph, names = build_graph(fitted)
    rest = {key: value for key, value in fitted.items() if key not in ("inputs", "names", "embedding")}
    made = {"inputs": fitted["inputs"], "names": names, **rest}
    embedded = tables(made)
    return ({**made, "embedding": embedded} if embedded else made), graph
