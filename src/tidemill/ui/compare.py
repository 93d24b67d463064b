"""Two packages side by side on one page: every metric with the paired interval of its difference, cost, contract, verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill.ui.charts import strip
from tidemill.ui.format import interval, milliseconds, moment, number, score, size, words
from tidemill.ui.page import Html, Section, badge, join, page, table, tag
from tidemill.ui.summary import icon, less_is_better

SIDES = ("first", "second")


def render_compare(found: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        found: What `packaging.compare.compare` found.
    """
    first, second = (named(found[side]) for side in SIDES)
    foot = tag("p", f"Made by Tidemill, {moment(found['at'])}. This page needs no network and holds no script.")
    sections = [_metrics(found), _cost(found), _contract(found)]
    made = [section for section in sections if section is not None]
    return page(title=f"{first} and {second} \u00b7 Tidemill", header=_header(found), sections=made, footer=foot)


def named(side: Mapping[str, Any]) -> str:
    """A package as people call it."""
    return f"{side['name']} {side['version']}" if side["version"] is not None else str(side["name"])


def better(difference: Mapping[str, Any]) -> str:
    """Who is better, as far as the interval of the difference says: second, first or neither."""
    if difference["estimate"] is None or difference["low"] <= 0 <= difference["high"]:
        return "neither"
    return "second" if difference["low"] > 0 else "first"


def _header(found: Mapping[str, Any]) -> Html:
    title = tag("h1", named(found["first"]), tag("small", "and"), " ", named(found["second"]))
    kind = "good" if found["passed"] else "bad"
    breaches = tag("ul", *(tag("li", breach) for breach in found["breaches"])) if found["breaches"] else None
    said = tag("p", f"{found['text'][:1].upper()}{found['text'][1:]}.")
    verdict = tag(
        "div", icon(kind), tag("strong", "May follow." if found["passed"] else "May not follow."), said, breaches, class_=f"verdict {kind}"
    )
    caution = tag("div", icon("warn"), tag("strong", f"Beware: {found['caution']}."), class_="verdict warn") if found["caution"] else None
    return tag("header", tag("p", "Comparison", class_="over"), title, verdict, caution, _difference(found))


def _difference(found: Mapping[str, Any]) -> Html | None:
    """The deciding difference as a line, nothing and what is allowed marked on it."""
    difference = found["metrics"][found["metric"]]["difference"]
    if difference["estimate"] is None:
        return None
    rules = [(0.0, "trivial", "no difference")]
    if found["max_drop"] is not None:
        rules.append((-found["max_drop"], "promise", f"a loss of {found['max_drop']:g} is allowed"))
    marks = [difference["low"], difference["high"], *(value for value, _, _ in rules)]
    room = 0.1 * (max(marks) - min(marks) or 1.0)
    drawn = strip(
        min(marks) - room, max(marks) + room, band=(difference["low"], difference["high"]), point=difference["estimate"], rules=rules
    )
    said = f"By how much {named(found['second'])} is better in {words(found['metric'])}, with its 95 % interval; below 0 it is worse."
    return join(tag("p", said, class_="lead"), drawn)


def _metrics(found: Mapping[str, Any]) -> Section:
    first, second = (named(found[side]) for side in SIDES)
    rows = []
    for name, measured in sorted(found["metrics"].items(), key=lambda item: item[0] != found["metric"]):
        difference = measured["difference"]
        winner = {"second": badge("better", "good"), "first": badge("worse", "bad"), "neither": badge("no difference", "plain")}
        sides = [
            join(score(measured[side]["point"]), tag("small", interval(measured[side]["low"], measured[side]["high"]))) for side in SIDES
        ]
        rows.append(
            (
                join(words(name), tag("small", "less is better") if less_is_better(name) else None),
                *sides,
                score(difference["estimate"]),
                interval(difference["low"], difference["high"]),
                winner[better(difference)],
            )
        )
    columns = ("Metric", first, second, "Better by", "95 % interval", "Second is")
    lead = f"On the same {number(found['rows'])} rows, resampled together, so that what both share cancels. Differences are > 0 where the second is better."
    made = table(columns, rows, caption="Metrics of both packages", numbers=(1, 2, 3, 4))
    return Section(id="metrics", title="Quality", lead=lead, body=made)


def _cost(found: Mapping[str, Any]) -> Section:
    one, other = found["first"], found["second"]
    rows = [
        ("Median time of a row", milliseconds(one["p50_ms"]), milliseconds(other["p50_ms"])),
        ("99th percentile", milliseconds(one["p99_ms"]), milliseconds(other["p99_ms"])),
        ("Size of the graphs", size(one["mb"] * 1e6), size(other["mb"] * 1e6)),
        ("Raw columns", number(one["inputs"]), number(other["inputs"])),
        ("Made", moment(one["created"]), moment(other["created"])),
        ("Identity", str(one["identity"])[:12], str(other["identity"])[:12]),
    ]
    parts = [table(("", named(one), named(other)), rows, caption="What both cost", numbers=(1, 2))]
    for side, key in (("first", "only_first"), ("second", "only_second")):
        if found["columns"][key]:
            parts.append(tag("p", f"Only {named(found[side])} reads ", tag("b", ", ".join(found["columns"][key])), "."))
    return Section(id="cost", title="Cost", lead="Both measured now, on this machine, on one thread.", body=join(*parts))


def _contract(found: Mapping[str, Any]) -> Section | None:
    if not found["promises"]:
        return None
    marks = {True: badge("kept", "good"), False: badge("broken", "bad"), None: badge("not measured", "plain")}
    rows = [(entry["promise"], marks[entry["kept"]]) for entry in found["promises"]]
    lead = f"What {named(found['second'])} promises, held against these rows and this machine."
    return Section(id="contract", title="Contract", lead=lead, body=table(("Promise", "Kept"), rows, caption="The second's contract"))
