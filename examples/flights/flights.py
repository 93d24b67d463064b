"""One row per flight, with what is known before it leaves: the schedule, the aircraft, the weather at that hour."""

from __future__ import annotations

import narwhals as nw

LATE_MINUTES = 15


def prepare(flights: nw.LazyFrame, weather: nw.LazyFrame, planes: nw.LazyFrame) -> nw.LazyFrame:
    """Join flights with hourly weather at the origin and with the aircraft.

    `arr_delay` gives the target and goes no further; cancelled and diverted flights, which have none, are left out.
    Departure delay, actual departure and arrival time and air time are known only afterwards and are never selected.
    """
    observed = weather.select(
        "origin", "time_hour", "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"
    )
    aircraft = planes.select("tailnum", nw.col("year").alias("built"), "manufacturer", "model", "engine", "seats")
    left = nw.col("sched_dep_time") // 100 * 60 + nw.col("sched_dep_time") % 100
    due = nw.col("sched_arr_time") // 100 * 60 + nw.col("sched_arr_time") % 100
    return (
        flights.filter(~nw.col("arr_delay").is_null())
        .with_columns(
            late=nw.col("arr_delay") >= LATE_MINUTES,
            departs_minute=left,
            arrives_minute=due,
            planned_minutes=(due - left + 1440) % 1440,
        )
        .join(observed, on=["origin", "time_hour"], how="left")
        .join(aircraft, on="tailnum", how="left")
        .with_columns(age=nw.col("year") - nw.col("built"))
        .select(
            "late", "time_hour", "carrier", "flight", "tailnum", "origin", "dest", "distance",
            "month", "day", "departs_minute", "arrives_minute", "planned_minutes",
            "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib",
            "age", "manufacturer", "model", "engine", "seats",
        )
    )  # fmt: skip
