from __future__ import annotations

import numpy as np
import pytest

from tidemill.models import pooling


def softmax(score_NK: np.ndarray) -> np.ndarray:
    power_NK = np.exp(score_NK)
    return power_NK / power_NK.sum(axis=1, keepdims=True)


def loss(p_NK: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray) -> float:
    return float(-np.average(np.log(p_NK[np.arange(len(y_N)), y_N]), weights=weight_N))


@pytest.fixture
def classes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of three classes by three models, of which the last says nothing; true classes; weights."""
    rng = np.random.default_rng(0)
    truth_NK = rng.normal(size=(4000, 3))
    y_N = np.array([rng.choice(3, p=p) for p in softmax(truth_NK)])
    scores = [
        truth_NK + rng.normal(scale=0.7, size=truth_NK.shape),
        truth_NK + rng.normal(scale=1.0, size=truth_NK.shape),
        rng.normal(size=(4000, 3)),
    ]
    return np.stack([softmax(score) for score in scores], axis=1), y_N, rng.uniform(0.5, 2, 4000)


def test_shares_of_probabilities_are_the_best_mixture(classes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    answer_NMK, y_N, weight_N = classes
    share_M = pooling.shares(answer_NMK, y_N, weight_N)
    assert share_M.sum() == pytest.approx(1)
    assert share_M[0] > share_M[1] > share_M[2] >= 0
    best = loss(np.einsum("nmk,m->nk", answer_NMK, share_M), y_N, weight_N)
    for i in range(3):
        for moved in (0.02, -0.02):
            other_M = np.maximum(share_M + moved * np.eye(3)[i], 0)
            assert best <= loss(np.einsum("nmk,m->nk", answer_NMK, other_M / other_M.sum()), y_N, weight_N) + 1e-9


def test_shares_of_numbers_are_the_best_mean() -> None:
    rng = np.random.default_rng(1)
    y_N = 1e4 + 300 * rng.normal(size=2000)
    answer_NM = np.stack([y_N + 30 * rng.normal(size=2000), y_N + 60 * rng.normal(size=2000), y_N + 1000 + rng.normal(size=2000)], axis=1)
    share_M = pooling.shares(answer_NM[:, :, None], y_N)
    assert share_M == pytest.approx([0.8, 0.2, 0.0], abs=0.03)  # by inverse variance; what is always off gets nothing
    assert (share_M >= 0).all()
    assert share_M.sum() == pytest.approx(1)


def test_stacking_of_classes_finds_what_it_was_made_from() -> None:
    rng = np.random.default_rng(2)
    level_NMK = np.log(np.stack([softmax(rng.normal(size=(30_000, 3))) for _ in range(2)], axis=1))
    score_NK = 1.5 * level_NMK[:, 0] + 0.5 * level_NMK[:, 1] + [0.5, 0.0, -0.5]
    y_N = np.array([rng.choice(3, p=p) for p in softmax(score_NK)])
    weight_M, offset_K = pooling.stack(level_NMK, y_N, classes=True, non_negative=True)
    assert weight_M == pytest.approx([1.5, 0.5], abs=0.06)
    assert offset_K - offset_K.mean() == pytest.approx([0.5, 0.0, -0.5], abs=0.06)


@pytest.mark.parametrize("non_negative", [True, False])
def test_stacking_of_numbers_is_least_squares(non_negative: bool) -> None:
    rng = np.random.default_rng(3)
    level_NM = 500 + rng.normal(size=(3000, 3)) * [10, 20, 30]
    y_N = level_NM @ [1.2, -0.4, 0.3] + 7 + rng.normal(size=3000)
    weight_N = rng.uniform(0.5, 2, 3000)
    weight_M, offset_K = pooling.stack(level_NM[:, :, None], y_N, weight_N, classes=False, non_negative=non_negative)
    used = [0, 2] if non_negative else [0, 1, 2]
    design_ND = np.column_stack([level_NM[:, used], np.ones(3000)]) * np.sqrt(weight_N)[:, None]
    expected, *_ = np.linalg.lstsq(design_ND, y_N * np.sqrt(weight_N), rcond=None)
    assert weight_M[used] == pytest.approx(expected[:-1], rel=0.02)
    answer_N, expected_N = level_NM @ weight_M + offset_K, level_NM[:, used] @ expected[:-1] + expected[-1]
    assert np.abs(answer_N - expected_N).max() < 0.01 * np.std(y_N)  # one row's worth of pull to equal weights
    assert weight_M[1] == (0 if non_negative else pytest.approx(-0.4, rel=0.05))


def test_newton_stops_at_the_bound() -> None:
    hessian = np.array([[2.0, 0.5], [0.5, 1.0]])
    target = np.array([-1.0, 3.0])

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        away = theta - target
        return float(away @ hessian @ away) / 2, hessian @ away, hessian

    assert pooling.newton(loss, np.array([0.5, 0.5])) == pytest.approx(target)
    assert pooling.newton(loss, np.array([0.5, 0.5]), bounded=2) == pytest.approx([0.0, 2.5])
