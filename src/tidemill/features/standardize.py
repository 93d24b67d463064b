"""Standardize: numbers shifted to mean 0 and scaled to standard deviation 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tidemill.core.sketch import Moments
from tidemill.features.builder import DOUBLE, Block, Builder
from tidemill.features.operator import Fit, Fitted, Kind, Made, Values, numbers
from tidemill.features.statistics import MeanAndStd


@dataclass(frozen=True, kw_only=True)
class Standardize:
    """(x - mean) / std, with the population's standard deviation of the training rows.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null, NaN                  | NaN; fitting leaves it out                                         |
    | +-infinity                 | +-infinity; fitting leaves it out, and what lies beyond +-1e145    |
    | integer beyond 2^53        | as the nearest float64                                             |
    | any number, std was 0      | 0 (infinity NaN)                                                   |
    """

    accepts: ClassVar[tuple[Kind, ...]] = ("number",)

    def fit(self, kind: Kind) -> Fit[Any] | Fitted:
        return MeanAndStd(_summary)

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        with np.errstate(all="ignore"):
            return Made({name: numbers((values.data - fitted["mean"]) / _divisor(fitted))})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        mean = graph.constant([[stats["mean"] for stats in fitted]], np.float64)
        divisor = graph.constant([[_divisor(stats) for stats in fitted]], np.float64)
        return block.take(block.names, graph.node("Div", graph.node("Sub", graph.numbers(block), mean), divisor), DOUBLE)


def _summary(seen: Moments) -> Fitted:
    constant = seen.count == 0 or seen.min == seen.max
    return {"mean": seen.mean, "std": 0.0 if constant else float(np.sqrt(seen.m2 / seen.count))}


def _divisor(fitted: Fitted) -> float:
    """The standard deviation; infinity in the place of 0, so that every finite number becomes 0."""
    return float(fitted["std"]) or float("inf")
