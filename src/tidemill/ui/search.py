"""What a search over parameters showed beside its trials: what mattered, how values go together, what it started from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.ui.charts import Axis, Mark, bar, line, plot
from tidemill.ui.collect import Report
from tidemill.ui.format import number, percent, plain, score, shorten, words
from tidemill.ui.page import Html, join, table, tag

# Parallel lines beyond which a picture says nothing.
MAX_LINES = 120
GOOD_SHARE = 0.2


def told(report: Report) -> str:
    """How the search went beyond its trials, in sentences; empty where nothing is known of it."""
    search = report.files.get("tune/search.json")
    if not isinstance(search, Mapping):
        return ""
    said = []
    if search.get("starts"):
        said.append(f"It began with {len(search['starts'])} settings that did well on other tables.")
    if search.get("studies"):
        said.append(f"It learnt from earlier searches on other tables, {len(search['studies'])} in all.")
    if search.get("narrowed"):
        sentence = str(search["narrowed"].get("said", ""))
        said.append(f"The {sentence}.")
    if (search.get("workers") or 1) > 1:
        said.append(f"{search['workers']} processes searched.")
    return " ".join(said)


def ranges(report: Report) -> Mapping[str, Sequence[float]]:
    """What each parameter was narrowed to, by path."""
    found: Mapping[str, Sequence[float]] = report.find("tune/search.json", "narrowed", "ranges", default={})
    return found


def importance(report: Report) -> Html | None:
    """Each parameter's share of what the trials differ in."""
    found = report.find("tune/search.json", "importance", default={})
    shares = sorted(((name, value) for name, value in found.items() if _finite(value)), key=lambda item: -item[1])
    if not shares or not shares[0][1] > 0:
        return None
    fixed = report.find("tune/search.json", "narrowed", "fixed", default={})
    rows = [
        (
            words(name.removeprefix("model.")),
            bar(share / shares[0][1], percent(share)),
            f"fixed at {plain(fixed[name])}" if name in fixed else "",
        )
        for name, share in shares
    ]
    columns = ("Parameter", "Share of the differences between trials", *(("Narrowing",) if fixed else ()))
    drawn = table(columns, [row[: len(columns)] for row in rows], caption="Parameters by importance", class_="importance")
    return join(tag("h3", "What mattered"), drawn)


def parallel(done: Sequence[Mapping[str, Any]], *, lower: bool) -> Html | None:
    """A line for each trial through its values, those of the best trials in colour."""
    names = list({name: None for trial in done for name in trial.get("params", {})})
    if len(done) < 8 or len(names) < 2:
        return None
    ranked = sorted(done, key=lambda trial: trial["value"], reverse=not lower)
    good = ranked[: max(1, round(len(ranked) * GOOD_SHARE))]
    others = ranked[len(good) :][:MAX_LINES]
    scales = [_scale([trial["params"][name] for trial in done if name in trial["params"]]) for name in names]

    def through(trial: Mapping[str, Any]) -> list[tuple[float, float]]:
        params = trial["params"]
        return [
            (at, scale(params[name]) if name in params else math.nan) for at, (name, scale) in enumerate(zip(names, scales, strict=True))
        ]

    marks: list[Mark] = [line(through(trial), role="thin", name=_named(trial)) for trial in reversed(others)]
    marks += [line(through(trial), role="model", name=_named(trial)) for trial in reversed(good)]
    x = Axis(
        low=-0.25, high=len(names) - 0.75, ticks=[(at, shorten(words(name.removeprefix("model.")), 14)) for at, name in enumerate(names)]
    )
    y = Axis(low=-0.04, high=1.04, ticks=[(0.0, "least"), (1.0, "most")])
    legend = [("model", f"the best {len(good)}"), ("thin", "other complete trials")]
    return plot(
        *marks,
        x=x,
        y=y,
        title="Values that go together",
        note="each parameter from its least to its greatest value tried",
        legend=legend,
        class_="wide",
    )


def starts(report: Report, trials: Sequence[Mapping[str, Any]]) -> Html | None:
    """Where the first settings came from, and what they reached; or the tables that were learnt from, the nearest first."""
    found = report.find("tune/search.json", "starts", default=[])
    if not found:
        return _tables(report.find("tune/search.json", "studies", default=[]))
    values = {trial.get("number"): trial for trial in trials}
    rows = []
    for place, start in enumerate(found, start=1):
        trial = values.get(place, {})
        reached = score(trial["value"]) if _finite(trial.get("value")) else str(trial.get("state", "\u2013"))
        rows.append((number(place), str(start.get("from", "")), reached))
    return join(tag("h3", "Warm start"), table(("Trial", "From", "Value"), rows, caption="Settings tried first", numbers=(2,)))


def _tables(studies: Sequence[Mapping[str, Any]]) -> Html | None:
    if not studies:
        return None
    rows = [(str(study.get("name", "")), score(study.get("distance"))) for study in studies]
    return join(tag("h3", "Learnt from"), table(("Search", "Distance of its table"), rows, caption="Tables learnt from", numbers=(1,)))


def _scale(values: Sequence[Any]) -> Any:
    """From a value to its place in 0..1: by logarithm where they span a thirtyfold, by place where they are no numbers."""
    if all(_finite(value) for value in values):
        low, high = min(values), max(values)
        if low > 0 and high / low >= 30:
            span = math.log(high / low)
            return lambda value: math.log(value / low) / span
        return lambda value: (value - low) / (high - low) if high > low else 0.5
    choices = sorted({plain(value) for value in values})
    return lambda value: choices.index(plain(value)) / max(1, len(choices) - 1)


def _named(trial: Mapping[str, Any]) -> str:
    return f"trial {trial.get('number')} {score(trial['value'])}: {plain(trial.get('params', {}))}"


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
