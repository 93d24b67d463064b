"""`features.onnx`: the fitted steps of every column as one graph, few nodes for many columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tidemill.core.errors import DataError, NotFound
from tidemill.core.folds import FOLD
from tidemill.core.schema import Column, Schema
from tidemill.features.builder import DOUBLE, Block, Builder
from tidemill.features.operator import KINDS, AnyOperator, Kind, joins, single, taken_as
from tidemill.features.reference import operator_of, part_name, statistics_of


def build_graph(description: Mapping[str, Any], *, training: bool = False) -> tuple[bytes, list[str]]:
    """The graph from raw columns to `features` float32 [N, F], and the features' names in order.

    Columns of one kind with the same steps go through the same nodes. Features come block by block, for a
    node that put them in another order would cost more than many of them; their names say which is which.

    Args:
        description: `inputs`, `columns`, `derived` and `left_out` as `features.json` holds them.
        training: Whether it has the input `core.folds.FOLD` and answers as a model is trained: what was learnt from the target
            comes from other folds than the row's. Without, it comes from all of them.
    """
    return _built(description, training=training).finish(list(Schema.from_json(description["inputs"])))


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
    derived = {name: made_of for name, made_of in description.get("derived", {}).items() if name in alive}
    used = alive.union(*(made_of["of"] for made_of in derived.values()))
    left_out = {**description.get("left_out", {}), **reasons}
    inputs = [column for column in description["inputs"] if column["name"] in used]
    dropped = {**description["dropped"], **{name: reason for name, reason in gone.items() if name not in used}}
    less = {**description, "inputs": inputs, "names": kept, "columns": columns, "dropped": dropped, "left_out": left_out}
    return {**less, **({"derived": derived} if "derived" in description else {})}


def origins(description: Mapping[str, Any]) -> dict[str, str]:
    """The raw or derived column behind each feature, in the features' order."""
    return _built(description).makers()


def _built(description: Mapping[str, Any], *, training: bool = False) -> Builder:
    schema = Schema.from_json(description["inputs"])
    graph = Builder(description.get("left_out", ()), fold=FOLD if training else None)
    chains = [_Chain(name, schema[name], steps) for name, steps in description["columns"].items()]
    for block in _walked(graph, chains):
        graph.emit(block)
    for block in _derived(graph, schema, description.get("derived", {})):
        graph.emit(block)
    return graph


@dataclass(frozen=True)
class _Chain:
    """A raw column's fitted steps, and what it is called on the way."""

    name: str
    column: Column
    steps: Sequence[Mapping[str, Any]]


def _walked(graph: Builder, chains: Sequence[_Chain], accepts: Sequence[Kind] = ("number",)) -> Iterator[Block]:
    """What the chains make of raw columns, those that share their nodes together; without steps as what comes next accepts."""
    for kind, members in _groups(chains, accepts):
        block = graph.raw([chain.column for chain in members], kind)
        called = {chain.column.name: chain.name for chain in members}
        names = tuple(called[name] for name in block.names)
        block = replace(block, names=names, origins=names)
        yield _stepped(graph, block, {chain.name: chain.steps for chain in members})


def _stepped(graph: Builder, block: Block, chains: Mapping[str, Sequence[Mapping[str, Any]]]) -> Block:
    """A block taken through the steps of its columns' chains, by origin; they differ in nothing but statistics."""
    for i, first in enumerate(next(iter(chains.values()))):
        operator = operator_of(first)
        if joins(operator):
            raise TypeError(f"{block.names[0]}: {first['op']} cannot take one column")
        block = _taken(graph, block, operator)
        fitted = [_statistics(chains[origin][i], name) for origin, name in zip(block.origins, block.names, strict=True)]
        block = single(operator).nodes(graph, block, fitted)
    return block


def _derived(graph: Builder, schema: Schema, derived: Mapping[str, Mapping[str, Any]]) -> Iterator[Block]:
    """What is made of several columns: each derived column up to where its columns are joined, then all on in groups."""
    groups: dict[tuple[Any, ...], list[Block]] = {}
    for name, made_of in derived.items():
        step = made_of["steps"][0]
        operator = operator_of(step)
        if not joins(operator):
            raise TypeError(f"{name}: {step['op']} must join columns")
        chains = [_Chain(part_name(name, column), schema[column], steps) for column, steps in made_of["of"].items()]
        parts = [_taken(graph, block, operator) for block in _walked(graph, chains, operator.accepts)]
        order = [chain.name for chain in chains]
        if list(dict.fromkeys(origin for block in parts for origin in block.origins)) != order:
            parts = sorted((one for block in parts for one in graph.singles(block)), key=lambda one: order.index(one.origins[0]))
        block = operator.nodes(graph, name, parts, _statistics(step, name))
        said = json.dumps([[later["op"], later["params"]] for later in made_of["steps"][1:]], sort_keys=True)
        layout = () if block.kind == "number" else (block.element, bool(block.valid), bool(block.parts), len(block.tensors) == len(block))
        groups.setdefault((said, block.kind, *layout), []).append(block)
    for blocks in groups.values():
        block = graph.together(blocks)
        yield _stepped(graph, block, {name: derived[name]["steps"][1:] for name in dict.fromkeys(block.origins)})


def _groups(chains: Sequence[_Chain], accepts: Sequence[Kind]) -> list[tuple[Kind, list[_Chain]]]:
    """Chains that share their nodes: columns taken as the same kind, through the same steps with the same parameters."""
    groups: dict[tuple[Any, ...], list[_Chain]] = {}
    kinds: dict[tuple[Any, ...], Kind] = {}
    for chain in chains:
        column, steps = chain.column, chain.steps
        natural = KINDS[column.type]
        kind = taken_as(natural, operator_of(steps[0]).accepts) if steps else taken_as(natural, accepts)
        said = json.dumps([[step["op"], step["params"]] for step in steps], sort_keys=True)
        # Numbers of any type become one tensor; other kinds stay what they are.
        key = (kind, said) if kind == "number" else (kind, said, column.type, column.nullable and column.type == "int64")
        groups.setdefault(key, []).append(chain)
        kinds[key] = kind or natural
    return [(kinds[key], members) for key, members in groups.items()]


def _taken(graph: Builder, block: Block, operator: AnyOperator) -> Block:
    kind = taken_as(block.kind, operator.accepts)
    if kind is None:
        raise TypeError(f"{block.names[0]}: {block.kind} must be one of {operator.accepts}")
    if kind == block.kind or not block.valid:
        return replace(block, kind=kind)
    return block.take(block.names, graph.numbers(block), DOUBLE)


def _statistics(step: Mapping[str, Any], name: str) -> dict[str, Any]:
    return statistics_of(step, [name])[name]
