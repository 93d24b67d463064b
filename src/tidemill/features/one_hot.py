"""One-hot: a category as one feature per category, 1 where it is that one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from tidemill.features.builder import FLOAT, Block, Builder
from tidemill.features.categories import Codes, code_nodes, reference_codes
from tidemill.features.operator import Fit, Fitted, Kind, Made, Values, numbers
from tidemill.features.statistics import Categories, Tally


@dataclass(frozen=True, kw_only=True)
class OneHot:
    """Features `<column>=<category>`, most frequent first, then `<column>=(rare)` and `<column>=(null)` where fitting saw such.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null                       | 1 in `(null)`; all zeros where fitting saw no null                 |
    | unseen or rare category    | 1 in `(rare)`; all zeros where fitting saw no rare one             |
    | empty text, any Unicode    | categories like others, told apart by code point, not normalized   |
    | integer beyond 2^53        | exact: a category like others                                      |
    """

    max_categories: int = field(default=64, metadata={"min": 1, "max": 4096})
    """Categories that get a feature of their own, in 1..4096; the less frequent ones are rare."""
    min_count: int = field(default=1, metadata={"min": 1})
    """Rows that a category must have in training, or it is rare."""

    accepts: ClassVar[tuple[Kind, ...]] = ("string", "integer")

    def fit(self, kind: Kind) -> Fit[Any] | Fitted:
        return Categories(self._summary)

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        codes = reference_codes(values, _codes(fitted))
        return Made({feature: numbers(codes == code) for code, feature in enumerate(_names(name, fitted))})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        codes = graph.stack(code_nodes(graph, block, [_codes(stats) for stats in fitted]))
        names = [_names(name, stats) for name, stats in zip(block.names, fitted, strict=True)]
        if len(block) > 1:
            columns = [i for i, features in enumerate(names) for _ in features]
            codes = graph.node("Gather", codes, graph.constant(columns, np.int64), axis=1)
        wanted = graph.constant([[code for features in names for code in range(len(features))]], np.float32)
        hot = graph.cast(graph.node("Equal", codes, wanted), FLOAT)
        origins = tuple(origin for origin, features in zip(block.origins, names, strict=True) for _ in features)
        return block.take([feature for features in names for feature in features], hot, FLOAT, origins=origins)

    def _summary(self, seen: Tally) -> Fitted:
        kept = seen.ranked(size=self.max_categories, min_count=self.min_count)
        return {"categories": kept, "rare": len(kept) < len(seen.counts), "null": seen.nulls > 0}


def _codes(fitted: Fitted) -> Codes:
    """Code i is the column's i-th feature; -1 is none of them."""
    count = len(fitted["categories"])
    rare = count if fitted["rare"] else -1
    null = count + fitted["rare"] if fitted["null"] else -1
    return Codes(fitted["categories"], 0, null, rare)


def _names(column: str, fitted: Fitted) -> list[str]:
    labels = [str(category) for category in fitted["categories"]]
    for label, there in (("(rare)", fitted["rare"]), ("(null)", fitted["null"])):
        while label in labels:
            label = f"({label})"
        labels += [label] if there else []
    return [f"{column}={label}" for label in labels]
