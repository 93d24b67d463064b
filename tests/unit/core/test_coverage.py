from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mean_pinball_loss

from tidemill.core.coverage import coverage
from tidemill.core.errors import DataError


def rows(num: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y_N = rng.normal(size=num)
    return y_N, np.stack([rng.normal(-1.5, 0.1, num), rng.normal(1.2, 0.1, num)], axis=1)


def test_the_shares_and_widths_are_those_of_the_rows() -> None:
    y_N, ends_N2 = rows()
    found = coverage(y_N, ends_N2, level=0.8)
    inside_N = (y_N >= ends_N2[:, 0]) & (y_N <= ends_N2[:, 1])
    assert found["coverage"] == pytest.approx(inside_N.mean())
    assert found["below"] + found["above"] + found["coverage"] == pytest.approx(1)
    assert found["below"] == pytest.approx(np.mean(y_N < ends_N2[:, 0]))
    assert found["mean_width"] == pytest.approx((ends_N2[:, 1] - ends_N2[:, 0]).mean())
    assert found["target_width"] == pytest.approx(2 * 1.2816, rel=0.05)
    losses = [mean_pinball_loss(y_N, ends_N2[:, i], alpha=alpha) for i, alpha in enumerate((0.1, 0.9))]
    assert found["pinball"] == pytest.approx(np.mean(losses))


def test_whole_weights_count_as_repeated_rows() -> None:
    y_N, ends_N2 = rows(300)
    times_N = np.random.default_rng(1).integers(0, 4, 300)
    weighted = coverage(y_N, ends_N2, level=0.8, weight_N=times_N)
    repeated = coverage(np.repeat(y_N, times_N), np.repeat(ends_N2, times_N, axis=0), level=0.8)
    for name in ("coverage", "below", "above", "mean_width", "pinball"):
        assert weighted[name] == pytest.approx(repeated[name])
    assert weighted["low"] < repeated["low"]  # repeated rows are no new evidence


def test_its_own_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        found = coverage(rng.random(120), np.tile([0.0, 0.9], (120, 1)), level=0.9)
        held += found["low"] <= 0.9 <= found["high"]
    assert 0.92 <= held / 400 <= 0.98


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(DataError, match="low and high of each of at least one row"):
        coverage(np.empty(0), np.empty((0, 2)), level=0.9)
    with pytest.raises(DataError, match="must be finite"):
        coverage(np.array([1.0]), np.array([[0.0, np.nan]]), level=0.9)
