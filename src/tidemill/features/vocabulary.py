"""Vocabulary: a category as its rank, one feature however many categories there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tidemill.features.builder import FLOAT, Block, Builder
from tidemill.features.categories import Codes, code_nodes, reference_codes
from tidemill.features.operator import Fit, Fitted, Kind, Made, Values, integers
from tidemill.features.statistics import Categories, Tally

# Integers up to here are exact in the float32 features.
LARGEST_CODE = 2**24


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Codes from 1 to V, by frequency or in the order of the categories themselves.

    By frequency 1 is the most frequent category, V the rarest that is kept, equally frequent ones in rising order of value.
    Codes 0 to V + 1 suit an embedding table of V + 2 rows.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null                       | V + 1, whether or not fitting saw one                              |
    | unseen or rare category    | 0                                                                  |
    | empty text, any Unicode    | categories like others, told apart by code point, not normalized   |
    | integer beyond 2^53        | exact: a category like others                                      |
    """

    max_size: int = field(default=1_000_000, metadata={"min": 1, "max": LARGEST_CODE - 2})
    """Categories that get a code of their own, in 1..16777214; the less frequent ones are rare."""
    min_count: int = field(default=2, metadata={"min": 1})
    """Rows that a category must have in training, or it is rare."""

    order: Literal["frequency", "value"] = "frequency"
    """frequency | value: texts that are all numbers as numbers, others by code point."""

    accepts: ClassVar[tuple[Kind, ...]] = ("string", "integer")

    def fit(self, kind: Kind) -> Fit[Any] | Fitted:
        return Categories(self._summary)

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        return Made({name: integers(reference_codes(values, _codes(fitted)))})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        tensors = code_nodes(graph, block, [_codes(stats) for stats in fitted])
        return Block(kind="integer", names=block.names, origins=block.origins, tensors=tensors, element=FLOAT)

    def _summary(self, seen: Tally) -> Fitted:
        kept = seen.ranked(size=self.max_size, min_count=self.min_count)
        if self.order == "value":
            kept.sort()
            if are_numbers(kept):
                kept.sort(key=float)
        return {"categories": kept}


def are_numbers(categories: Sequence[Any]) -> bool:
    """Whether each can be read as a finite number, as the codes of surveys can.

    Example:
        >>> are_numbers(["10", "-9", "2.5"]), are_numbers(["10", "nan"]), are_numbers(["10", "A1"])
        (True, False, False)
    """
    try:
        return all(math.isfinite(float(category)) for category in categories)
    except ValueError:
        return False


def _codes(fitted: Fitted) -> Codes:
    return Codes(fitted["categories"], 1, len(fitted["categories"]) + 1, 0)
