"""Bin: numbers as the number of the interval they fall into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.features.builder import FLOAT, Block, Builder
from tidemill.features.operator import Fit, Fitted, Kind, Made, Values, integers
from tidemill.features.statistics import Distribution, Histogram


@dataclass(frozen=True, kw_only=True)
class Bin:
    """How many edges lie at or below the number: 0 below the first edge, E at or above the last of E edges.

    Its result is an integer, which `one_hot` and `vocabulary` take.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null, NaN                  | a bin of its own, E + 1; fitting leaves it out                     |
    | -infinity, +infinity       | the first, the last bin; fitting leaves them out                   |
    | integer beyond 2^53        | the bin of the nearest float64                                     |
    """

    bins: int = field(default=10, metadata={"min": 2, "max": 256})
    """Bins aimed at, in 2..256, the one of nulls not counted; equal quantiles become one."""
    by: Literal["quantile", "uniform"] = "quantile"
    """Equal shares of the rows (quantile), or equal widths between the lowest and highest number (uniform)."""
    edges: tuple[float, ...] | None = None
    """Rising edges in the place of fitted ones."""

    accepts: ClassVar[tuple[Kind, ...]] = ("number",)

    def check(self) -> None:
        if self.edges is None:
            return
        if not self.edges or not np.all(np.isfinite(self.edges)) or not np.all(np.diff(self.edges) > 0):
            raise ConfigError(f"bin: edges must be finite and rising, got {list(self.edges)}")

    def fit(self, kind: Kind) -> Fit[Any] | Fitted:
        return Distribution(self._edges) if self.edges is None else {"edges": list(self.edges)}

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        edges = np.asarray(fitted["edges"], np.float64)
        place = np.searchsorted(edges, values.data, side="right")
        return Made({name: integers(np.where(np.isnan(values.data), len(edges) + 1, place))})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        x = graph.numbers(block)
        # Columns with fewer edges are filled up with NaN, which nothing reaches.
        most = max(1, *(len(stats["edges"]) for stats in fitted))
        edges = [[*stats["edges"], *[np.nan] * (most - len(stats["edges"]))] for stats in fitted]
        reached = graph.node(
            "GreaterOrEqual", graph.node("Unsqueeze", x, graph.constant([2], np.int64)), graph.constant([edges], np.float64)
        )
        place = graph.node("ReduceSum", graph.cast(reached, FLOAT), graph.constant([2], np.int64), keepdims=0)
        null = graph.constant([[len(stats["edges"]) + 1 for stats in fitted]], np.float32)
        return block.take(block.names, graph.node("Where", graph.node("IsNaN", x), null, place), FLOAT, kind="integer")

    def _edges(self, seen: Histogram) -> Fitted:
        low, high = seen.quantiles([0.0, 1.0]) or (0.0, 0.0)
        shares = np.arange(1, self.bins) / self.bins
        edges = seen.quantiles(list(shares)) if self.by == "quantile" else (low * (1 - shares) + high * shares).tolist()
        return {"edges": sorted({edge for edge in edges if low < edge <= high})}
