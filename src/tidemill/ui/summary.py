"""The top of a report: what was made, whether it may be used, the figures that matter, and every promise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.core.contract import Verdict, judge
from tidemill.core.errors import TidemillError
from tidemill.core.metrics import METRICS
from tidemill.ui.charts import spread, strip
from tidemill.ui.collect import Report, dig
from tidemill.ui.format import date, interval, milliseconds, moment, number, score, size, words
from tidemill.ui.page import Html, Section, badge, join, table, tag

TASKS = {"binary": "Binary classification", "multiclass": "Multiclass classification", "regression": "Regression"}
LOSSES = frozenset({"error", "logloss", "loss", "merror", "mlogloss", "mse", "smape"})
DEFAULT_METRICS = ("roc_auc", "average_precision", "accuracy", "log_loss", "r2", "rmse", "mae")
ICONS = {"good": "M4 12.5l5 5L20 6.5", "bad": "M6 6l12 12M18 6L6 18", "warn": "M12 3v11M12 19.5v.5", "plain": "M5 12h14"}


def header(report: Report) -> Html:
    """Name, facts, the decision in one line, what to beware of, and the key figures."""
    return tag("header", _title(report), _facts(report), _decision(report), _warnings(report), _figures(report), _strip(report))


def contract(report: Report) -> Section | None:
    """Every promise with what was measured of it."""
    verdicts = judged(report)
    if not verdicts:
        return None
    intervals = [_measured_interval(verdict.promise, report) for verdict in verdicts]
    columns = ["Promise", "Kept", "Promised", "Measured", *(["95 % interval"] if any(intervals) else []), "Evidence"]
    rows = [
        (
            join(_promise_name(verdict.promise), tag("small", _metric(verdict.promise, report))),
            _kept(verdict),
            f"{_relation(verdict.promise)} {_value(verdict.promise, verdict.promise['limit'])}",
            _value(verdict.promise, verdict.measured),
            *([between] if any(intervals) else []),
            _evidence(verdict.promise, report),
        )
        for verdict, between in zip(verdicts, intervals, strict=True)
    ]
    made = table(columns, rows, caption="Promises and what was measured of them", numbers=range(2, len(columns) - 1))
    return Section(
        id="contract",
        title="Contract",
        lead="What this package promises. Whoever serves, compresses or replaces it is held to the same lines.",
        body=made,
    )


def judged(report: Report) -> list[Verdict]:
    """The contract's promises held against the evidence, none where there is no contract."""
    promises = report.find("package/contract.json", "promises", default=[])
    evidence = {
        name.rpartition("/")[2].removesuffix(".json"): value
        for name, value in report.files.items()
        if name.startswith("package/evidence/") and isinstance(value, Mapping)
    }
    try:
        return judge(list(promises), evidence)
    except (TidemillError, KeyError, TypeError, AttributeError):
        return []


def headline(report: Report) -> str | None:
    """The metric that the run is judged by: the contract's, else the task's usual one."""
    metrics = report.find("package/evidence/quality.json", "metrics", default={})
    for promise in report.find("package/contract.json", "promises", default=[]):
        if promise.get("metric") in metrics:
            return str(promise["metric"])
    named = report.find("package/evidence/quality.json", "metric")
    if named in metrics:
        return str(named)
    return next((name for name in (*DEFAULT_METRICS, *metrics) if name in metrics), None)


def less_is_better(metric: str) -> bool:
    """Whether a smaller value of the metric is the better one."""
    known = METRICS.get(metric)
    return not known.greater_is_better if known else metric in LOSSES


def _title(report: Report) -> Html:
    version = report.about("version")
    small = tag("small", f"version {version}") if version is not None else None
    name = report.about("name") or report.find("package/tidemill.json", "name", default="run")
    return join(tag("p", "Run report", class_="over"), tag("h1", name, small))


def _facts(report: Report) -> Html:
    task = str(report.find("data/schema.json", "task", default=report.find("package/tidemill.json", "task", default="")))
    identity = report.find("package/tidemill.json", "identity")
    entries = [
        ("Task", TASKS.get(task, task)),
        ("Target", report.find("data/schema.json", "target")),
        ("Model", report.find("train/train.json", "kind")),
        ("Finished", moment(report.about("ended")) if report.about("ended") else None),
        ("Identity", tag("code", str(identity)[:12], title=str(identity)) if identity else None),
    ]
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in entries if value), class_="meta")


def _decision(report: Report) -> Html:
    verdicts = judged(report)
    broken = [str(verdict) for verdict in verdicts if verdict.kept is False]
    refused = report.about("refused")
    breaches = [str(breach) for breach in refused] if isinstance(refused, list) else broken
    if refused or broken:
        text = (
            f"{_count(len(breaches), 'promise is', 'promises are')} broken; nothing was packaged." if breaches else "Nothing was packaged."
        )
        return _panel("bad", "Refused.", text, breaches)
    if "package" in report.stages:
        unknown = [f"{_promise_name(verdict.promise)} was not measured" for verdict in verdicts if verdict.kept is None]
        kept = len(verdicts) - len(unknown)
        text = {0: "Packaged.", 1: "The promise is kept.", 2: "Both promises are kept."}.get(kept, f"All {kept} promises are kept.")
        version = report.about("version")
        role = "now champion" if report.about("promoted") else "registered"
        return _panel("good", "Accepted.", f"{text} Version {version} is {role}." if version is not None else text, unknown)
    last = list(report.stages)[-1] if report.stages else None
    text = f"The run ended after the stage {last}." if last else "No stage has finished."
    return _panel("plain", "No package.", text, [])


def _warnings(report: Report) -> Html | None:
    """Signs of leakage in what the model looks at."""
    inputs = {dig(column, "name") for column in report.find("features/features.json", "inputs", default=[])}
    found = [item for item in leakage(report) if not inputs or dig(item, "column") is None or dig(item, "column") in inputs]
    if not found:
        return None
    first = [str(dig(item, "message") or dig(item, "kind") or item) for item in found[:3]]
    more = tag("a", "all of them" if len(found) > 3 else "details", href="#data")
    return tag(
        "div", icon("warn"), tag("strong", f"{_count(len(found), 'sign', 'signs')} of leakage. ", more),
        tag("ul", *(tag("li", text) for text in first)), class_="verdict warn",
    )  # fmt: skip


def leakage(report: Report) -> list[Any]:
    """Every sign that the training rows know what a prediction cannot."""
    found = report.files.get("data/leakage.json")
    return found if isinstance(found, list) else list(dig(found, "warnings", default=[]))


def _panel(kind: str, word: str, text: str, lines: Sequence[str]) -> Html:
    listed = tag("ul", *(tag("li", line) for line in lines)) if lines else None
    return tag("div", icon(kind), tag("strong", word, " ", text), listed, class_=f"verdict {kind}")


def icon(kind: str) -> Html:
    """The sign that goes with a meaning."""
    return Html(f'<svg viewBox="0 0 24 24" aria-hidden="true"><path d="{ICONS[kind]}"/></svg>')


def _figures(report: Report) -> Html | None:
    tiles: list[tuple[str, str, Any]] = []
    metric = headline(report)
    if metric:
        measured = report.find("package/evidence/quality.json", "metrics", metric)
        tiles.append((words(metric), score(dig(measured, "point")), f"{interval(dig(measured, 'low'), dig(measured, 'high'))}"))
    else:
        valid: Mapping[str, Any] = report.find("train/train.json", "metrics", "valid", default={})
        best = next((name for name in (*DEFAULT_METRICS, *valid) if name in valid), None)
        if best:
            tiles.append((words(best), score(valid[best]), "on the validation split"))
    latency = report.files.get("package/evidence/latency.json")
    if dig(latency, "p50_ms") is not None:
        tiles.append(("Latency, one row", milliseconds(dig(latency, "p50_ms")), f"p99 {milliseconds(dig(latency, 'p99_ms'))}"))
    if dig(latency, "rows_per_s") is not None:
        tiles.append(("Throughput", number(dig(latency, "rows_per_s"), digits=3), "rows a second on one core"))
    megabytes = report.find("package/evidence/size.json", "mb")
    if megabytes is not None:
        tiles.append(("Size", size(megabytes * 1e6), "all graphs"))
    elif "package" in report.stages:
        tiles.append(("Size", size(report.stages["package"]["bytes"]), "whole package"))
    rows: Mapping[str, int] = report.find("data/schema.json", "rows", default={})
    if rows:
        tested = f"{number(rows['test'])} held back to test" if rows.get("test") else None
        tiles.append(("Rows", number(sum(rows.values())), tested))
    if not tiles:
        return None
    drawn = (
        tag("div", tag("dt", name), tag("dd", value, class_="value"), tag("dd", sub, class_="sub") if sub else None)
        for name, value, sub in tiles
    )
    return tag("dl", *drawn, class_="figures")


def _strip(report: Report) -> Html | None:
    """The quality against everything that it is to be compared with, on one line."""
    metric = headline(report)
    measured = report.find("package/evidence/quality.json", "metrics", metric, default={}) if metric else {}
    point = dig(measured, "point")
    if metric is None or not _finite(point):
        return None
    rules: list[tuple[float, str, str]] = []
    keys = [_key("dot", "this model", measured)]
    for role, name in (("baseline", "linear baseline"), ("trivial", "trivial model")):
        value = report.find("package/evidence/quality.json", role, metric) or report.find(
            "package/evidence/quality.json", role, "metrics", metric
        )
        value = dig(value, "point") if isinstance(value, Mapping) else value
        if _finite(value):
            rules.append((value, role, f"{name} {score(value)}"))
            keys.append(_key(role, name, {"point": value}))
    for promise in report.find("package/contract.json", "promises", default=[]):
        if promise.get("measure") == "quality.value" and _finite(promise.get("limit")):
            rules.append((promise["limit"], "promise", f"promised {score(promise['limit'])}"))
            keys.append(_key("promise", f"promised {_relation(promise)}", {"point": promise["limit"]}))
    if not rules:
        return None
    low, high = dig(measured, "low"), dig(measured, "high")
    band = (low, high) if _finite(low) and _finite(high) else None
    ends = spread([point, low, high, *(value for value, _, _ in rules)], room=0.12)
    if metric not in {"r2", "rmse", "mae", "mse", "log_loss", "logloss"}:
        ends = (max(ends[0], 0.0), min(ends[1], 1.0))
    drawn = strip(*ends, band=band, point=point, rules=rules)
    name = tag("figcaption", words(metric), tag("span", "on the test split" + (", less is better" if less_is_better(metric) else "")))
    return tag("figure", name, drawn, tag("ul", *keys, class_="legend"), class_="against")


def _key(role: str, name: str, value: Mapping[str, Any]) -> Html:
    return tag("li", tag("i", class_=f"key {role}"), name, " ", tag("b", score(value.get("point"))))


def _promise_name(promise: Mapping[str, Any]) -> str:
    names = {
        "parity": "Parity", "better than trivial": "Better than trivial", "quality min": "Quality", "quality max": "Quality",
        "quality max_drop": "No drop against the champion", "latency p50_ms": "Median latency", "latency p99_ms": "Latency, p99",
        "size max_mb": "Size", "interval min_coverage": "Coverage of intervals", "interval max_width": "Width of intervals",
    }  # fmt: skip
    name = str(promise.get("name", ""))
    return names.get(name, name.capitalize())


def _metric(promise: Mapping[str, Any], report: Report) -> str | None:
    measure = str(promise.get("measure", ""))
    if measure.startswith(("quality.", "drop.")):
        named = promise.get("metric")
        metric = headline(report) if named in (None, "default") else str(named)
        return words(metric) if metric else None
    told = {
        "parity.max_difference": "largest difference from the native path", "size.mb": "all graphs",
        "interval.coverage": "true values inside", "interval.mean_width": "mean, in the target's unit",
    }  # fmt: skip
    return told.get(measure)


def _relation(promise: Mapping[str, Any]) -> str:
    return {"<=": "\u2264", ">=": "\u2265"}.get(str(promise.get("relation")), str(promise.get("relation")))


def _value(promise: Mapping[str, Any], value: Any) -> str:
    measure = str(promise.get("measure", ""))
    if value is None:
        return "\u2013"
    if measure.startswith("latency."):
        return milliseconds(value)
    if measure.startswith("size."):
        return size(value * 1e6)
    if measure.startswith("parity."):
        return number(value, digits=3)
    return score(value)


def _measured_interval(promise: Mapping[str, Any], report: Report) -> str:
    measure = str(promise.get("measure", ""))
    metric = headline(report) if promise.get("metric") in (None, "default") else str(promise["metric"])
    if measure == "quality.value" and metric:
        measured = report.find("package/evidence/quality.json", "metrics", metric)
        return interval(dig(measured, "low"), dig(measured, "high"))
    if measure == "quality.gain_over_trivial":
        low, high = (report.find("package/evidence/quality.json", key) for key in ("gain_low", "gain_high"))
        return interval(low, high) if low is not None else ""
    if measure == "drop.bound":
        estimate = report.find("package/evidence/drop.json", "estimate")
        return f"estimate {score(estimate)}" if estimate is not None else ""
    return ""


def _kept(verdict: Verdict) -> Html:
    if verdict.kept is None:
        return badge("not measured", "warn")
    return badge("kept", "good") if verdict.kept else badge("broken", "bad")


def _evidence(promise: Mapping[str, Any], report: Report) -> Html:
    file = str(promise.get("measure", "")).partition(".")[0]
    if file == "drop" and "package/evidence/drop.json" not in report.files:
        return tag("span", "there was no champion to compare with")
    found = report.files.get(f"package/evidence/{file}.json", {})
    hardware = dig(found, "hardware", default={})
    where = dig(hardware, "fingerprint") or dig(hardware, "cpu")
    rows = dig(found, "rows")
    what = f"{number(rows)} rows" if rows is not None else (f"{number(dig(found, 'calls'))} calls" if dig(found, "calls") else None)
    parts = [part for part in (what, date(dig(found, "at")) if dig(found, "at") else None) if part]
    return join(", ".join(parts) or f"{file}.json", tag("small", where) if where else None)


def _count(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
