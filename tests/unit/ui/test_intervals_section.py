"""What a report says of intervals and of the gap between training and validation."""

from __future__ import annotations

from typing import Any

from tidemill.ui.collect import Report
from tidemill.ui.quality import quality
from tidemill.ui.training import model

METRICS = {"rmse": {"point": 2.0, "low": 1.9, "high": 2.1}}
INTERVAL = {
    "level": 0.9, "rows": 500, "coverage": 0.874, "low": 0.84, "high": 0.897, "below": 0.05, "above": 0.076, "mean_width": 12.25,
    "median_width": 11.5, "target_width": 40.0, "pinball": 0.7,
}  # fmt: skip


def text(section: Any) -> str:
    assert section is not None
    return f"{section.lead} {section.body}".replace("\u202f", " ").replace("\u00a0", " ")


def report(**files: Any) -> Report:
    found = {"package/evidence/quality.json": {"task": "regression", "rows": 500, "metrics": METRICS}, **files}
    return Report(run={}, stages={}, files=found)


def test_intervals_stand_under_quality_with_what_they_held() -> None:
    said = text(quality(report(**{"package/evidence/interval.json": INTERVAL})))
    for part in ("Intervals", "90 %", "87.4 %", "too few", "12.25", "40"):
        assert part in said
    assert "as made" in text(quality(report(**{"package/evidence/interval.json": {**INTERVAL, "high": 0.91}})))
    assert "Intervals" not in text(quality(report()))


def test_the_gap_is_said_where_the_curve_is_drawn() -> None:
    judged = {"verdict": "overfit", "said": "Training log loss 0.3, validation 0.42: the gap of 0.12 is large."}
    history = [{"round": i, "valid_log_loss": 0.6 - 0.01 * i, "train_log_loss": 0.6 - 0.02 * i} for i in range(9)]
    files = {"train/train.json": {"kind": "xgboost", "best_round": 8, "generalization": judged}, "train/history.jsonl": history}
    said = text(model(report(**files)))
    assert judged["said"] in said
    assert "training" in said
    assert "validation" in said
