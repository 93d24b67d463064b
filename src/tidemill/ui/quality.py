"""How good the answers are on the test split: metrics, curves, calibration, errors, slices, parity."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from tidemill.ui.charts import Axis, Mark, bars, diagonal, dots, line, plot, rule, share_axis, spread
from tidemill.ui.collect import Report, dig
from tidemill.ui.format import date, interval, number, percent, score, shorten, words
from tidemill.ui.page import Html, Section, badge, details, join, table, tag
from tidemill.ui.summary import headline, less_is_better

FILE = "package/evidence/quality.json"
CURVES = 8
SHOWN_SLICES = 12


def quality(report: Report) -> Section | None:
    """Metrics with intervals beside the baseline and the trivial model, and the curves behind them."""
    found = report.files.get(FILE)
    metrics = dig(found, "metrics", default={})
    if not metrics:
        return _validation_only(report)
    rows = dig(found, "rows")
    curves = dig(found, "curves", default={})
    charts = [
        _curve(
            curves.get("roc"), title="ROC", x="false positive rate", y="true positive rate", value=_point(metrics, "roc_auc"), chance=True
        ),
        _curve(
            curves.get("pr"), title="Precision and recall", x="recall", y="precision", value=_point(metrics, "average_precision", "pr_auc")
        ),
        _calibration(curves.get("calibration"), str(dig(found, "task", default=report.find("data/schema.json", "task", default="binary")))),
        _scatter(curves.get("scatter")),
        _residuals(curves.get("residuals")),
    ]
    drawn = [chart for chart in charts if chart]
    return Section(
        id="quality",
        title="Quality",
        lead=f"Measured once, on {number(rows)} rows that nothing before the gate had seen." if rows else "Measured on the test split.",
        body=join(
            _metrics(found, headline(report)),
            tag("div", *drawn, class_="charts") if drawn else None,
            _confusion(curves.get("confusion")),
            _intervals(report.files.get("package/evidence/interval.json")),
        ),
    )


def slices(report: Report) -> Section | None:
    """Where the model does worse: the test split by values of its columns, the worst first."""
    found = [row for row in report.find(FILE, "slices", default=[]) if isinstance(_reached(row), (int, float))]
    if not found:
        return None
    metric = str(found[0].get("metric") or headline(report) or "")
    ordered = sorted(found, key=_reached, reverse=less_is_better(metric))
    overall = report.find(FILE, "metrics", metric, "point")
    low, high = spread([*(value for row in found for value in (_reached(row), row.get("low"), row.get("high"))), overall], room=0.06)
    axis = Axis(low=low, high=high, label=words(metric))
    rows = [
        (
            join(shorten(str(row.get("column", "")), 60), " ", tag("code", shorten(label(row.get("value")), 60))),
            number(row.get("rows")),
            score(_reached(row)),
            _gap(_reached(row), overall),
            _place(axis, row, overall),
        )
        for row in ordered
    ]
    columns = ("Slice", "Rows", words(metric), "Against all", "With its interval" if "low" in found[0] else "")
    shown = table(columns, rows[:SHOWN_SLICES], caption="Slices, the worst first", numbers=(1, 2, 3))
    rest = rows[SHOWN_SLICES:]
    more = details(f"{len(rest)} more slices", table(columns, rest, caption="Further slices", numbers=(1, 2, 3))) if rest else None
    lead = f"{words(metric)} on parts of the test split, the worst first"
    return Section(
        id="slices",
        title="Slices",
        lead=f"{lead}; the upright line marks all rows, {score(overall)}." if overall is not None else f"{lead}.",
        body=join(shown, more),
    )


def parity(report: Report) -> Section | None:
    """Whether the packaged graph answers as the library that trained the model."""
    found = report.files.get("package/evidence/parity.json")
    worst = dig(found, "max_difference", default=dig(found, "max_abs_difference"))
    if worst is None:
        return None
    limit = dig(found, "limit")
    kept = limit is None or worst <= limit
    entries = [
        ("Largest difference", join(number(worst, digits=3), " ", badge("kept", "good") if kept else badge("broken", "bad"))),
        ("Allowed", number(limit, digits=3) if limit is not None else None),
        ("Rows compared", number(dig(found, "rows")) if dig(found, "rows") is not None else None),
        ("Against", dig(found, "against") or dig(found, "path")),
        ("Mean difference", number(dig(found, "mean_difference"), digits=3) if dig(found, "mean_difference") is not None else None),
        ("Date", date(dig(found, "at")) if dig(found, "at") else None),
    ]
    facts = tag("dl", *(part for name, value in entries if value for part in (tag("dt", name), tag("dd", value))), class_="facts")
    lead = "The packaged graph against an independent path: reference operators and the library's own prediction, from raw rows."
    return Section(id="parity", title="Parity", lead=lead, body=facts)


def _metrics(found: Any, headlined: str | None) -> Html:
    metrics: Mapping[str, Any] = found["metrics"]
    others = [
        (role, name)
        for role, name in (("baseline", "Linear baseline"), ("trivial", "Trivial model"))
        if any(_other(found, role, metric) is not None for metric in metrics)
    ]
    names = sorted(metrics, key=lambda name: name != headlined)
    rows = [
        (
            join(words(name), tag("small", "less is better") if less_is_better(name) else None),
            score(dig(metrics[name], "point")),
            interval(dig(metrics[name], "low"), dig(metrics[name], "high")),
            *(score(_other(found, role, name)) for role, _ in others),
        )
        for name in names
    ]
    columns = ("Metric", "This model", "95 % interval", *(name for _, name in others))
    return table(columns, rows, caption="Metrics on the test split", numbers=range(1, len(columns)))


def _intervals(found: Any) -> Html | None:
    """What the intervals hold and how wide they are, beside the range that holds as much without a model."""
    if dig(found, "coverage") is None:
        return None
    kept = dig(found, "high", default=1.0) >= dig(found, "level", default=0.0)
    entries = [
        ("Made to hold", percent(dig(found, "level"))),
        ("Held", join(percent(found["coverage"]), " ", badge("as made", "good") if kept else badge("too few", "warn"))),
        ("95 % interval", f"{percent(dig(found, 'low'))} to {percent(dig(found, 'high'))}"),
        ("True value below, above", f"{percent(dig(found, 'below'))}, {percent(dig(found, 'above'))}"),
        ("Width, mean and median", f"{number(dig(found, 'mean_width'), digits=4)}, {number(dig(found, 'median_width'), digits=4)}"),
        ("Width without the model", number(dig(found, "target_width"), digits=4)),
    ]
    facts = tag("dl", *(part for name, value in entries for part in (tag("dt", name), tag("dd", value))), class_="facts")
    return join(tag("h3", "Intervals"), facts)


def _validation_only(report: Report) -> Section | None:
    """What training measured, where no package was scored."""
    valid: Mapping[str, Any] = report.find("train/train.json", "metrics", "valid", default={})
    if not valid:
        return None
    train: Mapping[str, Any] = report.find("train/train.json", "metrics", "train", default={})
    base = report.find("train/train.json", "baseline", "metrics", default={})
    base = base.get("valid", base)
    rows = [(words(name), score(value), score(train.get(name)), score(base.get(name))) for name, value in valid.items()]
    columns = ("Metric", "Validation", "Training", "Linear baseline")
    lead = "On the validation split; the test split is read only when a package is made."
    return Section(id="quality", title="Quality", lead=lead, body=table(columns, rows, caption="Metrics", numbers=(1, 2, 3)))


def _curve(found: Any, *, title: str, x: str, y: str, value: Any, chance: bool = False) -> Html | None:
    """One curve, or one for each class."""
    if not found:
        return None
    named = list(found.items())[:CURVES] if isinstance(found, Mapping) else [("this model", found)]
    roles = ["model" if index == 0 else f"c{index}" for index in range(len(named))]
    marks: list[Mark] = [diagonal()] if chance else []
    marks += [
        line(points, role=role, name=str(name), area=len(named) == 1 and chance) for (name, points), role in zip(named, roles, strict=True)
    ]
    legend = [(role, shorten(str(name), 24)) for (name, _), role in zip(named, roles, strict=True)] if len(named) > 1 else []
    note = f"area {score(value)}" if value is not None else None
    return plot(*marks, x=Axis(low=0, high=1, label=x), y=Axis(low=0, high=1, label=y), title=title, note=note, legend=legend)


def _points(found: Any, x: str, y: str) -> Any:
    """A curve as points, or one for each class, from lists of its coordinates or from points as they are."""
    if not isinstance(found, Mapping):
        return found
    if x in found and y in found:
        return list(zip(found[x], found[y], strict=False))
    return {name: _points(inner, x, y) for name, inner in found.items()}


def _calibration(found: Any, task: str) -> Html | None:
    """Predicted against observed; the bars show where predictions lie."""
    known = [point for point in found or [] if point.get("observed") is not None and point.get("predicted") is not None]
    if not known:
        return None
    counts = [point.get("rows", point.get("count", 0)) for point in known]
    titles = [
        f"predicted {number(point['predicted'])}, observed {number(point['observed'])}, {number(count)} rows"
        for point, count in zip(known, counts, strict=True)
    ]
    ends = (0.0, 1.0) if task != "regression" else spread([value for point in known for value in (point["predicted"], point["observed"])])
    centers = [point["predicted"] for point in known]
    edges = [ends[0], *((a + b) / 2 for a, b in pairwise(centers)), ends[1]]
    if all("low" in point for point in known):
        edges = [*(point["low"] for point in known), known[-1]["high"]]
    density = [count / max(b - a, 1e-3 * (ends[1] - ends[0])) for count, a, b in zip(counts, edges[:-1], edges[1:], strict=True)]
    highest = max(density, default=0) or 1
    heights = [ends[0] + (ends[1] - ends[0]) * 0.24 * value / highest for value in density]
    points = list(zip(centers, (point["observed"] for point in known), strict=True))
    off = sum(abs(p - o) * count for (p, o), count in zip(points, counts, strict=True)) / (sum(counts) or 1)
    names = {"binary": ("predicted probability", "observed share"), "regression": ("mean prediction", "mean truth")}
    across, up = names.get(task, ("confidence", "share right"))
    return plot(
        bars(edges, heights, role="under"),
        diagonal(),
        line(points, role="model"),
        dots(points, role="model", titles=titles),
        x=Axis(low=ends[0], high=ends[1], label=across),
        y=Axis(low=ends[0], high=ends[1], label=up),
        title="Calibration",
        note=f"off by {number(off, digits=3) if task == 'regression' else percent(off)} on average",
    )


def _scatter(found: Any) -> Html | None:
    if not found:
        return None
    low, high = spread([value for point in found for value in point[:2]], room=0.03)
    axis = Axis(low=low, high=high, label="actual")
    up = Axis(low=low, high=high, label="predicted")
    return plot(
        diagonal(),
        dots(found, role="model many", radius=2.5),
        x=axis,
        y=up,
        title="Predicted and actual",
        note="on the line, both are equal",
    )


def _residuals(found: Any) -> Html | None:
    edges, counts = dig(found, "edges"), dig(found, "counts")
    if not edges or not counts:
        return None
    total = sum(counts) or 1
    shares = [count / total for count in counts]
    named = [f"{number(a)} to {number(b)}: {number(c)} rows" for a, b, c in zip(edges[:-1], edges[1:], counts, strict=False)]
    return plot(
        bars(edges, shares, role="model", titles=named), rule(x=0, role="promise", name="no error"),
        x=Axis(low=edges[0], high=edges[-1], label="predicted less actual"), y=share_axis(max(shares)), title="Residuals",
    )  # fmt: skip


def _confusion(found: Any) -> Html | None:
    classes, matrix = dig(found, "classes"), dig(found, "matrix")
    if not classes or not matrix:
        return None
    names = [shorten(label(name), 28) for name in classes]
    head = tag(
        "tr",
        tag("th", "actual \\ predicted", scope="col"),
        *(tag("th", name, scope="col") for name in names),
        tag("th", "recalled", scope="col"),
    )
    body = []
    for i, row in enumerate(matrix):
        total = sum(row) or 1
        cells = [
            tag("td", number(count), class_=None if i == j else "wrong", style=f"--share:{100 * count / total:.0f}%",
                title=f"{percent(count / total)} of actual {names[i]} predicted as {names[j]}")
            for j, count in enumerate(row)
        ]  # fmt: skip
        body.append(tag("tr", tag("th", names[i], scope="row"), *cells, tag("th", percent(row[i] / total), class_="number")))
    made = tag("table", tag("caption", "Confusion matrix"), tag("thead", head), tag("tbody", *body), class_="matrix")
    return join(
        tag("h3", "Confusion"),
        tag("p", "Each row answered with its most probable class.", class_="over"),
        tag("div", made, class_="scroll", tabindex="0", role="region", aria_label="Confusion matrix"),
    )


def _place(axis: Axis, row: Mapping[str, Any], overall: Any) -> Html:
    """Where a slice lies among all of them, with its interval where it has one."""
    value, low, high = _reached(row), row.get("low"), row.get("high")
    name = f"{score(value)} of {score(axis.low)} to {score(axis.high)}"
    drawn = [tag("line", x1="0", x2="100%", y1="50%", y2="50%")]
    if isinstance(overall, (int, float)):
        at = f"{axis.at(overall) * 100:.1f}%"
        drawn.append(tag("line", tag("title", f"all rows {score(overall)}"), x1=at, x2=at, y1="0", y2="100%", class_="all"))
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        name = f"{score(value)}, interval {interval(low, high)}"
        left, right = (f"{axis.at(end) * 100:.1f}%" for end in (low, high))
        drawn.append(tag("line", x1=left, x2=right, y1="50%", y2="50%", class_="span"))
    circle = tag("circle", cx=f"{axis.at(value) * 100:.1f}%", cy="50%", r="4.5")
    return tag("svg", tag("title", name), *drawn, circle, class_="place", role="img", aria_label=name)


def _reached(row: Mapping[str, Any]) -> Any:
    """The metric on a slice."""
    return row.get("point", row.get("score"))


def _gap(value: float, overall: Any) -> str:
    if not isinstance(overall, (int, float)):
        return ""
    gap = value - overall
    return f"{'+' if gap > 0 else ''}{score(gap) if abs(gap) >= 1e-4 else '0'}"


def _other(found: Mapping[str, Any], role: str, metric: str) -> Any:
    value = dig(found, role, metric)
    if value is None:
        value = dig(found, role, "metrics", metric)
    return value.get("point") if isinstance(value, Mapping) else value


def _point(metrics: Mapping[str, Any], *names: str) -> Any:
    return next((dig(metrics, name, "point") for name in names if name in metrics), None)


def label(value: Any) -> str:
    """A value of the data as people read it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return number(value) if isinstance(value, float) else str(value)
