"""The data of a run: rows by split, what is suspicious, what was checked, and every column in one line."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.ui.charts import bar, sparkline
from tidemill.ui.collect import Report, dig
from tidemill.ui.format import number, percent, plain, shorten
from tidemill.ui.page import Html, Section, badge, details, join, table, tag
from tidemill.ui.summary import leakage

SHOWN_COLUMNS = 60
TOP = 3
SPLITS = {"train": "training", "valid": "validation", "test": "test"}


def data(report: Report) -> Section | None:
    """Splits, leakage, checks and the profile of the columns."""
    rows: Mapping[str, int] = report.find("data/schema.json", "rows", default={})
    columns = profile_columns(report)
    if not rows and not columns:
        return None
    target = report.find("data/schema.json", "target")
    roles = _roles(report, columns)
    lead = f"{number(sum(rows.values()))} rows and {len(columns) or len(report.find('data/schema.json', 'columns', default=[]))} columns"
    lead += f"; the target is {target}." if target else "."
    return Section(
        id="data",
        title="Data",
        lead=lead,
        body=join(_splits(rows), _leakage(report, roles), _checks(report), _columns(columns, roles)),
    )


def profile_columns(report: Report) -> list[Mapping[str, Any]]:
    """The profile's columns as a list, each with its name."""
    found = report.find("data/profile.json", "columns", default=report.files.get("data/profile.json", []))
    if isinstance(found, Mapping):
        return [{"name": name, **column} for name, column in found.items() if isinstance(column, Mapping)]
    return [column for column in found if isinstance(column, Mapping)]


def _splits(rows: Mapping[str, int]) -> Html | None:
    total = sum(rows.values())
    if not total:
        return None
    parts = tag("div", *(tag("i", style=f"flex:{count}") for count in rows.values() if count), class_="parts", aria_hidden="true")
    keys = [
        tag("li", tag("i", class_=f"key p{index}"), SPLITS.get(split, split), " ", tag("b", number(count)), " ", percent(count / total))
        for index, (split, count) in enumerate((split, count) for split, count in rows.items() if count)
    ]
    return tag("figure", parts, tag("ul", *keys, class_="legend"), aria_label="Rows by split")


def _leakage(report: Report, roles: Mapping[str, str]) -> Html | None:
    found = leakage(report)
    if not found:
        return None
    rows = [
        (
            _named(str(dig(item, "column") or "rows"), roles.get(str(dig(item, "column")))),
            badge(str(dig(item, "kind") or "leakage").replace("_", " "), "warn"),
            tag("span", str(dig(item, "message") or item), class_="wrap"),
            number(dig(item, "value")) if dig(item, "value") is not None else "",
        )
        for item in found
    ]
    columns = ("Where", "Sign", "What was found", "Value")
    return join(tag("h3", "Leakage"), table(columns, rows, caption="Signs of leakage", numbers=(3,)))


def _checks(report: Report) -> Html | None:
    found = report.files.get("data/checks.json")
    found = dig(found, "checks", default=[]) if isinstance(found, Mapping) else found
    if not found:
        return None
    rows = []
    for item in found:
        failed = dig(item, "failed", default=dig(item, "violations", default=dig(item, "count", default=0)))
        passed = dig(item, "passed", default=not failed)
        kind = "warn" if dig(item, "severity") == "warn" else "bad"
        state = badge("passed", "good") if passed else badge(f"{number(failed)} rows failed" if failed else "failed", kind)
        given = [dig(item, "rule", default=dig(item, "check")), dig(item, "limit", default=dig(item, "value"))]
        samples = dig(item, "samples", default=dig(item, "sample", default=[]))
        said = shorten(plain(samples), 120) if samples else ""
        rows.append((str(dig(item, "column", default="rows")), " ".join(plain(part) for part in given if part is not None), state, said))
    return join(tag("h3", "Checks"), table(("Column", "Rule", "Result", "For example"), rows, caption="Declared checks"))


def _roles(report: Report, columns: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a column is, where it is no input: target, key, weight, or not used."""
    named = dict.fromkeys(report.find("data/schema.json", "keys", default=[]), "key")
    for role in ("target", "weight"):
        if found := report.find("data/schema.json", role):
            named[str(found)] = role
    inputs = {column.get("name") for column in report.find("features/features.json", "inputs", default=[])}
    unused = {str(column["name"]): "not used" for column in columns if inputs and column.get("name") not in inputs}
    return {**unused, **named}


def _columns(columns: Sequence[Mapping[str, Any]], roles: Mapping[str, str]) -> Html | None:
    if not columns:
        return None
    ordered = sorted(columns, key=lambda column: roles.get(str(column.get("name"))) != "target")
    rows = [_column(column, roles.get(str(column.get("name")))) for column in ordered]
    head = ("Column", "Type", "Nulls", "Distinct", "Range", "Distribution")
    numbers = (3,)
    shown = table(head, rows[:SHOWN_COLUMNS], caption="Columns", numbers=numbers)
    rest = rows[SHOWN_COLUMNS:]
    more = details(f"{len(rest)} more columns", table(head, rest, caption="Further columns", numbers=numbers)) if rest else None
    return join(tag("h3", "Columns"), shown, more)


def _column(column: Mapping[str, Any], role: str | None) -> tuple[Any, ...]:
    name = str(column.get("name", ""))
    rows = column.get("rows") or 0
    nulls = column.get("nulls") or 0
    share = nulls / rows if rows else 0
    return (
        _named(name, role),
        str(column.get("type", "")),
        bar(share, percent(share), role="warn" if share > 0.5 else "other") if nulls else tag("span", "none", class_="over"),
        number(column.get("distinct")) if column.get("distinct") is not None else "",
        _range(column),
        _distribution(column),
    )


def _named(name: str, role: str | None) -> Html:
    return join(tag("span", shorten(name, 60), title=name if len(name) > 60 else None), tag("small", role) if role else None)


def _range(column: Mapping[str, Any]) -> Any:
    low, high = column.get("min"), column.get("max")
    if low is None or high is None or column.get("type") in ("string", "boolean"):
        return ""
    show = _day if column.get("type") == "timestamp" else number
    mean = column.get("mean")
    about = f"mean {number(mean)}" if isinstance(mean, (int, float)) and column.get("type") != "timestamp" else None
    return join(f"{show(low)} to {show(high)}", tag("small", about) if about else None)


def _distribution(column: Mapping[str, Any]) -> Any:
    edges, counts = histogram_of(column)
    if counts:
        about = f"histogram of {shorten(str(column.get('name', '')), 60)}"
        return sparkline(counts, title=about if not edges else f"{about} from {plain(edges[0])} to {plain(edges[-1])}")
    rows = column.get("rows") or 0
    top = top_values(column)
    if not top:
        return ""
    named = [
        tag("span", f"{shorten(plain(value), 24)} ", tag("i", percent(count / rows, digits=0) if rows else number(count)))
        for value, count in top[:TOP]
    ]
    return tag("div", *named, class_="chips")


def histogram_of(column: Mapping[str, Any]) -> tuple[list[Any], list[float]]:
    """Edges and counts of a column's histogram, empty where it has none."""
    found = column.get("histogram") or {}
    edges = dig(found, "edges", default=dig(found, "bins", default=[]))
    return list(edges), [count for count in dig(found, "counts", default=[]) if isinstance(count, (int, float))]


def top_values(column: Mapping[str, Any]) -> list[tuple[Any, int]]:
    """A column's most frequent values with their counts, the most frequent first."""
    found = column.get("top") or column.get("top_values") or []
    if isinstance(found, Mapping):
        found = list(found.items())
    pairs = [(item.get("value"), item.get("count", 0)) if isinstance(item, Mapping) else (item[0], item[1]) for item in found]
    return sorted(pairs, key=lambda pair: -pair[1])


def _day(value: Any) -> str:
    """The day of a time in ISO 8601, or in microseconds."""
    if isinstance(value, (int, float)):
        value = dt.datetime.fromtimestamp(value / 1e6, dt.UTC).isoformat()
    return str(value)[:10]
