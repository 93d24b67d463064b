from __future__ import annotations

import re

import pytest

from tidemill.ui.page import Html, Section, escape, join, page, stylesheet, table, tag

COLOURS = re.compile(r"--([a-z0-9-]+):\s*(#[0-9a-f]{3,8})\b")


def test_text_is_escaped_and_markup_is_not() -> None:
    made = tag("p", "<b>", Html("<i></i>"), title='"><script>')
    assert made == '<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt;<i></i></p>'


def test_absent_children_and_attributes_leave_nothing() -> None:
    assert tag("td", None, ["a", None, ("b", 1)], class_=None, hidden=False) == "<td>ab1</td>"


def test_joined_markup_is_not_escaped_twice() -> None:
    assert tag("p", join(tag("b", "&"), "<")) == "<p><b>&amp;</b>&lt;</p>"


@pytest.mark.parametrize("bad", ["\x00", "\x1b", "\ud800", "\uffff", "\x85"])
def test_what_no_page_may_hold_is_replaced(bad: str) -> None:
    assert escape(f"a{bad}b") == "a\ufffdb"
    escape(f"a{bad}b").encode("utf-8")


def test_a_table_names_its_columns_and_rows() -> None:
    made = table(("Name", "Rows"), [("<a>", 3)], caption="Things", numbers=(1,))
    assert "<caption>Things</caption>" in made
    assert '<th scope="col">Name</th><th scope="col" class="number">Rows</th>' in made
    assert '<th scope="row">&lt;a&gt;</th><td class="number">3</td>' in made


def test_the_contents_list_follows_the_sections() -> None:
    sections = [Section(id="one", title="One & only", body=tag("p", "x")), Section(id="two", title="Two", body=tag("p", "y"))]
    made = page(title="t", header=tag("header"), sections=sections)
    assert '<li><a href="#one">One &amp; only</a></li><li><a href="#two">Two</a></li>' in made
    assert "Content-Security-Policy" in made
    assert "default-src 'none'" in made


def test_the_style_asks_for_nothing() -> None:
    assert "url(" not in stylesheet()
    assert "@import" not in stylesheet()
    assert "/*" not in stylesheet()


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_stands_out_from_the_paper(scheme: str) -> None:
    """WCAG AA: 4.5 for text, against the page and against the raised panels."""
    blocks = re.findall(r":root \{([^}]*)\}", stylesheet())
    colours = dict(COLOURS.findall(blocks[0]))
    colours |= dict(COLOURS.findall(blocks[{"light": 0, "dark": 1, "print": 2}[scheme]]))
    for ink in ("ink", "quiet", "accent", "good", "bad", "warn"):
        for paper in ("paper", "raised"):
            assert _contrast(colours[ink], colours[paper]) >= 4.5, f"{ink} on {paper} in {scheme}"
    for mark in ("other", *(f"c{i}" for i in range(1, 8))):
        assert _contrast(colours[mark], colours["paper"]) >= 2.9, f"{mark} in {scheme}"


def _contrast(first: str, second: str) -> float:
    high, low = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) > 4 else "".join(c * 2 for c in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
