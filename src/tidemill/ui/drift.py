"""The drift report: how far the rows of today lie from those that a model was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tidemill.core.events import now
from tidemill.ui.charts import Axis, bar, bars, line, pairs, plot, share_axis, sparkline
from tidemill.ui.collect import dig
from tidemill.ui.format import interval, moment, number, percent, plain, score, shorten, words
from tidemill.ui.page import Html, Section, badge, details, join, page, table, tag
from tidemill.ui.summary import icon

KINDS = {"stable": "good", "moderate": "warn", "severe": "bad"}
WORDS = {"stable": "Stable.", "moderate": "Moderate drift.", "severe": "Severe drift."}
ORDER = ("severe", "moderate", "stable")
CHARTS = 12
SHOWN_COLUMNS = 60
MOST_LABELS = 10


def render_drift(report: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        report: `name`, `version`, `reference` {"rows"}, `current` {"rows", "from", "to"}, `columns` and `prediction` (each
            `name`, `type`, `psi`, `js`, `ks`, null shares, `level`, and the binned shares of both sides), `quality` or null,
            `verdict` {"level", "text"}.
    """
    columns = sorted(report.get("columns") or [], key=_severity)
    made = (_prediction(report), _quality(report), _moved(columns), _columns(columns))
    sections = [section for section in made if section is not None]
    name = f"{report.get('name', 'model')} {report['version']}" if report.get("version") is not None else str(report.get("name", "model"))
    foot = tag("p", f"Made by Tidemill, {moment(report.get('at') or now())}. This page needs no network and holds no script.")
    return page(title=f"Drift of {name} \u00b7 Tidemill", header=_header(report, columns), sections=sections, footer=foot)


def _header(report: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> Html:
    version = report.get("version")
    title = tag("h1", report.get("name", "model"), tag("small", f"version {version}") if version is not None else None)
    start, end = (dig(report, "current", key) for key in ("from", "to"))
    entries = [
        ("Reference", f"{number(dig(report, 'reference', 'rows'))} rows of training"),
        ("Current", f"{number(dig(report, 'current', 'rows'))} rows"),
        ("From", moment(start) if start else None),
        ("To", moment(end) if end else None),
    ]
    facts = tag("dl", *(tag("div", tag("dt", key), tag("dd", value)) for key, value in entries if value), class_="meta")
    level = str(dig(report, "verdict", "level", default="stable"))
    said = tag("p", dig(report, "verdict", "text")) if dig(report, "verdict", "text") else None
    kind = KINDS.get(level, "plain")
    verdict = tag("div", icon(kind), tag("strong", WORDS.get(level, level)), said, class_=f"verdict {kind}")
    return tag("header", tag("p", "Drift report", class_="over"), title, facts, verdict, _figures(report, columns))


def _figures(report: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> Html:
    counts = {level: sum(column.get("level") == level for column in columns) for level in ORDER}
    tiles: list[tuple[str, Any, str]] = [
        ("Columns moved", f"{counts['severe'] + counts['moderate']} of {len(columns)}", f"{counts['severe']} severe, {counts['moderate']} moderate")
    ]  # fmt: skip
    if columns:
        tiles.append(("Furthest column", shorten(str(columns[0].get("name")), 18), f"PSI {_distance(columns[0].get('psi'))}"))
    prediction = report.get("prediction")
    if prediction:
        tiles.append(("Predictions", str(prediction.get("level", "")), f"PSI {_distance(prediction.get('psi'))}"))
    metric, before, current = _measured(report.get("quality"))
    if current is not None:
        tiles.append((words(metric), score(current), f"{score(before)} when packaged" if before is not None else "on labelled rows"))
    drawn = (tag("div", tag("dt", name), tag("dd", value, class_="value"), tag("dd", sub, class_="sub")) for name, value, sub in tiles)
    return tag("dl", *drawn, class_="figures")


def _prediction(report: Mapping[str, Any]) -> Section | None:
    found = report.get("prediction")
    if not found:
        return None
    lead = "What the model answered, beside what it answered on the rows that it was packaged with."
    return Section(id="prediction", title="Predictions", lead=lead, body=_overlay(found, wide=True))


def _quality(report: Mapping[str, Any]) -> Section | None:
    found = report.get("quality")
    if not isinstance(found, Mapping):
        return None
    metric, before, current = _measured(found)
    low, high = (dig(found, "current", key, default=dig(found, key)) for key in ("low", "high"))
    entries = [
        ("Now", join(score(current), f" ({interval(low, high)})" if low is not None else "") if current is not None else None),
        ("When packaged", score(before) if before is not None else None),
        ("Labelled rows", number(found["rows"]) if found.get("rows") is not None else None),
        *(
            (words(key), plain(value))
            for key, value in found.items()
            if key not in ("metric", "reference", "expected", "current", "value", "point", "low", "high", "rows")
            and isinstance(value, (str, int, float))
        ),
    ]
    facts = tag("dl", *(part for key, value in entries if value for part in (tag("dt", key), tag("dd", value))), class_="facts")
    return Section(id="quality", title="Quality", lead=f"{words(metric)} on the rows whose truth is known.", body=facts)


def _measured(found: Any) -> tuple[str, Any, Any]:
    """Metric, its value when packaged and its value now."""
    if not isinstance(found, Mapping):
        return "", None, None
    current = found.get("current", found.get("value", found.get("point")))
    before = found.get("expected", found.get("reference"))
    values = [value.get("point", value.get("value")) if isinstance(value, Mapping) else value for value in (before, current)]
    return str(found.get("metric", "quality")), values[0], values[1]


def _moved(columns: Sequence[Mapping[str, Any]]) -> Section | None:
    """A picture of each column that is no longer where it was, the furthest first."""
    moved = [column for column in columns if column.get("level") != "stable"]
    if not moved:
        return None
    drawn = [_overlay(column) for column in moved[:CHARTS]]
    lead = f"{len(moved)} of {len(columns)} columns, the furthest first."
    lead += f" The first {CHARTS} are drawn, the table below has all." if len(moved) > CHARTS else ""
    return Section(id="moved", title="What moved", lead=lead, body=tag("div", *drawn, class_="charts"))


def _columns(columns: Sequence[Mapping[str, Any]]) -> Section | None:
    if not columns:
        return None
    furthest = max((_number(column.get("psi")) for column in columns), default=0) or 1
    rows = [
        (
            join(tag("span", shorten(str(column.get("name", "")), 60)), tag("small", str(column.get("type", "")))),
            badge(str(column.get("level", "")), KINDS.get(str(column.get("level")), "plain")),
            bar(
                _number(column.get("psi")) / furthest,
                _distance(column.get("psi")),
                role="model" if column.get("level") != "stable" else "other",
            ),
            _distance(column.get("js")),
            _distance(column.get("ks")),
            _nulls(column),
            _small(column),
        )
        for column in columns
    ]
    head = ("Column", "Level", "PSI", "JS", "KS", "Nulls", "Then and now")
    shown = table(head, rows[:SHOWN_COLUMNS], caption="Columns by distance", numbers=(3, 4))
    rest = rows[SHOWN_COLUMNS:]
    more = details(f"{len(rest)} more columns", table(head, rest, caption="Further columns", numbers=(3, 4))) if rest else None
    lead = "PSI: population stability index; JS: Jensen-Shannon distance; KS: largest gap between the cumulated shares. 0 is no difference."
    return Section(id="columns", title="All columns", lead=lead, body=join(shown, more))


def _overlay(column: Mapping[str, Any], *, wide: bool = False) -> Html:
    """The reference as grey bars, today's rows as a line over them; categories as pairs of lying bars."""
    name = shorten(str(column.get("name", "prediction")), 48)
    before, after, labels, edges = _shares(column)
    note = join(
        badge(str(column["level"]), KINDS.get(str(column["level"]), "plain")) if column.get("level") else None,
        f" PSI {_distance(column.get('psi'))}",
        f", {percent(column['unseen'])} never seen before" if column.get("unseen") else "",
        f", nulls {_nulls(column)}" if column.get("null_share_reference") != column.get("null_share_current") else "",
    )
    if labels:
        shown = labels[:MOST_LABELS]
        keys = _keys("fill reference", "fill")
        body = pairs([shorten(label, 32) for label in shown], before, after)
        return tag("figure", tag("figcaption", name, tag("span", note)), keys, body, class_="chart")
    places, ticks = _places(edges, len(before), timestamp=column.get("type") == "timestamp")
    named = [f"{_edge(column, edges, i)}: {percent(b)}, now {percent(a)}" for i, (b, a) in enumerate(zip(before, after, strict=False))]
    outline = [point for i, share in enumerate(after) for point in ((places[i], share), (places[i + 1], share))]
    return plot(
        bars(places, before, role="reference", titles=named),
        line(outline, role="current", name="current"),
        x=Axis(low=places[0], high=places[-1], ticks=ticks),
        y=share_axis(max([*before, *after], default=1)),
        title=name,
        note=note,
        legend=[("fill reference", "reference"), ("current", "current")],
        class_="wide" if wide else "",
    )


def _shares(column: Mapping[str, Any]) -> tuple[list[float], list[float], list[str], list[Any]]:
    """Reference and current shares, and the labels or edges of their bins."""
    before = [_number(share) for share in dig(column, "reference", "shares", default=[])]
    after = [_number(share) for share in dig(column, "current", "shares", default=[])]
    labels = [plain(label) for label in dig(column, "reference", "labels", default=[])]
    edges = list(dig(column, "reference", "edges", default=[]))
    length = max(len(before), len(after), 1)
    return before + [0.0] * (length - len(before)), after + [0.0] * (length - len(after)), labels, edges


def _places(edges: Sequence[Any], bins: int, *, timestamp: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Where the bins' edges stand on the axis: to scale where the bins are about as wide as each other, else side by side."""
    known = [edge for edge in edges if isinstance(edge, (int, float)) and math.isfinite(edge)]
    widths = [b - a for a, b in pairwise(known)]
    if len(known) == bins + 1 and widths and min(widths) > 0 and max(widths) <= 4 * min(widths) and not timestamp:
        return [float(edge) for edge in known], []
    places = [float(index) for index in range(bins + 1)]
    if len(edges) != bins + 1:
        return places, [(0.0, ""), (float(bins), "")]
    every = max(1, math.ceil(bins / 4))
    inner = [index for index in range(1, bins) if index % every == 0]
    return places, [(float(index), _tick(edges[index], timestamp=timestamp)) for index in (inner or [bins])]


def _tick(edge: Any, *, timestamp: bool) -> str:
    if timestamp and isinstance(edge, (int, float)) and math.isfinite(edge):
        import datetime as dt

        return f"{dt.datetime.fromtimestamp(edge / 1e6, dt.UTC):%Y-%m-%d}"
    return number(edge, digits=3) if isinstance(edge, (int, float)) else plain(edge)


def _edge(column: Mapping[str, Any], edges: Sequence[Any], index: int) -> str:
    if len(edges) <= index + 1:
        return f"bin {index + 1}"
    timestamp = column.get("type") == "timestamp"
    return f"{_tick(edges[index], timestamp=timestamp)} to {_tick(edges[index + 1], timestamp=timestamp)}"


def _small(column: Mapping[str, Any]) -> Html | str:
    before, after, _, _ = _shares(column)
    if not any(before) and not any(after):
        return ""
    return sparkline(before, other=after, title=f"shares of {shorten(str(column.get('name', '')), 60)}, then and now")


def _nulls(column: Mapping[str, Any]) -> str:
    before, after = column.get("null_share_reference"), column.get("null_share_current")
    if not before and not after:
        return "none"
    return percent(after) if before == after else f"{percent(before or 0)} \u2192 {percent(after or 0)}"


def _keys(reference: str, current: str) -> Html:
    return tag(
        "ul",
        *(tag("li", tag("i", class_=f"key {role}"), name) for role, name in ((reference, "reference"), (current, "current"))),
        class_="legend",
    )


def _severity(column: Mapping[str, Any]) -> tuple[int, float]:
    level = str(column.get("level"))
    return (ORDER.index(level) if level in ORDER else len(ORDER), -_number(column.get("psi")))


def _distance(value: Any) -> str:
    return (
        f"{value:.3f}" if isinstance(value, (int, float)) and math.isfinite(value) else ("\u221e" if isinstance(value, float) else "\u2013")
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0
