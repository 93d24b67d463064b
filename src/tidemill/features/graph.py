"""`features.onnx`: the fitted steps of every column as one graph, few nodes for many columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tidemill.core.errors import DataError, NotFound
from tidemill.core.schema import Column, Schema
from tidemill.features.builder import DOUBLE, Block, Builder
from tidemill.features.operator import KINDS, Kind, Operator, taken_as
from tidemill.features.reference import operator_of, statistics_of


def build_graph(description: Mapping[str, Any]) -> tuple[bytes, list[str]]:
    """The graph from raw columns to `features` float32 [N, F], and the features' names in order.

    Columns of one kind with the same steps go through the same nodes. Features come block by block, for a
    node that put them in another order would cost more than many of them; their names say which is which.

    Args:
        description: `inputs`, `columns` and `left_out` as `features.json` holds them.
    """
    return _built(description).finish(list(Schema.from_json(description["inputs"])))


def leave_out(description: Mapping[str, Any], reasons: Mapping[str, str]) -> dict[str, Any]:
    """The description without some features; a raw column that none is left of is dropped whole.

    Args:
        description: What `features.json` holds.
        reasons: Features to leave out, and why.

    Raises:
        DataError: If no feature would be left.
    """
    made = _built(description).makers()
    if unknown := [name for name in reasons if name not in made]:
        raise NotFound("feature", unknown[0], list(made))
    kept = [name for name in description["names"] if name not in reasons]
    if not kept:
        raise DataError(
            f"at least one feature must be left, all {len(made)} are left out", hint="select fewer, or drop a step of features.select"
        )
    alive = {made[name] for name in kept}
    gone = {origin: reasons[name] for name, origin in made.items() if origin not in alive}
    columns = {name: steps for name, steps in description["columns"].items() if name in alive}
    left_out = {**description.get("left_out", {}), **reasons}
    inputs = [column for column in description["inputs"] if column["name"] in alive]
    dropped = {**description["dropped"], **gone}
    return {**description, "inputs": inputs, "names": kept, "columns": columns, "dropped": dropped, "left_out": left_out}


def _built(description: Mapping[str, Any]) -> Builder:
    schema = Schema.from_json(description["inputs"])
    graph = Builder(description.get("left_out", ()))
    for kind, members in _groups(schema, description["columns"]):
        block = graph.raw(members, kind)
        chains = {column.name: description["columns"][column.name] for column in members}
        for i, first in enumerate(chains[members[0].name]):
            operator = operator_of(first)
            block = _taken(graph, block, operator)
            fitted = [_statistics(chains[origin][i], name) for origin, name in zip(block.origins, block.names, strict=True)]
            block = operator.nodes(graph, block, fitted)
        graph.emit(block)
    return graph


def _groups(schema: Schema, chains: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[Kind, list[Column]]]:
    """Columns that share their nodes: taken as the same kind, through the same steps with the same parameters."""
    groups: dict[tuple[Any, ...], list[Column]] = {}
    kinds: dict[tuple[Any, ...], Kind] = {}
    for column in schema:
        steps = chains[column.name]
        natural = KINDS[column.type]
        kind = taken_as(natural, operator_of(steps[0]).accepts) if steps else taken_as(natural, ("number",))
        said = json.dumps([[step["op"], step["params"]] for step in steps], sort_keys=True)
        # Numbers of any type become one tensor; other kinds stay what they are.
        key = (kind, said) if kind == "number" else (kind, said, column.type, column.nullable and column.type == "int64")
        groups.setdefault(key, []).append(column)
        kinds[key] = kind or natural
    return [(kinds[key], members) for key, members in groups.items()]


def _taken(graph: Builder, block: Block, operator: Operator) -> Block:
    kind = taken_as(block.kind, operator.accepts)
    if kind is None:
        raise TypeError(f"{block.names[0]}: {block.kind} must be one of {operator.accepts}")
    if kind == block.kind or not block.valid:
        return replace(block, kind=kind)
    return block.take(block.names, graph.numbers(block), DOUBLE)


def _statistics(step: Mapping[str, Any], name: str) -> dict[str, Any]:
    return statistics_of(step, [name])[name]
