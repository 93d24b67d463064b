"""Flights with the weather at their airport and hour, and what the month was like for their airline there."""

from __future__ import annotations

import narwhals as nw

KEYS = ["carrier", "origin", "month", "year"]


def prepare(flights: nw.LazyFrame, weather: nw.LazyFrame) -> nw.LazyFrame:
    observed = weather.select("origin", "time_hour", "temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")
    joined = flights.join(observed, on=["origin", "time_hour"], how="left")
    months = joined.group_by(KEYS).agg(
        nw.len().alias("flights"), nw.col("arr_delay").mean().alias("mean_delay"), nw.col("wind_speed").mean().alias("mean_wind")
    )
    return joined.join(months, on=KEYS, how="left")
