"""Where a package comes from and what it took: stages and their artifacts, time and memory, versions and hardware."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill.ui.charts import bar
from tidemill.ui.collect import Report, dig
from tidemill.ui.format import number, plain, seconds, shorten, size
from tidemill.ui.page import Html, Section, badge, details, join, table, tag

TOP_FUNCTIONS = 15


def lineage(report: Report) -> Section | None:
    """Each stage's artifact, what it was made from, how long it took and how much memory it needed."""
    took: Mapping[str, Any] = report.about("stages", default={})
    names = [*report.stages, *(name for name in took if name not in report.stages)]
    if not names:
        return None
    times = [dig(took, name, "seconds", default=0) for name in names]
    peaks = [dig(took, name, "peak_mb", default=0) * 1e6 for name in names]
    longest, largest = max([*times, 1e-9]), max([*peaks, 1])
    ids = {str(stage.get("id", ""))[:16]: name for name, stage in report.stages.items()}
    rows = []
    for name, time, peak in zip(names, times, peaks, strict=True):
        stage = report.stages.get(name, {})
        cached = bool(dig(took, name, "cached", default=False))
        rows.append((
            join(name, tag("small", "unchanged, not run again") if cached else None),
            tag("code", str(stage["id"])[:12], title=stage["id"]) if stage.get("id") else "\u2013",
            _inputs(stage.get("inputs") or {}, ids),
            size(stage.get("bytes")),
            bar(time / longest, seconds(time)) if time and not cached else "",
            bar(peak / largest, size(peak), role="other") if peak and not cached else "",
        ))  # fmt: skip
    columns = ("Stage", "Artifact", "Made from", "On disk", "Time", "Peak memory")
    total = sum(time for time, name in zip(times, names, strict=True) if not dig(took, name, "cached", default=False))
    lead = "Each stage reads artifacts and writes one; the same inputs give the same artifact."
    lead += f" This run took {seconds(total)}." if total else ""
    return Section(
        id="lineage", title="Lineage", lead=lead, body=join(table(columns, rows, caption="Stages", numbers=(3,)), _profile(report))
    )


def environment(report: Report) -> Section | None:
    """What the run ran on."""
    found = report.about("environment", default={})
    versions: Mapping[str, Any] = dig(found, "libraries", default={})
    hardware: Mapping[str, Any] = dig(found, "hardware", default=report.find("package/evidence/latency.json", "hardware", default={}))
    units = {"memory_gb": lambda value: f"{number(value)} GB"}
    names = {"cpu": "Processor", "cores": "Cores", "memory_gb": "Memory", "system": "System"}
    entries = [(names[key], units.get(key, plain)(hardware[key])) for key in names if hardware.get(key)]
    entries += [(key, plain(value)) for key, value in found.items() if key not in ("libraries", "hardware", "python") and value is not None]
    entries += [("Python", str(found["python"]))] if dig(found, "python") else []
    entries += [("Command", tag("code", str(report.about("command"))))] if report.about("command") else []
    entries += [("Run", tag("code", str(report.about("run"))))] if report.about("run") else []
    if not entries and not versions:
        return None
    facts = tag("dl", *(part for name, value in entries for part in (tag("dt", name), tag("dd", value))), class_="facts")
    listed = (
        tag("p", *(join(tag("span", f"{name} {version}"), " ") for name, version in versions.items()), class_="chips") if versions else None
    )
    return Section(
        id="environment", title="Environment", lead="What this was measured on and with.", body=join(facts, tag("h3", "Versions"), listed)
    )


def _inputs(inputs: Mapping[str, Any], ids: Mapping[str, str]) -> Html | str:
    """The stages or sources that an artifact was made from, each with the head of its hash."""
    if not inputs:
        return "source data"
    shown = [
        tag("span", name if name in ids.values() else join(shorten(name, 40), " ", tag("i", str(value)[:8])), title=value)
        for name, value in inputs.items()
    ]
    return tag("div", *shown, class_="chips")


def _profile(report: Report) -> Html | None:
    """The functions in which the processor spent its time, by stage, if the run was asked to look."""
    parts = []
    for stage, seen in report.about("stages", default={}).items():
        functions = dig(seen, "cpu", default=[])
        most = max((item.get("own_s", 0) for item in functions), default=0) or 1
        rows = [
            (
                join(
                    tag("code", shorten(str(item.get("function", "")), 80)),
                    tag("small", shorten(str(item["place"]), 90)) if item.get("place") else None,
                ),
                bar(item.get("own_s", 0) / most, seconds(item.get("own_s"))),
                seconds(item.get("total_s")),
                number(item.get("calls")),
            )
            for item in functions[:TOP_FUNCTIONS]
        ]
        if rows:
            made = table(("Function", "Own time", "With callees", "Calls"), rows, caption=f"Functions of {stage} by time", numbers=(2, 3))
            parts.append(details(join(stage, " ", badge(seconds(dig(seen, "seconds")), "plain")), made))
    return join(tag("h3", "Where the time went"), *parts) if parts else None
