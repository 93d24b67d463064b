from __future__ import annotations

from typing import Any

import pytest

from tidemill.ui.collect import Report
from tidemill.ui.training import model


def report(**train: Any) -> Report:
    return Report(run={}, stages={}, files={"train/train.json": {"kind": "xgboost", **train}})


@pytest.mark.parametrize("undefined", [False, True])
def test_the_curve_of_growing_samples_is_drawn(undefined: bool) -> None:
    curve: list[dict[str, Any]] = [
        {"rows": 100 * 2**i, "share": 0.1 * 2**i, "train": 0.9 - i / 100, "valid": 0.7 + i / 100, "seconds": 1.5} for i in range(4)
    ]
    if undefined:
        curve[0]["valid"] = None
    page = str(model(report(learning_curve=curve, stopped="All training rows are used.", curve_metric="roc_auc")).body)  # type: ignore[union-attr]
    assert "Growing samples" in page
    assert "ROC AUC by training rows. All training rows are used." in page
    assert page.count("validation, ") == (3 if undefined else 4)
    assert "validation, 800 rows: 0.73" in page


def test_without_samples_there_is_no_such_curve() -> None:
    section = model(report())
    assert section is not None
    assert "Growing samples" not in str(section.body)
