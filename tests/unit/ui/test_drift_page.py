from __future__ import annotations

import re
from typing import Any

import pytest

from tidemill.ui.drift import render_drift

HOSTILE = "</title><script>alert(1)</script>\x1b"


def column(name: str, level: str, psi: float, **more: Any) -> dict[str, Any]:
    edges = [0, 10, 20, 30, 40, 50]
    return {
        "name": name, "type": "float64", "psi": psi, "js": psi / 3, "ks": psi / 2, "null_share_reference": 0.01, "null_share_current": 0.04,
        "level": level, "reference": {"edges": edges, "shares": [0.1, 0.3, 0.3, 0.2, 0.1]}, "current": {"shares": [0.02, 0.13, 0.25, 0.35, 0.25]}, **more,
    }  # fmt: skip


def drifted() -> dict[str, Any]:
    carriers = {"labels": ["UA", "B6", HOSTILE, "other"], "shares": [0.4, 0.3, 0.2, 0.1]}
    return {
        "name": "flights", "version": 3, "reference": {"rows": 269_421},
        "current": {"rows": 12_000, "from": "2013-11-01T00:00:00Z", "to": "2013-11-14T00:00:00Z"},
        "columns": [
            column("distance", "stable", 0.02),
            column("temp", "severe", 0.61),
            column("carrier", "moderate", 0.18, type="string", unseen=0.03, reference=carriers, current={"shares": [0.2, 0.35, 0.25, 0.2]}),
            column("time_hour", "severe", 3.2, type="timestamp", reference={"edges": [1.3e15, 1.31e15, 1.35e15, 1.36e15], "shares": [0.5, 0.3, 0.2]}, current={"shares": [0, 0, 1]}),
            column("quantiles", "moderate", 0.2, reference={"edges": [0, 1, 3, 900, 1e6], "shares": [0.25] * 4}, current={"shares": [0.1, 0.2, 0.3, 0.4]}),
        ],
        "prediction": column("prediction", "moderate", 0.14, reference={"edges": [i / 20 for i in range(21)], "shares": [0.05] * 20},
                             current={"shares": [0.01 * (i % 10) for i in range(20)]}),
        "quality": {"metric": "roc_auc", "value": 0.6612, "low": 0.651, "high": 0.671, "rows": 9000, "expected": {"value": 0.7071, "rows": 33_678}},
        "verdict": {"level": "severe", "text": "2 of 5 columns moved severely: temp, time_hour."},
    }  # fmt: skip


def test_the_page_tells_the_verdict_and_draws_what_moved() -> None:
    text = render_drift(drifted())
    assert re.findall(r'<section id="(\w+)">', text) == ["prediction", "quality", "moved", "columns"]
    assert "Severe drift." in text
    assert "2 of 5 columns moved severely" in text
    assert "4 of 5" in text
    assert "0.6612 (0.6510 to 0.6710)" in text
    assert "0.7071 when packaged" in text


def test_the_furthest_columns_come_first() -> None:
    text = render_drift(drifted())
    listed = re.findall(r'<th scope="row"><span>(\w+)</span>', text[text.index('id="columns"') :])
    assert listed == ["time_hour", "temp", "quantiles", "carrier", "distance"]


def test_what_did_not_move_is_not_drawn() -> None:
    text = render_drift({**drifted(), "columns": [column("distance", "stable", 0.02)], "verdict": {"level": "stable", "text": ""}})
    assert 'id="moved"' not in text
    assert "Stable." in text


def test_values_of_the_data_stay_text() -> None:
    text = render_drift({**drifted(), "name": HOSTILE, "verdict": {"level": "severe", "text": HOSTILE}})
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("gone", ["version", "reference", "current", "columns", "prediction", "quality", "verdict"])
def test_a_part_that_is_absent_is_left_out(gone: str) -> None:
    report = drifted()
    del report[gone]
    assert "flights" in render_drift(report)
    assert "flights" in render_drift({**report, gone: None})


def test_bins_of_very_different_width_stand_side_by_side() -> None:
    text = render_drift({**drifted(), "columns": [drifted()["columns"][4]]})
    assert '<rect x="25.00%"' in text[text.index('id="moved"') :]


@pytest.mark.parametrize("edges", [[None, 1.0, None], [float("-inf"), 0.5, float("inf")], [], [1.0, 1.0, 1.0]])
def test_open_or_missing_edges_are_drawn(edges: list[Any]) -> None:
    odd = column("x", "severe", float("inf"), reference={"edges": edges, "shares": [0.5, 0.5]}, current={"shares": [0.1, 0.9]})
    assert "x" in render_drift({**drifted(), "columns": [odd]})
