"""Codes of categories as nodes: one lookup per column, for texts and for integers of 64 bits, exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidemill.core.schema import NULL_STRING
from tidemill.features.builder import Block, Builder
from tidemill.features.operator import Values


@dataclass(frozen=True)
class Codes:
    """A column's categories with their codes, the code of a null and that of everything else."""

    categories: Sequence[Any]
    first: int
    """Code of the first category; the others follow."""
    null: int
    other: int


def code_nodes(graph: Builder, block: Block, columns: Sequence[Codes]) -> tuple[str, ...]:
    """Codes of a block of strings or integers, as one float tensor [N, C] or C tensors [N, 1]."""
    block = block if block.kind == "string" else graph.integers(block)
    made = tuple(_lookup(graph, block.kind, tensor, codes) for tensor, codes in zip(graph.split(block), columns, strict=True))
    if not block.valid:
        return made
    nulls = graph.constant([[codes.null for codes in columns]], np.float32)
    return (graph.node("Where", graph.stack(block.valid), graph.stack(made), nulls),)


def reference_codes(values: Values, codes: Codes) -> np.ndarray:
    """Codes of one column in NumPy, int64 [N]."""
    known: Mapping[Any, int] = {category: i for i, category in enumerate(codes.categories, codes.first)}
    found = np.fromiter((known.get(value, codes.other) for value in values.data.tolist()), np.int64, len(values))
    return np.where(values.known(), found, codes.null)


def _lookup(graph: Builder, kind: str, tensor: str, codes: Codes) -> str:
    values = [float(code) for code in range(codes.first, codes.first + len(codes.categories))]
    default = float(codes.other)
    if kind == "string":
        keys = {"keys_strings": [*codes.categories, NULL_STRING]}
        values.append(float(codes.null))
    else:
        # The operator wants at least one key.
        keys = {"keys_int64s": list(codes.categories) or [0]}
        values = values or [default]
    return graph.node("LabelEncoder", tensor, domain="ai.onnx.ml", values_floats=values, default_float=default, **keys)
