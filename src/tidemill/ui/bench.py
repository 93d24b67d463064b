"""Measured speed on one page and as lines of a terminal: throughput and latency over a sweep, the knee, and the conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tidemill.core.runtime import DEFAULT
from tidemill.ui.charts import Axis, dots, line, nice_ticks, plot, rule
from tidemill.ui.format import milliseconds, moment, number
from tidemill.ui.page import Html, Section, badge, join, page, table, tag
from tidemill.ui.summary import icon

LATENCIES = ("mean_ms", "std_ms", "min_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms")
PERCENTILES = (("p50_ms", "model", "median"), ("p95_ms", "c1", "95th percentile"), ("p99_ms", "c2", "99th percentile"))
WAYS = ("model", "c1", "c2", "c3", "c4", "c5", "c6", "c7")

HOW = "The knee is the smallest load that reaches nine tenths of the highest throughput seen: beyond it answers come later and hardly more often."

Point = Mapping[str, Any]


def render_bench(found: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        found: What `bench.server.bench_server` or `bench.package.bench_package` found.
    """
    sections = _of_server(found) if found["of"] == "server" else _of_package(found)
    foot = tag("p", f"Made by Tidemill, {moment(found['at'])}. This page needs no network and holds no script.")
    made = [section for section in (*sections, _conditions(found)) if section is not None]
    return page(title=f"{_named(found)} measured \u00b7 Tidemill", header=_header(found), sections=made, footer=foot)


def sentence(found: Mapping[str, Any]) -> str:
    """What came of it in a sentence or two."""
    if found["of"] == "package":
        best, single = found["best"], found["single"]
        return (
            f"{number(round(best['rows_per_s']))} rows/s with {way(best)}, {_rows(best['batch'])} at once"
            f" ({milliseconds(best['latency']['p50_ms'])} a call); one row alone takes {milliseconds(single['latency']['p50_ms'])}."
        )
    if any("rate" in point for point in found["points"]):
        late = [point for point in found["points"] if point["unanswered"] or point["requests_per_s"] < 0.95 * point["rate"]]
        kept = max((point["rate"] for point in found["points"] if point not in late), default=None)
        held = f"{number(kept)} requests/s are answered as they come" if kept is not None else "No rate that was tried is kept up with"
        return held + (f"; at {number(late[0]['rate'])} answers fall behind." if late else ".")
    top = max(found["points"], key=lambda point: float(point["rows_per_s"]))
    said = [
        f"{number(round(top['rows_per_s']))} rows/s at most ({number(top['concurrency'])} connections, {_rows(top['batch'])} a request)."
    ]
    for name, words in (("concurrency", "connections"), ("batch", "rows a request")):
        if knee := found["knee"].get(name):
            more = ", the most that was tried: the knee may lie beyond" if knee["rising"] else ""
            said.append(f"Knee at {number(knee['at'])} {words}{more}.")
    return " ".join(said)


def cautions(found: Mapping[str, Any]) -> list[str]:
    """What weakens the figures."""
    points, said = found["points"], []
    shares = sorted(point["cores"] / point["sessions"] for point in points if point.get("threads") == 1)
    if shares and (share := shares[len(shares) // 2]) < 0.8:
        said.append(
            f"other programs took part of this machine: a session that is always busy had {share:.0%} of a core".replace("%", "\u00a0%")
        )
    for name, one in found.get("runtimes", {}).items():
        if not one["kept"]:
            said.append(f"answers of {name} {_apart(one)}, which the contract does not allow: not a choice")
    said += [f"left out: {reason}" for reason in found.get("left_out", ())]
    if limited := [point for point in points if point.get("client_limited")]:
        said.append(f"in {len(limited)} of {len(points)} runs this client was as busy as one thread can be: the server may do more")
    if refused := sum(sum(point.get("refused", {}).values()) for point in points):
        statuses = sorted({status for point in points for status in point.get("refused", {})})
        said.append(f"{number(refused)} requests were refused ({', '.join(statuses)}); they count in no figure")
    if lost := sum(point.get("lost", 0) + point.get("unanswered", 0) for point in points):
        said.append(f"{number(lost)} requests had no answer; they count with the time that they waited")
    if few := [point for point in points if point.get("answers", point.get("calls", 0)) < 100]:
        said.append(
            f"{len(few)} of {len(points)} runs hold under 100 answers: their 99th percentile is little more than the slowest; --seconds gives more"
        )
    return said


def columns(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of a table of every run."""
    times = [name.removesuffix("_ms") for name in LATENCIES]
    if found["of"] == "package":
        several = len(found["runtimes"]) > 1
        heads = [*(["runtime"] if several else []), "sessions", "threads", "rows", "rows/s", *times, "cores", ""]
        chosen = {"best": found["best"], "single": found["single"]}
        return heads, [
            [*([p["runtime"]] if several else []), str(p["sessions"]), str(p["threads"]), number(p["batch"]), number(round(p["rows_per_s"])), *_latencies(p), f"{p['cores']:.2f}",
             ", ".join(name for name, point in chosen.items() if point == p)]
            for p in found["points"]
        ]  # fmt: skip
    rated = any("rate" in point for point in found["points"])
    heads = [*(["rate"] if rated else []), "connections", "rows", "requests/s", "rows/s", *times, "client CPU", ""]
    return heads, [
        [*([number(p["rate"])] if rated else []), number(p["concurrency"]), number(p["batch"]), number(round(p["requests_per_s"], 1)),
         number(round(p["rows_per_s"])), *_latencies(p), f"{p['client_cores']:.2f}", ", ".join(_remarks(p, found))]
        for p in found["points"]
    ]  # fmt: skip


def way(point: Point) -> str:
    """How many sessions of how many threads, and of which runtime where it is not the usual one."""
    sessions, threads, runtime = point["sessions"], point["threads"], point["runtime"]
    return f"{runtime + ', ' if runtime != DEFAULT else ''}{sessions} session{'s' if sessions > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"


def _latencies(point: Point) -> list[str]:
    return [milliseconds(point["latency"].get(name)) for name in LATENCIES]


def _remarks(point: Point, found: Mapping[str, Any]) -> list[str]:
    said = []
    knee = found["knee"].get("concurrency")
    if knee and not knee["rising"] and point["concurrency"] == knee["at"] and point["batch"] == found["points"][0]["batch"]:
        said.append("knee")
    knee = found["knee"].get("batch")
    if knee and not knee["rising"] and point["batch"] == knee["at"] and (point["batch"] != found["points"][0]["batch"] or "knee" in said):
        said.append("knee of rows")
    if point["client_limited"]:
        said.append("client limits")
    said += [f"{count} x {status}" for status, count in point["refused"].items()]
    if missing := point["lost"] + point["unanswered"]:
        said.append(f"{missing} unanswered")
    return said


def _header(found: Mapping[str, Any]) -> Html:
    title = tag("h1", _named(found), tag("small", "measured"))
    verdict = tag("div", icon("good"), tag("strong", sentence(found)), class_="verdict good")
    weak = cautions(found)
    beware = tag("div", icon("warn"), tag("strong", "Beware."), tag("ul", *(tag("li", said) for said in weak)), class_="verdict warn")
    over = "Server, from outside" if found["of"] == "server" else "Package, in one process"
    return tag("header", tag("p", over, class_="over"), title, verdict, beware if weak else None)


def _of_server(found: Mapping[str, Any]) -> list[Section | None]:
    points, knees = found["points"], found["knee"]
    if any("rate" in point for point in points):
        lead = "Requests are sent when they are due, whether answers come or not; a latency counts from when its request was due."
        parts = [_charts(points, "rate", "requests sent a second", None)] if len(points) > 1 else []
        return [Section(id="rates", title="At a rate", lead=lead, body=join(*parts, _table(found, points)))]
    first = points[0]["batch"]
    swept = [point for point in points if point["batch"] == first]
    lead = f"Each connection sends its next request when it has its answer, {_rows(first)} a request."
    sections: list[Section | None] = [
        Section(
            id="connections",
            title="Connections",
            lead=lead,
            body=join(_charts(swept, "concurrency", "connections", knees.get("concurrency")), _table(found, swept)),
        )
    ]
    others = [point for point in points if point["batch"] != first]
    if others:
        at = others[0]["concurrency"]
        over = [*(point for point in swept if point["concurrency"] == at), *others]
        made = join(_charts(over, "batch", "rows a request", knees.get("batch")), _table(found, over))
        sections.append(Section(id="rows", title="Rows a request", lead=f"On {number(at)} connections.", body=made))
    return sections


def _of_package(found: Mapping[str, Any]) -> list[Section | None]:
    points = found["points"]
    quickest = sorted(points, key=lambda point: -float(point["rows_per_s"]))
    ways = list(dict.fromkeys(way(point) for point in quickest))[: len(WAYS)]
    by_way = {name: [point for point in points if way(point) == name] for name in ways}
    x = _log_axis([point["batch"] for point in points], "rows at once")
    top = max(float(point["rows_per_s"]) for point in points) * 1.06
    y = Axis(low=0, high=top, label="rows a second", ticks=[(tick, number(tick)) for tick in nice_ticks(0, top, most=4)])
    legend = [(role, name) for role, name in zip(WAYS, ways, strict=False)]
    drawn = [
        plot(
            *_lines(by_way, "batch", lambda point: point["rows_per_s"]),
            rule(x=found["best"]["batch"], role="promise", name="best"),
            x=x,
            y=y,
            title="Throughput",
            note="the fewest rows at once that reach nine tenths of the highest",
            legend=[*legend, ("promise", "best")],
        ),
        plot(
            *_lines(by_way, "batch", lambda point: point["latency"]["p50_ms"]),
            x=x,
            y=_latency_axis([point["latency"]["p50_ms"] for point in points]),
            title="Time of a call",
            note="median",
            legend=legend,
        ),
    ]
    best = found["best"]
    lead = (
        f"Nine tenths of the highest throughput with the fewest rows at once: {way(best)}, {_rows(best['batch'])}."
        " Entered into the package as evidence, with the hardware."
    )
    return [
        Section(
            id="sweep", title="Sessions, threads and rows", lead=lead, body=join(tag("div", *drawn, class_="charts"), _table(found, points))
        )
    ]


def _charts(points: Sequence[Point], by: str, name: str, knee: Mapping[str, Any] | None) -> Html:
    """Throughput and latencies over what was raised."""
    x = _log_axis([point[by] for point in points], name)
    top = max(float(point["rows_per_s"]) for point in points) * 1.06 or 1.0
    y = Axis(low=0, high=top, label="rows a second", ticks=[(tick, number(tick)) for tick in nice_ticks(0, top, most=4)])
    marks = [rule(x=knee["at"], role="promise", name="knee")] if knee and not knee["rising"] else []
    key = [("promise", "knee")] if marks else []
    throughput = plot(
        *_lines({"": points}, by, lambda point: point["rows_per_s"]),
        *marks,
        x=x,
        y=y,
        title="Throughput",
        legend=[("model", "rows a second"), *key],
    )
    timed = [point for point in points if point["latency"]]
    values = [point["latency"][measure] for point in timed for measure, _, _ in PERCENTILES]
    curves = [
        mark
        for measure, role, words in PERCENTILES
        for mark in (
            line([(point[by], point["latency"][measure]) for point in timed], role=role, name=words),
            dots(
                [(point[by], point["latency"][measure]) for point in timed],
                role=role,
                titles=[f"{words} {milliseconds(point['latency'][measure])} at {number(point[by])}" for point in timed],
            ),
        )
    ]
    latency = plot(
        *curves, *marks, x=x, y=_latency_axis(values), title="Latency", legend=[*((role, words) for _, role, words in PERCENTILES), *key]
    )
    return tag("div", throughput, latency, class_="charts")


def _lines(series: Mapping[str, Sequence[Point]], by: str, value: Any) -> Iterable[Any]:
    for role, (name, points) in zip(WAYS, series.items(), strict=False):
        at = [(point[by], value(point)) for point in points]
        yield line(at, role=role, name=name)
        yield dots(at, role=role, titles=[f"{name} {number(reached)} at {number(where)}".strip() for where, reached in at])


def _log_axis(values: Sequence[float], label: str) -> Axis:
    """An axis over loads, which are powers more often than not; ticks where something was measured."""
    known = sorted(set(values))
    low, high = known[0], known[-1]
    return Axis(
        low=low if high > low else low * 0.9,
        high=high if high > low else high * 1.1,
        label=label,
        log=True,
        ticks=[(v, number(v)) for v in known],
    )


def _latency_axis(values: Sequence[float]) -> Axis:
    known = [value for value in values if value] or [1.0]
    low, high = min(known) / 1.3, max(known) * 1.3
    ticks = [value * 10.0**power for power in range(-4, 6) for value in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    inside = [tick for tick in inside if str(tick * 1e6).startswith("1")] if len(inside) > 6 else inside
    return Axis(low=low, high=high, label="latency", log=True, ticks=[(tick, milliseconds(tick)) for tick in inside])


def _table(found: Mapping[str, Any], points: Sequence[Point]) -> Html:
    """Every run, what is to be said of it first: the last columns of a wide table are out of sight."""
    heads, rows = columns({**found, "points": points})
    marked = ["best" if row[-1].startswith(("knee", "best")) else None for row in rows]
    cells = [[badge(row[-1], "warn" if "limit" in row[-1] or " x " in row[-1] else "plain") if row[-1] else "", *row[:-1]] for row in rows]
    numbers = range(2 if heads[0] == "runtime" else 1, len(heads))
    return table([heads[-1], *heads[:-1]], cells, caption="Every run", numbers=numbers, marked=marked)


def _conditions(found: Mapping[str, Any]) -> Section:
    machine = found.get("hardware") or found["client"]
    rows = [
        ("Measured", moment(found["at"])),
        (
            "Length of a run",
            f"{found['seconds']:g} s, {found['repeats']} time{'s' if found['repeats'] > 1 else ''}, the median run is shown",
        ),
        ("Different rows", number(found.get("rows", found.get("bodies")))),
        (
            "This machine" if found["of"] == "package" else "The client's machine",
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB",
        ),
    ]
    if found["of"] == "server":
        rows += [
            ("Address", found["url"]),
            ("Runtime", str(found["framework"])),
            ("Client CPU", "cores that the load generator took; it has one thread"),
        ]
    else:
        rows += [
            (name, f"{one['runtime']}, {one['precision']}; answers {_apart(one)} from those of {one['against']}")
            for name, one in found["runtimes"].items()
        ]
        rows.append(("Identity", found["identity"][:12]))
    return Section(id="conditions", title="Conditions", lead=HOW, body=table(("", ""), rows, caption="Conditions"))


def _named(found: Mapping[str, Any]) -> str:
    return f"{found['name']} {found['version']}" if found["version"] is not None else str(found["name"])


def _apart(one: Mapping[str, Any]) -> str:
    cosine = f" (cosine at least {one['min_cosine']:.6f})" if "min_cosine" in one else ""
    return f"differ by up to {number(one['max_difference'], digits=2)}{cosine}"


def _rows(count: int) -> str:
    return f"{number(count)} row{'s' if count != 1 else ''}"
