"""Self-contained HTML pages: elements that escape what they hold, and the shell around them.

Text from data enters a page only through `tag`, which escapes every child that is not `Html` already. The shell's
content security policy forbids scripts and every request, so that a page cannot act even if an escape were missed.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
VOID = frozenset({"br", "hr", "img", "link", "meta"})
MARK = "M2 9c2.2 0 2.2-2 4.4-2s2.2 2 4.4 2 2.2-2 4.4-2 2.2 2 4.4 2M2 14c2.2 0 2.2-2 4.4-2s2.2 2 4.4 2 2.2-2 4.4-2 2.2 2 4.4 2"


class Html(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a page. `lead` is the sentence under its heading that says what to look at."""

    id: str
    title: str
    body: Html
    lead: Html | str = ""


def page(*, title: str, header: Html, sections: Sequence[Section], footer: Html | str = "") -> str:
    """A whole HTML document that needs nothing but itself.

    Args:
        title: What the browser's tab shows.
        header: Markup above the sections.
        sections: Those that have something to show, in order; the contents list is made of them.
    """
    contents = tag("ol", *(tag("li", tag("a", section.title, href=f"#{section.id}")) for section in sections))
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        Html(f"<style>{stylesheet()}</style>"),
    )
    body = join(
        tag("a", "Skip to the contents", class_="skip", href="#main"),
        tag("div", brand(), tag("nav", contents, aria_label="Contents"), class_="side"),
        tag("div", header, tag("main", *(_section(section) for section in sections), id="main"), tag("footer", footer), class_="body"),
    )
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>{body}</body>\n</html>\n'


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """One element. Children that are not `Html`, and every attribute, are escaped; None leaves either out.

    `class_` is `class`; other underscores in attribute names become hyphens.

    Example:
        >>> tag("td", "a < b", class_="number")
        '<td class="number">a &lt; b</td>'
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Any) -> Html:
    """The children one after the other, escaped where they are not `Html`; lists are opened, None is left out."""
    parts = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            parts.append(child if isinstance(child, Html) else escape(child))
        elif isinstance(child, Iterable):
            parts.append(join(*child))
        else:
            parts.append(escape(str(child)))
    return Html("".join(parts))


def escape(text: str) -> Html:
    """`text` as markup that shows it: characters that no page may hold become the replacement character."""
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", text), quote=True))


def table(
    columns: Sequence[Any],
    rows: Iterable[Sequence[Any]],
    *,
    caption: str,
    numbers: Sequence[int] = (),
    class_: str | None = None,
    marked: Sequence[str | None] = (),
) -> Html:
    """A table with column headers; the first cell of a row is its header.

    Args:
        caption: What the table holds, for those who hear it; not shown.
        numbers: Columns set in figures of one width, aligned right.
        marked: A class for each row, or None.
    """
    kinds = ["number" if index in numbers else None for index in range(len(columns))]
    head = tag("tr", *(tag("th", column, scope="col", class_=kind) for column, kind in zip(columns, kinds, strict=True)))
    body = []
    for index, row in enumerate(rows):
        cells = [
            tag("th", cell, scope="row", class_=kind) if position == 0 else tag("td", cell, class_=kind)
            for position, (cell, kind) in enumerate(zip(row, kinds, strict=True))
        ]
        body.append(tag("tr", *cells, class_=marked[index] if index < len(marked) else None))
    made = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body), class_=class_)
    return tag("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)


def badge(text: str, kind: str) -> Html:
    """A word in a colour that says the same: kind is good | bad | warn | plain."""
    return tag("span", text, class_=f"badge {kind}")


def details(summary: Any, *children: Any) -> Html:
    """Something to unfold."""
    return tag("details", tag("summary", summary), *children)


def brand() -> Html:
    """The mark and the name."""
    icon = Html(f'<svg viewBox="0 0 22 22" width="22" height="22" aria-hidden="true"><path d="{MARK}"/></svg>')
    return tag("p", icon, "Tidemill", class_="brand")


@cache
def stylesheet() -> str:
    """The style of every page, without its comments."""
    text = files("tidemill.ui").joinpath("report.css").read_text(encoding="utf-8")
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)).strip()


_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def _section(section: Section) -> Html:
    lead = tag("p", section.lead, class_="lead") if section.lead else None
    return tag("section", tag("h2", section.title), lead, section.body, id=section.id)
