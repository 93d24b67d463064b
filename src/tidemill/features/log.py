"""Log: numbers on a logarithmic scale, the sign kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tidemill.features.builder import DOUBLE, Block, Builder
from tidemill.features.operator import Fitted, Kind, Made, Values, numbers


@dataclass(frozen=True, kw_only=True)
class Log:
    """sign(x) ln(1 + |x|): ln(1 + x) for x >= 0, and its mirror image below, so that nothing falls out of the domain.

    1 + |x| is rounded to float64 before the logarithm, which loses what is below 1e-16.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null, NaN                  | NaN                                                                |
    | +-infinity                 | +-infinity                                                         |
    | integer beyond 2^53        | as the nearest float64                                             |
    """

    accepts: ClassVar[tuple[Kind, ...]] = ("number",)

    def fit(self, kind: Kind) -> Fitted:
        return {}

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        return Made({name: numbers(np.copysign(np.log(1.0 + np.abs(values.data)), values.data))})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        x = graph.numbers(block)
        size = graph.node("Log", graph.node("Add", graph.node("Abs", x), graph.constant([[1.0]], np.float64)))
        return block.take(block.names, graph.node("Mul", graph.node("Sign", x), size), DOUBLE)
