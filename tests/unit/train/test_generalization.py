from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tidemill.train.generalization import judge, noise


def judged(train: float | None, valid: float, trivial: float, *, noise: float = 0.01, kind: str = "xgboost", **more: Any) -> Any:
    losses = [{"log_loss": value} for value in (train, valid, trivial)]
    return judge("binary", kind=kind, train=losses[0], valid=losses[1], trivial=losses[2], noise=noise, **more)


@pytest.mark.parametrize(
    ("train", "valid", "trivial", "verdict"),
    [
        (0.30, 0.42, 0.60, "overfit"),  # 0.12 of the 0.30 gained
        (0.30, 0.36, 0.60, "usual"),  # beyond noise, a fifth of the gain
        (0.30, 0.305, 0.60, "alike"),
        (0.30, 0.29, 0.60, "alike"),  # validation rows are easier
        (0.58, 0.588, 0.60, "usual"),  # a large share of a small gain, within noise
        (0.30, 0.61, 0.60, "useless"),
        (0.62, 0.59, 0.60, "useless"),  # nothing was gained on the training rows
    ],
)
def test_the_verdict_is_the_gap_against_noise_and_gain(train: float, valid: float, trivial: float, verdict: str) -> None:
    found = judged(train, valid, trivial)
    assert found["verdict"] == verdict
    assert found["gap"] == pytest.approx(valid - train)
    assert found["said"].endswith(".")


def test_it_is_said_in_words_with_advice_for_the_kind() -> None:
    said = judged(0.30, 0.42, 0.60)["said"]
    assert said.startswith(
        "Training log loss 0.3, validation 0.42: the gap of 0.12 is 12.0 times what noise explains and takes back 40% of the gain"
    )
    assert "a smaller max_depth" in said
    assert "a larger l2" in judged(0.30, 0.42, 0.60, kind="linear")["said"]
    assert "a smaller model" in judged(0.30, 0.42, 0.60, kind="my.module:build")["said"]
    assert "a larger model may find more" in judged(0.30, 0.30, 0.60)["said"]


def test_a_fit_that_was_cut_off_is_told() -> None:
    found = judged(0.30, 0.36, 0.60, best_round=99, num_rounds=100)
    assert found["cut_off"]
    assert found["said"].endswith("The best round is the last of 100: raise model.num_rounds.")
    assert not judged(0.30, 0.36, 0.60, best_round=98, num_rounds=100)["cut_off"]
    assert not judged(0.30, 0.36, 0.60)["cut_off"]


def test_nothing_is_said_of_what_is_undefined() -> None:
    assert judged(None, 0.36, 0.60) is None
    assert judged(0.30, 0.36, 0.60, noise=float("nan")) is None


def test_noise_is_how_far_the_loss_of_other_rows_lies() -> None:
    rng = np.random.default_rng(0)

    def rows(num: int) -> tuple[np.ndarray, np.ndarray]:
        p_N = rng.uniform(0.05, 0.95, num)
        return (rng.random(num) < p_N).astype(float), p_N

    losses = []
    for _ in range(200):
        y_N, p_N = rows(1000)
        losses.append(-np.mean(y_N * np.log(p_N) + (1 - y_N) * np.log(1 - p_N)))
    assert noise("binary", *rows(1000)) == pytest.approx(1.96 * np.std(losses), rel=0.25)
    assert noise("binary", *rows(120_000)) == pytest.approx(1.96 * np.std(losses) / np.sqrt(120), rel=0.25)
