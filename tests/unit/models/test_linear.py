from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, LogisticRegression, Ridge

from tidemill.core.errors import DataError
from tidemill.models import linear
from tidemill.models.base import Batch, MemoryMatrix
from tidemill.models.gram import Gram
from tidemill.models.linear import Linear, LinearParams
from tidemill.models.quadratic import least
from tidemill.models.scaling import Scaling

ANY_FLOATS = hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(3)), elements=st.floats(width=32))


class Cut(MemoryMatrix):
    """Rows in batches of some size; tells of each pass."""

    def __init__(self, x_NF: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray | None, *, rows: int, on_pass: Any = None) -> None:
        super().__init__(x_NF, y_N, weight_N)
        self._rows, self._on_pass = rows, on_pass

    def batches(self) -> Any:
        if self._on_pass is not None:
            self._on_pass(1)
        (whole,) = super().batches()
        for start in range(0, self.num_rows, self._rows):
            part = slice(start, start + self._rows)
            yield Batch(whole.x_NF[part], whole.y_N[part], None if whole.weight_N is None else whole.weight_N[part])


def fit(
    x_NF: np.ndarray, y_N: np.ndarray, task: str = "regression", classes: int | None = None, *, weight_N: Any = None, **params: Any
) -> Any:
    matrix = MemoryMatrix(x_NF, y_N, weight_N)
    return Linear().fit(matrix, None, task=task, num_classes=classes, params=LinearParams(**params), seed=0, threads=1)


def rows(seed: int = 0, num: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of very different units, a target, and weights."""
    rng = np.random.default_rng(seed)
    x_NF = (rng.normal(size=(num, 5)) * [1, 100, 0.01, 1, 3] + [0, 50, 0, 1e3, -7]).astype(np.float32)
    y_N = x_NF[:, 0] - x_NF[:, 1] / 100 + (x_NF[:, 4] > -7) + rng.normal(scale=0.3, size=num) + 1e4
    return x_NF, y_N, rng.uniform(0.1, 3, num)


def standardised(x_NF: np.ndarray, weight_N: np.ndarray) -> np.ndarray:
    matrix = MemoryMatrix(x_NF, np.zeros(len(x_NF)), weight_N)
    return Scaling.of(matrix).apply(x_NF)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("peer", "l1", "l2"),
    [
        (LinearRegression(), 0.0, 0.0),
        (Ridge(alpha=30.0), 0.0, 30.0),
        (Lasso(alpha=0.05, tol=1e-14, max_iter=100_000), 0.05, 0.0),
        (ElasticNet(alpha=0.1, l1_ratio=0.3, tol=1e-14, max_iter=100_000), 0.03, 0.07),
    ],
    ids=lambda value: type(value).__name__,
)
def test_regression_is_what_scikit_learn_gives(peer: Any, l1: float, l2: float, weighted: bool) -> None:
    x_NF, y_N, weight_N = rows()
    weight_N = weight_N if weighted else np.ones(len(y_N))
    z_NF = standardised(x_NF, weight_N)
    total = weight_N.sum() if isinstance(peer, ElasticNet) else 1.0  # theirs is a mean, ours a sum
    gram = Gram.of(Cut(x_NF, y_N, weight_N, rows=130))
    assert gram is not None
    b_F = least(gram.xx_FF + total * l2 * np.eye(5), gram.xy_F, l1=total * l1)
    peer.fit(z_NF, y_N, sample_weight=weight_N)
    np.testing.assert_allclose(b_F, peer.coef_, atol=1e-6)
    assert gram.target - gram.mean_F @ b_F == pytest.approx(peer.intercept_, abs=1e-6)
    ours = fit(x_NF, y_N, weight_N=weight_N, l1=total * l1, l2=total * l2)
    np.testing.assert_allclose(ours.predict(x_NF), peer.predict(z_NF), rtol=1e-6)
    assert ((b_F == 0) == (peer.coef_ == 0)).all()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.5), (0.0, 1e-3), (20.0, 0.0), (8.0, 4.0)])
def test_classes_are_what_scikit_learn_gives(classes: int, l1: float, l2: float) -> None:
    x_NF, y_N, weight_N = rows()
    y_N = np.digitize(y_N, np.quantile(y_N, [0.3, 0.7][: classes - 1])).astype(np.float64)
    z_NF = standardised(x_NF, weight_N)
    peer = LogisticRegression(
        C=1 / (l1 + l2), l1_ratio=l1 / (l1 + l2), solver="saga" if l1 else "newton-cholesky", tol=1e-10, max_iter=100_000
    )
    peer.fit(z_NF, y_N, sample_weight=weight_N)
    ours = fit(x_NF, y_N, "binary" if classes == 2 else "multiclass", classes, weight_N=weight_N, l1=l1, l2=l2)
    np.testing.assert_allclose(ours.predict(x_NF), peer.predict_proba(z_NF), atol=1e-6)
    assert ((ours.coefficient_SF == 0) == (np.abs(peer.coef_) < 1e-8)).all()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("l1", [0.0, 15.0])
def test_a_start_on_a_sample_ends_at_the_same_place(classes: int, l1: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x_NF, y_N, weight_N = rows(num=3000)
    y_N = np.digitize(y_N, np.quantile(y_N, [0.3, 0.7][: classes - 1])).astype(np.float64)
    task = "binary" if classes == 2 else "multiclass"
    whole = fit(x_NF, y_N, task, classes, weight_N=weight_N, l1=l1)
    passes = []
    monkeypatch.setattr(linear, "SAMPLE_ROWS", 300)
    matrix = Cut(x_NF, y_N, weight_N, rows=700, on_pass=passes.append)
    sampled = Linear().fit(matrix, None, task=task, num_classes=classes, params=LinearParams(l1=l1), seed=0, threads=1)
    np.testing.assert_allclose(sampled.coefficient_SF, whole.coefficient_SF, atol=2e-6)
    assert len(passes) <= 6


def test_features_that_repeat_each_other_share_what_one_would_get() -> None:
    x_NF, y_N, weight_N = rows()
    x_NF = np.concatenate([x_NF, x_NF[:, :1], x_NF[:, :1] * 2 - 3, np.full((len(x_NF), 1), 5, np.float32)], axis=1)
    ours = fit(x_NF, y_N, weight_N=weight_N, l2=0.0)
    z_NF = standardised(x_NF, weight_N)
    np.testing.assert_allclose(ours.predict(x_NF), LinearRegression().fit(z_NF, y_N, weight_N).predict(z_NF), rtol=1e-6)
    assert ours.coefficient_SF[0, [5, 6]] == pytest.approx(ours.coefficient_SF[0, 0], rel=1e-3)
    assert ours.coefficient_SF[0, 7] == 0


@pytest.mark.parametrize("num", [6, 400])
def test_one_scan_gives_what_the_standardised_rows_give(num: int) -> None:
    """Missing values and infinities included, in whatever batches they turn up, also in a column's first ones."""
    x_NF, y_N, weight_N = rows(num=num)
    rng = np.random.default_rng(1)
    x_NF[rng.random(x_NF.shape) < 0.2] = np.nan
    x_NF[rng.random(x_NF.shape) < 0.05] = np.inf
    x_NF[rng.random(x_NF.shape) < 0.05] = -np.inf
    x_NF[: num // 2, 3] = np.nan
    weight_N[::7] = 0
    gram = Gram.of(Cut(x_NF, y_N, weight_N, rows=97))
    assert gram is not None
    z_NF = standardised(x_NF, weight_N)
    mean_F = np.average(z_NF, axis=0, weights=weight_N)
    centred_NF = (z_NF - mean_F) * np.sqrt(weight_N)[:, None]
    np.testing.assert_allclose(gram.mean_F, mean_F, atol=1e-6)
    np.testing.assert_allclose(gram.xx_FF, centred_NF.T @ centred_NF, atol=1e-6 * num)
    np.testing.assert_allclose(gram.xy_F, (z_NF - mean_F).T @ (weight_N * (y_N - gram.target)), atol=1e-6 * num)
    assert gram.target == pytest.approx(np.average(y_N, weights=weight_N), rel=1e-12)


def test_a_column_that_moves_far_keeps_its_digits() -> None:
    """Sorted by a column far from 0 and narrow in each batch, as a time is."""
    rng = np.random.default_rng(0)
    x_NF = np.sort(rng.uniform(1e6, 1e6 + 4096, (20_000, 1)), axis=0).astype(np.float32)
    x_NF = np.concatenate([x_NF, rng.normal(size=(len(x_NF), 1)).astype(np.float32)], axis=1)
    y_N = (x_NF[:, 0].astype(np.float64) - 1e6) * 3 + x_NF[:, 1]
    gram = Gram.of(Cut(x_NF, y_N, None, rows=50))
    assert gram is not None
    b_F = least(gram.xx_FF, gram.xy_F)
    np.testing.assert_allclose(b_F / gram.scaling.scale, [3, 1], rtol=1e-9)


def test_weights_standardise_too() -> None:
    x_NF, y_N, _ = rows(num=60)
    weight_N = np.random.default_rng(2).integers(0, 4, 60).astype(np.float64)
    repeated = np.repeat(np.arange(60), weight_N.astype(int))
    for task, classes, target_N in (("regression", None, y_N), ("binary", 2, (y_N > np.median(y_N)).astype(np.float64))):
        once = fit(x_NF, target_N, task, classes, weight_N=weight_N)
        often = fit(x_NF[repeated], target_N[repeated], task, classes)
        np.testing.assert_allclose(once.predict(x_NF), often.predict(x_NF), rtol=1e-6)


def test_separable_classes_end_without_a_penalty() -> None:
    x_NF = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    fitted = fit(x_NF, x_NF[:, 0] > 0, "binary", 2, l2=0.0)
    assert np.isfinite(fitted.coefficient_SF).all()
    assert ((fitted.predict(x_NF)[:, 1] > 0.5) == (x_NF[:, 0] > 0)).all()


@pytest.mark.parametrize(("task", "classes"), [("regression", None), ("binary", 2), ("multiclass", 3)])
@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.0, 2.0), (5.0, 1.0)])
def test_too_many_features_go_to_the_library(task: str, classes: int | None, l1: float, l2: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x_NF, y_N, weight_N = rows()
    y_N = y_N if classes is None else np.digitize(y_N, np.quantile(y_N, [0.3, 0.7][: classes - 1])).astype(np.float64)
    exact = fit(x_NF, y_N, task, classes, weight_N=weight_N, l1=l1, l2=l2, max_iter=2000)
    monkeypatch.setattr(linear, "MAX_UNKNOWNS", dict.fromkeys(linear.MAX_UNKNOWNS, 2))
    peer = fit(x_NF, y_N, task, classes, weight_N=weight_N, l1=l1, l2=l2, max_iter=2000)
    np.testing.assert_allclose(peer.predict(x_NF), exact.predict(x_NF), rtol=1e-3, atol=1e-2)


def test_missing_is_the_mean() -> None:
    x_NF = np.float32([[1, 10], [3, 30], [np.nan, 20], [5, np.nan]])
    fitted = fit(x_NF, np.array([1.0, 2, 3, 4]))
    np.testing.assert_allclose(fitted.predict(np.float32([[np.nan, np.nan]])), fitted.predict(np.float32([[3, 20]])), rtol=1e-6)


def test_values_are_held_within_a_range_width_of_training() -> None:
    x_NF = np.float32([[0], [10]])
    fitted = fit(x_NF, np.array([0.0, 10.0]), l2=1e-9)
    far = fitted.predict(np.float32([[20], [21], [np.inf], [-10], [-11], [-np.inf]]))
    np.testing.assert_allclose(far, [20, 20, 20, -10, -10, -10], rtol=1e-5)


@given(ANY_FLOATS)
def test_any_training_rows_give_finite_standardised_values(x_NF: np.ndarray) -> None:
    scaling = Scaling.of(MemoryMatrix(x_NF, np.zeros(len(x_NF))))
    probe_NF = np.float32([[np.nan] * 3, [np.inf] * 3, [-np.inf] * 3, [3e38] * 3, [0] * 3])
    for name in Scaling.FIELDS:
        assert np.isfinite(getattr(scaling, name)).all()
    assert (scaling.scale > 0).all()
    for part in (x_NF, probe_NF):
        assert np.isfinite(scaling.apply(part)).all()


@given(ANY_FLOATS.filter(lambda x: len(x) > 1), st.integers(1, 39))
def test_statistics_merge_over_batches(x_NF: np.ndarray, cut: int) -> None:
    class Cut(MemoryMatrix):
        def batches(self) -> Any:
            for part in (x_NF[:cut], x_NF[cut:]):
                yield Batch(part, np.zeros(len(part)))

    whole, merged = Scaling.of(MemoryMatrix(x_NF, np.zeros(len(x_NF)))), Scaling.of(Cut(x_NF, np.zeros(len(x_NF))))
    spread = np.nan_to_num(np.abs(whole.high.astype(np.float64) - whole.low)) + np.abs(whole.mean) + 1e-30
    for name in Scaling.FIELDS:
        apart = np.abs(getattr(whole, name).astype(np.float64) - getattr(merged, name))
        # A column that is constant but for rounding may fall on either side of being called constant.
        assert (apart <= 1e-5 * spread + (whole.scale == 1) + (merged.scale == 1)).all(), name


def test_too_many_rows_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x_NF = rng.normal(size=(1000, 2)).astype(np.float32)
    y_N = np.arange(1000.0)
    monkeypatch.setattr(linear, "MAX_BYTES", 250 * 2 * 8)

    class Parts(MemoryMatrix):
        def batches(self) -> Any:
            for start in range(0, 1000, 130):
                yield Batch(x_NF[start : start + 130], y_N[start : start + 130], y_N[start : start + 130])

    matrix = Parts(x_NF, y_N)
    z_NF, kept_N, weight_N = linear._thinned(matrix, Scaling.of(matrix))
    assert kept_N.tolist() == list(range(0, 1000, 4))
    assert weight_N is not None
    assert weight_N.tolist() == kept_N.tolist()
    assert z_NF.shape == (250, 2)


def test_a_single_class_is_an_error() -> None:
    with pytest.raises(DataError, match="at least two classes, got one"):
        fit(np.float32([[1], [2]]), np.array([1.0, 1.0]), "binary", 2)
