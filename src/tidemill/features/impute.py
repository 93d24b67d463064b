"""Impute: nulls filled with a statistic or a constant, and whether they were null as a feature beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.core.schema import NULL_STRING
from tidemill.core.sketch import Moments
from tidemill.features.builder import BOOL, DOUBLE, Block, Builder
from tidemill.features.operator import Fit, Fitted, Kind, Made, Values, numbers
from tidemill.features.statistics import Categories, Distribution, Histogram, MeanAndStd, Tally


@dataclass(frozen=True, kw_only=True)
class Impute:
    """Null becomes a fill value; a feature `<column>.missing` may say where.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null, NaN                  | the fill value; 0 (or empty text) where fitting saw only nulls     |
    | +-infinity                 | itself; fitting leaves it out                                      |
    | integer beyond 2^53        | the nearest float64                                                |
    | any text, also empty       | itself                                                             |
    """

    strategy: Literal["mean", "median", "most_frequent", "constant"] | None = None
    """What fills a null: mean | median | most_frequent | constant; median for numbers and most_frequent for text when absent."""
    value: float | str | None = None
    """The constant, a number or text like the column; only with strategy constant."""
    indicator: bool | Literal["auto"] = "auto"
    """Whether `<column>.missing` (0 or 1) is a feature too; auto: only where fitting saw nulls."""

    accepts: ClassVar[tuple[Kind, ...]] = ("number", "string")

    def check(self) -> None:
        if (self.strategy == "constant") != (self.value is not None):
            raise ConfigError("impute: strategy constant and a value must be given together")
        if isinstance(self.value, float) and not np.isfinite(self.value):
            raise ConfigError(f"impute: value must be finite, got {self.value}")

    def fit(self, kind: Kind) -> Fit[Any] | Fitted:
        if kind == "string":
            if self.strategy in ("mean", "median"):
                raise ConfigError(
                    f"impute: strategy {self.strategy} needs numbers, the column holds text", hint="most_frequent or constant"
                )
            self._check_constant(str, "text")
            return Categories(self._fill_of_texts)
        self._check_constant((int, float), "a number")
        return MeanAndStd(self._mean) if self.strategy == "mean" else Distribution(self._fill_of_numbers)

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        null = ~values.known()
        if values.kind == "string":
            filled = Values("string", values.data.copy())
            filled.data[null] = fitted["fill"]
        else:
            filled = numbers(np.where(null, float(fitted["fill"]), values.data))
        return Made({name: filled}, {f"{name}.missing": numbers(null)} if fitted["indicator"] else {})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        if block.kind == "string":
            return self._text_nodes(graph, block, fitted)
        x = graph.numbers(block)
        null = graph.node("IsNaN", x)
        marked = [i for i, stats in enumerate(fitted) if stats["indicator"]]
        if marked:
            taken = null if len(marked) == len(block) else graph.node("Gather", null, graph.constant(marked, np.int64), axis=1)
            _emit_missing(graph, block, marked, (taken,))
        fill = graph.constant([[float(stats["fill"]) for stats in fitted]], np.float64)
        return replace(block, tensors=(graph.node("Where", null, fill, x),), element=DOUBLE, valid=())

    def _text_nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        tensors, missing = [], []
        for tensor, stats in zip(graph.split(block), fitted, strict=True):
            null = graph.node("Equal", tensor, graph.constant([[NULL_STRING]], object))
            tensors.append(graph.node("Where", null, graph.constant([[stats["fill"]]], object), tensor))
            missing.append(null)
        marked = [i for i, stats in enumerate(fitted) if stats["indicator"]]
        if marked:
            _emit_missing(graph, block, marked, tuple(missing[i] for i in marked))
        return replace(block, tensors=tuple(tensors))

    def fill_of(self, fitted: Fitted) -> float:
        """What null numbers become; nothing else changes."""
        return float(fitted["fill"])

    def _check_constant(self, types: Any, wanted: str) -> None:
        if self.value is not None and not isinstance(self.value, types):
            raise ConfigError(f"impute: value must be {wanted} like the column, got {self.value!r}")

    def _with_indicator(self, fill: Any, nulls: int) -> Fitted:
        return {"fill": fill, "indicator": nulls > 0 if self.indicator == "auto" else self.indicator}

    def _mean(self, seen: Moments) -> Fitted:
        return self._with_indicator(seen.mean, seen.nulls)

    def _fill_of_numbers(self, seen: Histogram) -> Fitted:
        if self.strategy == "constant":
            fill = self.value
        elif self.strategy == "most_frequent":
            fill = seen.most_frequent()
        else:
            fill = next(iter(seen.quantiles([0.5])), None)
        return self._with_indicator(fill or 0.0, seen.nulls)

    def _fill_of_texts(self, seen: Tally) -> Fitted:
        ranked = seen.ranked(size=1)
        return self._with_indicator(self.value if self.value is not None else ranked[0] if ranked else "", seen.nulls)


def _emit_missing(graph: Builder, block: Block, marked: Sequence[int], tensors: tuple[str, ...]) -> None:
    names = tuple(f"{block.names[i]}.missing" for i in marked)
    origins = tuple(block.origins[i] for i in marked)
    graph.emit(Block(kind="integer", names=names, origins=origins, tensors=tensors, element=BOOL))
