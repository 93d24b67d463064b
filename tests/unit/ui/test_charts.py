from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as st

from tidemill.ui.charts import MAX_DOTS, Axis, bars, dots, line, nice_ticks, plot, sparkline, spread

UNIT = Axis(low=0, high=1)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_inside_and_few(low: float, width: float) -> None:
    high = low + width
    ticks = nice_ticks(low, high)
    assert len(ticks) <= 8
    assert all(low - 1e-6 * width - 1e-9 <= tick <= high + 1e-6 * width + 1e-9 for tick in ticks)


def test_ticks_are_round() -> None:
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(3, 3) == [3]


@given(st.lists(st.one_of(st.none(), st.floats(), st.integers(-10, 10), st.text(max_size=2)), max_size=8))
def test_an_axis_always_has_two_ends(values: list[object]) -> None:
    low, high = spread(values)
    assert low < high


def test_values_are_held_inside_the_axis() -> None:
    axis = Axis(low=0.001, high=10, log=True)
    assert [axis.at(value) for value in (0, 0.001, 0.1, 10, 99)] == [0, 0, 0.5, 1, 1]
    assert [name for _, name in axis.marked()] == ["0.001", "0.01", "0.1", "1", "10"]


def test_a_line_breaks_where_a_point_is_missing() -> None:
    drawn = line([(0, 0), (0.5, 1), (0.6, math.nan), (0.7, 0.5), (1, None)], role="model")(UNIT, UNIT)
    assert re.findall(r'd="([^"]*)"', drawn) == ["M0 2000L1000 0M1400 1000"]


def test_a_step_keeps_its_height() -> None:
    drawn = line([(0, 0), (1, 1)], role="model", step=True)(UNIT, UNIT)
    assert 'd="M0 2000L2000 2000L2000 0"' in drawn


def test_very_many_dots_are_thinned_evenly() -> None:
    drawn = dots([(i / 5000, 0.5) for i in range(5000)], role="model")(UNIT, UNIT)
    assert MAX_DOTS / 2 < drawn.count("<circle") <= MAX_DOTS


def test_bars_stand_between_their_edges() -> None:
    drawn = bars([0, 0.25, 1], [0.5, 1], role="model", titles=["<one>", "two"])(UNIT, UNIT)
    assert '<rect x="0.00%" y="50.00%" width="25.00%" height="50.00%"><title>&lt;one&gt;</title></rect>' in drawn
    assert 'x="25.00%" y="0.00%" width="75.00%" height="100.00%"' in drawn


def test_a_plot_is_named_for_those_who_do_not_see_it() -> None:
    drawn = plot(line([(0, 0), (1, 1)], role="model"), x=UNIT, y=UNIT, title="A < B")
    assert 'role="img" aria-label="A &lt; B"' in drawn
    assert "<title>A &lt; B</title>" in drawn


def test_the_smallest_bar_of_a_sparkline_is_seen() -> None:
    drawn = sparkline([1_000_000, 1, 0], title="t")
    path = re.findall(r' d="([^"]*)"', drawn)[0]
    assert path.count("M") == 2
    assert "V23.0" in path
