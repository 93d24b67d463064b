"""Embedding: a category's code, and the size of the table that a network shall learn for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tidemill.core.errors import ConfigError
from tidemill.core.load import load
from tidemill.features.builder import Block, Builder
from tidemill.features.operator import Fit, Fitted, Kind, Made, Values
from tidemill.features.reference import operator_of, statistics_of
from tidemill.features.vocabulary import LARGEST_CODE, Vocabulary

# Width of a table by its rows, where the project does not say it: 1.6 rows^0.56, at most 600 (fastai).
MAX_WIDTH = 600


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """The codes of `vocabulary`, 0 to V + 1, for which a network keeps a learned table of V + 2 rows; the last step of a column.

    `features.json` says each such feature's rows and width. Models without tables refuse it: `vocabulary` is for them.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null                       | V + 1, whether or not fitting saw one                              |
    | unseen or rare category    | 0                                                                  |
    | empty text, any Unicode    | categories like others, told apart by code point, not normalized   |
    | integer beyond 2^53        | exact: a category like others                                      |
    """

    width: int | None = field(default=None, metadata={"min": 1, "max": 4096})
    """Numbers that a network learns for each category, in 1..4096; 1.6 rows^0.56, at most 600, when absent."""
    max_size: int = field(default=1_000_000, metadata={"min": 1, "max": LARGEST_CODE - 2})
    """Categories that get a row of their own, in 1..16777214; the less frequent ones are rare."""
    min_count: int = field(default=2, metadata={"min": 1})
    """Rows that a category must have in training, or it is rare."""

    accepts: ClassVar[tuple[Kind, ...]] = ("string", "integer")

    def fit(self, kind: Kind) -> Fit[Any] | Fitted:
        return self._vocabulary().fit(kind)

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        return self._vocabulary().reference(name, values, fitted)

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        return self._vocabulary().nodes(graph, block, fitted)

    def table(self, fitted: Fitted) -> dict[str, int]:
        """Rows and width of the table that belongs to these statistics."""
        rows = len(fitted["categories"]) + 2
        return {"rows": rows, "width": self.width or min(MAX_WIDTH, round(1.6 * rows**0.56))}

    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(max_size=self.max_size, min_count=self.min_count)


def tables(description: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Rows and width of the learned table of each feature that wants one.

    Raises:
        ConfigError: If a step follows an embedding: codes are no numbers to compute with.
    """
    chains = {**description["columns"], **{name: made["steps"] for name, made in description.get("derived", {}).items()}}
    found: dict[str, dict[str, int]] = {}
    for column, steps in chains.items():
        for place, step in enumerate(steps):
            operator = operator_of(step)
            if isinstance(operator, Embedding):
                if place + 1 < len(steps):
                    raise ConfigError(f"features.{column}: embedding must be the last step, {steps[place + 1]['op']} follows")
                found |= {name: operator.table(stats) for name, stats in statistics_of(step, [column]).items()}
    return {name: table for name, table in found.items() if name in description["names"]}


def refuse_without_tables(steps: Mapping[str, Sequence[Mapping[str, Any]]], kind: str) -> None:
    """Raise ConfigError where a column ends in an embedding and the built kind of model learns no tables.

    A kind of one's own, "module:name", gets the codes and reads their tables from `features.json`.
    """
    asked = next((column for column, chain in steps.items() if any(step["op"] == "embedding" for step in chain)), None)
    if asked is not None and ":" not in kind and not getattr(load("model", kind), "embeds", False):
        raise ConfigError(
            f"features.{asked}: embedding needs a network that learns its table, model.kind is {kind!r}",
            hint="vocabulary gives the same codes",
        )
