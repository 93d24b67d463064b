"""What the windows come to: medians, ratios within a repeat, each claim held or missed, tables for README.md, the curve of growth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from servers import CONTROLS, OTHERS, OURS, SERVERS
from workloads import WORKLOADS

Result = dict[str, Any]
Claim = dict[str, Any]

BEGIN, END = "<!-- figures: written by run.py -->", "<!-- end of figures -->"
START_S = {"tabular-numbers": 1.5, "tabular-row": 1.5, "text": 3.0}
# A point of a curve counts as fallen where it is below this share of the best before it.
FALLEN = 0.9
TITLES = {
    "tabular-numbers": "39 ready numbers, 200 trees",
    "tabular-row": "The raw row, 13 numbers and 26 texts, 200 trees",
    "text": "Sentences of 5 to 120 words, MiniLM",
}


def text(result: Result) -> str:
    """The tables and claims, as README.md holds them."""
    parts = [table(result, name) for name in WORKLOADS if any(row["part"] == name for row in result["windows"])]
    return "\n".join([*parts, other_tables(result), claim_table(claims(result))])


def enter(result: Result, path: Path, readme: Path) -> None:
    """Put the tables into README.md and the curve beside the results."""
    points = curve(result)
    if points:
        drawing = path.with_name(f"{path.stem}-growth.svg")
        drawing.write_text(drawn(points), encoding="utf-8")
        picture = f"\n![Requests a second by connections, one and two replicas](results/{drawing.name})\n"
    else:
        picture = ""
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    head = f"## What came out, {result['at'][:10]}\n\n{machine(result)}\n"
    readme.write_text(f"{before}{BEGIN}\n{head}\n{text(result)}\n{picture}{END}{after}", encoding="utf-8")


def claims(result: Result) -> list[Claim]:
    """Every must and goal that the result has figures for: what was wanted, what was found, whether it holds."""
    found: list[Claim] = []
    for name in WORKLOADS:
        mine = [server.name for server in OURS if medians(result, name, server.name, 64)]
        if not mine or not any(medians(result, name, server.name, 64) for server in OTHERS):
            continue
        for server in mine:
            found += text_claims(result, server) if name == "text" else tabular_claims(result, name, server)
            found += common_claims(result, name, server)
    found += start_claims(result)
    found += growth_claims(result)
    return found


def tabular_claims(result: Result, name: str, mine: str) -> list[Claim]:
    best = best_peer(result, name)
    made = [at_least(result, name, mine, peer, level, wanted) for peer, level, wanted in ((best, "must", 2.0), (best, "goal", 4.0))]
    if medians(result, name, "fastapi-2", 64):
        made += [at_least(result, name, mine, "fastapi-2", level, wanted) for level, wanted in (("must", 8.0), ("goal", 15.0))]
    p50 = medians(result, name, mine, 1)
    if p50:
        made.append(claim(name, mine, "goal", "p50 at 1 connection, ms", "<=", 0.2, p50["p50_ms"]))
        made.append(below_every_peer(result, name, mine, "p50_ms"))
    return made


def text_claims(result: Result, mine: str) -> list[Claim]:
    best = best_peer(result, "text")
    own_precision = mine == "tidemill-bf16"
    made = [
        at_least(result, "text", mine, best, level, wanted)
        for level, wanted in ((("must", 2.0), ("goal", 3.0)) if own_precision else (("must", 1.15), ("goal", 1.4)))
    ]
    batching = [server.name for server in OTHERS if server.batches and medians(result, "text", server.name, 64)]
    if batching and not own_precision:
        quickest = max(batching, key=lambda peer: medians(result, "text", peer, 64)["requests_s"])
        made.append(at_least(result, "text", mine, quickest, "must", 4.0, of="the best peer that batches, "))
    shares = []
    for limits in result["limits"]:
        ways = limits.get("bf16" if own_precision else "fp32")
        rate = by_repeat(result, "text", mine, 64, "requests_s").get(limits["repeat"])
        if ways and rate:
            shares.append(rate / max(ways.values()))
    if shares:
        made.append(claim("text", mine, "goal", "share of the in-process limit at this precision", ">=", 0.8, statistics.median(shares)))
    made += [below_every_peer(result, "text", mine, key, relation="<=") for key in ("p50_ms", "p99_ms") if medians(result, "text", mine, 1)]
    return made


def common_claims(result: Result, name: str, mine: str) -> list[Claim]:
    """Latency where all are asked for equally much, and memory."""
    made = []
    worst = [(ratio, peer) for peer, _, theirs, own in same_rate(result, name, mine) if (ratio := own / theirs)]
    if worst:
        ratio, peer = max(worst)
        made.append(claim(name, mine, "must", f"p99 at the same rate, to that of the nearest peer ({peer})", "<", 1.0, ratio))
    own, theirs = medians(result, name, mine, 64), medians(result, name, "fastapi-2", 64)
    if own and theirs:
        made.append(claim(name, mine, "must", "memory under load, to that of fastapi-2", "<=", 1.0, own["pss_mib"] / theirs["pss_mib"]))
    return made


def start_claims(result: Result) -> list[Claim]:
    made = []
    for (name, server), seconds in starts(result).items():
        if SERVERS[server] in OURS:
            made.append(claim(name, server, "must", "start to the first answer, s", "<=", START_S[name], statistics.median(seconds)))
    return made


def growth_claims(result: Result) -> list[Claim]:
    made = []
    for (name, server), points in curve(result).items():
        if SERVERS[server] not in OURS:
            continue
        rates = [rate for _, rate in points]
        shares = [rate / max(rates[:place]) for place, rate in enumerate(rates) if place]
        made.append(claim(name, server, "must", "lowest throughput to the best of fewer connections", ">=", FALLEN, min(shares)))
    return made


def at_least(result: Result, name: str, mine: str, peer: str, level: str, wanted: float, of: str = "") -> Claim:
    """Requests a second to a peer's: the median of the repeats' ratios."""
    own, theirs = by_repeat(result, name, mine, 64, "requests_s"), by_repeat(result, name, peer, 64, "requests_s")
    ratios = [own[repeat] / theirs[repeat] for repeat in own if repeat in theirs]
    what = f"requests/s at 64 connections, to {of}{peer}"
    return claim(name, mine, level, what, ">=", wanted, statistics.median(ratios) if ratios else math.nan, ratios)


def below_every_peer(result: Result, name: str, mine: str, key: str, relation: str = "<") -> Claim:
    """At 1 connection: the median to the smallest of the peers' medians."""
    theirs = {server.name: medians(result, name, server.name, 1).get(key, math.inf) for server in OTHERS}
    peer = min(theirs, key=theirs.__getitem__)
    what = f"{key[:3]} at 1 connection, to that of the best peer ({peer})"
    return claim(name, mine, "must", what, relation, 1.0, medians(result, name, mine, 1)[key] / theirs[peer])


def claim(name: str, server: str, level: str, what: str, relation: str, wanted: float, found: float, spread: Iterable[float] = ()) -> Claim:
    held = {"<": found < wanted, "<=": found <= wanted, ">=": found >= wanted}[relation]
    row = {
        "workload": name,
        "server": server,
        "level": level,
        "what": what,
        "wanted": f"{relation} {wanted:g}",
        "found": round(found, 3),
        "held": held,
    }
    if not held and not math.isnan(found):
        row["missed_by"] = f"{(wanted / found if relation == '>=' else found / wanted) - 1:.0%}"
    spread = [round(value, 3) for value in spread]
    return row | ({"spread": [min(spread), max(spread)]} if spread else {})


def windows(result: Result, name: str, server: str, kind: str, connections: int | None = None) -> list[dict[str, Any]]:
    return [
        row for row in result["windows"]
        if row["workload"] == name and row["server"] == server and row["kind"] == kind and (connections is None or row["connections"] == connections)
    ]  # fmt: skip


def medians(result: Result, name: str, server: str, connections: int) -> dict[str, float]:
    """Medians over the repeats at so many connections; empty where it was not measured."""
    rows = windows(result, name, server, "closed", connections)
    if not rows:
        return {}
    keys = ("requests_s", "p50_ms", "p99_ms", "pss_mib", "cpu")
    rates = [row["requests_s"] for row in rows]
    return {key: statistics.median(row[key] for row in rows) for key in keys} | {"least": min(rates), "most": max(rates)}


def by_repeat(result: Result, name: str, server: str, connections: int, key: str) -> dict[int, float]:
    return {row["repeat"]: row[key] for row in windows(result, name, server, "closed", connections)}


def best_peer(result: Result, name: str) -> str:
    return max((server.name for server in OTHERS), key=lambda peer: medians(result, name, peer, 64).get("requests_s", 0.0))


def same_rate(result: Result, name: str, mine: str) -> list[tuple[str, float, float, float]]:
    """Of each peer: its name, the rate that it was offered, its p99, and ours at that rate or the next above it at which ours was asked."""
    made = []
    for peer in OTHERS:
        theirs, own, rates = [], [], []
        for row in windows(result, name, peer.name, "open"):
            asked = [
                one
                for one in windows(result, name, mine, "open")
                if one["repeat"] == row["repeat"] and one["offered_s"] >= 0.999 * row["offered_s"]
            ]
            if asked:
                theirs.append(row["p99_ms"])
                rates.append(row["offered_s"])
                own.append(min(asked, key=lambda one: one["offered_s"])["p99_ms"])
        if theirs:
            made.append((peer.name, statistics.median(rates), statistics.median(theirs), statistics.median(own)))
    return made


def starts(result: Result) -> dict[tuple[str, str], list[float]]:
    """Seconds from launch to the first right answer: of the part of its own where it was run, else of all starts."""
    own = any(row["part"] == "start" for row in result["starts"])
    found: dict[tuple[str, str], list[float]] = {}
    for row in result["starts"]:
        if not own or row["part"] == "start":
            found.setdefault((row["workload"], row["server"]), []).append(row["seconds"])
    return found


def curve(result: Result) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Of each workload and server, its median requests a second by connections."""
    rates: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in result["windows"]:
        if row["kind"] == "growth":
            rates.setdefault((row["workload"], row["server"]), {}).setdefault(row["connections"], []).append(row["requests_s"])
    return {key: [(count, statistics.median(points[count])) for count in sorted(points)] for key, points in sorted(rates.items())}


def table(result: Result, name: str) -> str:
    """One workload's table: closed loops, memory, start; ours first."""
    lines = [
        f"### {TITLES[name]}",
        "",
        "| server | 64: requests/s (least to most) | p50 ms | p99 ms | 16: requests/s | 1: requests/s | p50 ms | p99 ms | MiB | CPU µs a request | start s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for server in (*OURS, *OTHERS, *CONTROLS):
        at = {count: medians(result, name, server.name, count) for count in (64, 16, 1)}
        if not at[64]:
            continue
        started = [row["seconds"] for row in result["starts"] if row["part"] == name and row["server"] == server.name]
        cells = [
            f"{shown(at[64]['requests_s'])} ({shown(at[64]['least'])} to {shown(at[64]['most'])})", shown(at[64]["p50_ms"]), shown(at[64]["p99_ms"]),
            *(shown(at[16].get("requests_s")), *(shown(at[1].get(key)) for key in ("requests_s", "p50_ms", "p99_ms"))),
            f"{at[64]['pss_mib']:.0f}", shown(at[64]["cpu"] / at[64]["requests_s"] * 1e6), f"{statistics.median(started):.2f}" if started else "",
        ]  # fmt: skip
        lines.append(f"| {server.name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", rate_table(result, name)])


def rate_table(result: Result, name: str) -> str:
    mine = [server.name for server in OURS if windows(result, name, server.name, "open")]
    if not mine:
        return ""
    own = {server: {peer: p99 for peer, _, _, p99 in same_rate(result, name, server)} for server in mine}
    lines = [
        "On a schedule of random times, p99 in ms, timed from when each request was due:",
        "",
        "| peer | offered, requests/s | its p99 | " + " | ".join(mine) + " |",
        "|---|--:|--:|" + "--:|" * len(mine),
    ]
    for peer, rate, theirs, _ in same_rate(result, name, mine[0]):
        lines.append(f"| {peer} | {shown(rate)} | {shown(theirs)} | " + " | ".join(shown(own[server].get(peer)) for server in mine) + " |")
    return "\n".join([*lines, ""])


def other_tables(result: Result) -> str:
    lines = []
    if result["limits"]:
        lines += ["### Texts in process, length-sorted batches, sentences/s", "", "| precision | way | median |", "|---|---|--:|"]
        for precision in ("fp32", "bf16"):
            for way in result["limits"][0].get(precision, {}):
                lines.append(f"| {precision} | {way} | {statistics.median(row[precision][way] for row in result['limits']):.0f} |")
        lines.append("")
    points = curve(result)
    if points:
        counts = [count for count, _ in next(iter(points.values()))]
        lines += ["### Growth, requests/s by connections", "", "| | " + " | ".join(map(str, counts)) + " |", "|---|" + "--:|" * len(counts)]
        lines += [
            f"| {name}, {server} | " + " | ".join(shown(rate) for _, rate in rates) + " |" for (name, server), rates in points.items()
        ]
        lines += ["", *spent_table(result, counts)]
    return "\n".join(lines)


def spent_table(result: Result, counts: list[int]) -> list[str]:
    """Whose processor time it is that more connections cost: the server's, or the load generator's, which shares the cores; none in older results."""
    spent: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = {}
    for row in result["windows"]:
        if row["kind"] == "growth" and "load_cpu" in row:
            each = (row["cpu"] / row["requests_s"] * 1e6, row["load_cpu"] / row["requests_s"] * 1e6)
            spent.setdefault((row["workload"], row["server"]), {}).setdefault(row["connections"], []).append(each)
    if not spent:
        return []
    lines = ["Processor time an answer, µs, of the server + of the load generator:", ""]
    lines += ["| | " + " | ".join(map(str, counts)) + " |", "|---|" + "--:|" * len(counts)]
    for (name, server), by_count in sorted(spent.items()):
        cells = [" + ".join(shown(statistics.median(values)) for values in zip(*by_count[count], strict=True)) for count in counts]
        lines.append(f"| {name}, {server} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def claim_table(found: list[Claim]) -> str:
    lines = ["### Claims", "", "| workload | server | | claim | wanted | found (least to most) | |", "|---|---|---|---|--:|--:|---|"]
    for row in found:
        spread = f" ({row['spread'][0]:g} to {row['spread'][1]:g})" if "spread" in row else ""
        verdict = "held" if row["held"] else f"**missed** by {row.get('missed_by', 'an unknown amount')}"
        lines.append(
            f"| {row['workload']} | {row['server']} | {row['level']} | {row['what']} | {row['wanted']} | {row['found']:g}{spread} | {verdict} |"
        )
    return "\n".join([*lines, ""])


def machine(result: Result) -> str:
    here = result["hardware"]
    skipped = "".join(f"\n\nLeft out: {name} ({reason.splitlines()[0][:200]})." for name, reason in result["skipped"].items())
    speeds = [row["speed"] for row in result["windows"]]
    disturbed = sum(row["others_cpu"] >= 0.15 for row in result["windows"])
    return (
        f"{here.get('cpu', 'unknown processor')}, {here.get('cores', '?')} cores. Medians of the repeats; a plain Python loop ran at {min(speeds):.1f} to {max(speeds):.1f} million turns/s"
        f" beside the windows; {disturbed} of {len(speeds)} windows stayed disturbed by other programs.{skipped}"
    )  # fmt: skip


def shown(value: float | None) -> str:
    """Three digits, no more than the noise leaves."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def drawn(curves: dict[tuple[str, str], list[tuple[int, float]]]) -> str:
    """A panel for each workload: connections in powers of four to the right, requests a second upwards, a line for each server."""
    names = sorted({name for name, _ in curves})
    width, height, left, top = 420, 260, 60, 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{len(names) * (width + 40)}" height="{height + 90}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for place, name in enumerate(names):
        own = {server: points for (one, server), points in curves.items() if one == name}
        high = 1.1 * max(rate for points in own.values() for _, rate in points)
        most = max(count for points in own.values() for count, _ in points)
        parts += panel(
            name,
            own,
            x_of=scale(left + place * (width + 40), width - left, most),
            y_of=lambda rate, high=high: top + height * (1 - rate / high),
            high=high,
        )
    return "\n".join([*parts, "</svg>", ""])


def scale(start: float, width: float, most: int) -> Callable[[int], float]:
    return lambda count: start + width * math.log(count) / math.log(most)


def panel(
    name: str, own: dict[str, list[tuple[int, float]]], *, x_of: Callable[[int], float], y_of: Callable[[float], float], high: float
) -> list[str]:
    points = next(iter(own.values()))
    start, end = x_of(1), x_of(points[-1][0])
    parts = [f'<text x="{start}" y="{y_of(high) - 14:.0f}" font-weight="bold">{TITLES[name]}: requests/s by connections</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = y_of(share * high)
        parts.append(
            f'<line x1="{start:.0f}" x2="{end:.0f}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/><text x="{start - 6:.0f}" y="{y + 4:.0f}" text-anchor="end">{shown(share * high)}</text>'
        )
    parts += [f'<text x="{x_of(count):.0f}" y="{y_of(0) + 18:.0f}" text-anchor="middle">{count:,}</text>' for count, _ in points]
    for place, (server, line) in enumerate(own.items()):
        colour = ("#1f5fbf", "#d1660f", "#2b8a3e")[place % 3]
        path = " ".join(f"{x_of(count):.1f},{y_of(rate):.1f}" for count, rate in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x_of(count):.1f}" cy="{y_of(rate):.1f}" r="3" fill="{colour}"/>' for count, rate in line]
        parts.append(
            f'<text x="{start:.0f}" y="{y_of(0) + 38 + 16 * place:.0f}" fill="{colour}">{server}: {SERVERS[server].settings}</text>'
        )
    return parts
