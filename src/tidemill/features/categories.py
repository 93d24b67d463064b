"""Numbers of categories as nodes, such as codes: one lookup per column, for texts and for integers of 64 bits, exact."""

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

    def numbers(self) -> Numbers:
        """The codes as numbers to look up."""
        codes = [float(code) for code in range(self.first, self.first + len(self.categories))]
        return Numbers(self.categories, codes, null=float(self.null), other=float(self.other))


@dataclass(frozen=True)
class Numbers:
    """A column's categories with a number each, that of a null and that of everything else; all exact in float32."""

    categories: Sequence[Any]
    values: Sequence[float]
    null: float
    other: float


def code_nodes(graph: Builder, block: Block, columns: Sequence[Codes]) -> tuple[str, ...]:
    """Codes of a block of strings or integers, as one float tensor [N, C] or C tensors [N, 1]."""
    return number_nodes(graph, block, [codes.numbers() for codes in columns])


def number_nodes(graph: Builder, block: Block, columns: Sequence[Numbers]) -> tuple[str, ...]:
    """Numbers of a block of strings or integers, as one float tensor [N, C] or C tensors [N, 1]."""
    block = block if block.kind == "string" else graph.integers(block)
    made = tuple(_lookup(graph, block.kind, tensor, numbers) for tensor, numbers in zip(graph.split(block), columns, strict=True))
    if not block.valid:
        return made
    nulls = graph.constant([[numbers.null for numbers in columns]], np.float32)
    return (graph.node("Where", graph.stack(block.valid), graph.stack(made), nulls),)


def reference_codes(values: Values, codes: Codes) -> np.ndarray:
    """Codes of one column in NumPy, int64 [N]."""
    return reference_numbers(values, codes.numbers()).astype(np.int64)


def reference_numbers(values: Values, numbers: Numbers) -> np.ndarray:
    """Numbers of one column in NumPy, float64 [N]."""
    known: Mapping[Any, float] = dict(zip(numbers.categories, numbers.values, strict=True))
    found = np.fromiter((known.get(value, numbers.other) for value in values.data.tolist()), np.float64, len(values))
    return np.where(values.known(), found, numbers.null)


def _lookup(graph: Builder, kind: str, tensor: str, numbers: Numbers) -> str:
    values = list(numbers.values)
    if kind == "string":
        keys = {"keys_strings": [*numbers.categories, NULL_STRING]}
        values.append(numbers.null)
    else:
        # The operator wants at least one key.
        keys = {"keys_int64s": list(numbers.categories) or [0]}
        values = values or [numbers.other]
    return graph.node("LabelEncoder", tensor, domain="ai.onnx.ml", values_floats=values, default_float=numbers.other, **keys)
