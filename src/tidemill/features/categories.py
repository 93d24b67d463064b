"""Numbers of categories as nodes, such as codes: one lookup per column, for texts and for integers of 64 bits, exact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.core.schema import NULL_STRING
from tidemill.features.builder import INT64, Block, Builder
from tidemill.features.cross import parted
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
        codes = np.arange(self.first, self.first + len(self.categories), dtype=np.float64).tolist()
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
    if block.parts:
        return tuple(_crossed(graph, parts, numbers) for parts, numbers in zip(block.parts, columns, strict=True))
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
    known: Mapping[Any, float] = dict(zip(numbers.categories, numbers.values, strict=True)) if len(values) else {}
    found = np.fromiter((known.get(value, numbers.other) for value in values.data.tolist()), np.float64, len(values))
    return np.where(values.known(), found, numbers.null)


def _crossed(graph: Builder, parts: Sequence[Block], numbers: Numbers) -> str:
    """Numbers of combinations of categories: each part's code by a lookup, the codes as digits of one whole number, which is looked up.

    In every part 0 is what no combination holds, so that no combination that is looked for has it.
    """
    combinations: list[list[str | None]] = [parted(category) for category in numbers.categories]
    digits: list[dict[str | None, int]] = [{None: 1} for _ in parts]
    for combination in combinations:
        for digit, text in zip(digits, combination, strict=True):
            digit.setdefault(text, len(digit) + 1)
    weights = [math.prod(len(later) + 1 for later in digits[i + 1 :]) for i in range(len(parts))]
    if weights[0] * (len(digits[0]) + 1) >= 2**63:
        raise ConfigError(f"features.{parts[0].names[0]}: a cross must have fewer than 2^63 combinations of its columns' categories")
    codes: list[str] = []
    for part, digit in zip(parts, digits, strict=True):
        texts = [text for text in digit if text is not None]
        known = texts if part.kind == "string" else [int(text) for text in texts]
        codes.append(*number_nodes(graph, part, [Numbers(known, [float(digit[text]) for text in texts], null=1.0, other=0.0)]))
    stacked = graph.cast(graph.stack(codes), INT64)
    place = graph.node("MatMul", stacked, graph.constant([[weight] for weight in weights], np.int64))
    of_null: list[str | None] = [None] * len(parts)
    wanted = [_place(digits, weights, combination) for combination in [*combinations, of_null]]
    values = [*numbers.values, numbers.null]
    return graph.node(
        "LabelEncoder", place, domain="ai.onnx.ml", keys_int64s=wanted, values_floats=values, default_float=float(numbers.other)
    )


def _place(digits: Sequence[Mapping[str | None, int]], weights: Sequence[int], combination: Sequence[str | None]) -> int:
    return sum(digit[text] * weight for digit, weight, text in zip(digits, weights, combination, strict=True))


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
