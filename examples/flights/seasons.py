"""The same rows as `flights.py`, cut to a part of the year, to play the passing of time."""

from __future__ import annotations

import narwhals as nw
from flights import prepare


def winter(flights: nw.LazyFrame, weather: nw.LazyFrame, planes: nw.LazyFrame) -> nw.LazyFrame:
    """January to March: what the first model learns from."""
    return prepare(flights, weather, planes).filter(nw.col("month") <= 3)


def spring_and_summer(flights: nw.LazyFrame, weather: nw.LazyFrame, planes: nw.LazyFrame) -> nw.LazyFrame:
    """January to August: what is known by the time that the first model has drifted."""
    return prepare(flights, weather, planes).filter(nw.col("month") <= 8)


def july(flights: nw.LazyFrame, weather: nw.LazyFrame, planes: nw.LazyFrame) -> nw.LazyFrame:
    """July alone: the live traffic."""
    return prepare(flights, weather, planes).filter(nw.col("month") == 7)
