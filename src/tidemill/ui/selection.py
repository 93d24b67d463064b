"""Which features were left out after fitting, by which step, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill.ui.charts import bar
from tidemill.ui.collect import Report
from tidemill.ui.format import number, plain, shorten, words
from tidemill.ui.page import Section, details, join, table, tag

SHOWN_FEATURES = 40


def selection(report: Report) -> Section | None:
    """The steps of features.select with what each left, and every feature that left."""
    steps = report.find("features/features.json", "selected", "steps", default=[])
    dropped: Mapping[str, Mapping[str, Any]] = report.find("features/features.json", "selected", "dropped", default={})
    if not steps:
        return None
    first, last = steps[0].get("before", 0), steps[-1].get("after", 0)
    lead = f"{number(first - last)} of {number(first)} features were left out, looking at the training rows alone; {number(last)} stay."
    told = [(_step(step), number(step.get("before")), bar(_share(step, first), number(step.get("after")))) for step in steps]
    rows = [
        (tag("span", shorten(name, 60), title=name if len(name) > 60 else None), words(str(why.get("by", ""))), tag("span", why.get("reason", ""), class_="wrap"))
        for name, why in dropped.items()
    ]  # fmt: skip
    head = ("Feature", "Left out by", "Why")
    rest = rows[SHOWN_FEATURES:]
    return Section(
        id="selection",
        title="Selection",
        lead=lead,
        body=join(
            table(("Step", "Features before", "Features after"), told, caption="Steps of selection", numbers=(1,)),
            join(tag("h3", "Left out"), table(head, rows[:SHOWN_FEATURES], caption="Features left out")) if rows else None,
            details(f"{number(len(rest))} more features", table(head, rest, caption="Further features left out")) if rest else None,
        ),
    )


def _step(step: Mapping[str, Any]) -> Any:
    given = {key: value for key, value in (step.get("params") or {}).items() if value is not None}
    said = ", ".join(f"{key.replace('_', ' ')} {plain(value)}" for key, value in given.items())
    return join(words(str(step.get("op", ""))), tag("small", said) if said else None)


def _share(step: Mapping[str, Any], first: int) -> float:
    return float(step.get("after", 0)) / first if first else 0.0
