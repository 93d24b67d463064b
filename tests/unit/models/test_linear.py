from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from tidemill.core.errors import DataError
from tidemill.models import linear
from tidemill.models.base import Batch, MemoryMatrix
from tidemill.models.linear import Linear, LinearParams, Scaling

ANY_FLOATS = hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(3)), elements=st.floats(width=32))


def fit(x_NF: np.ndarray, y_N: np.ndarray, task: str = "regression", classes: int | None = None, **params: Any) -> Any:
    matrix = MemoryMatrix(x_NF, y_N)
    return Linear().fit(matrix, None, task=task, num_classes=classes, params=LinearParams(**params), seed=0, threads=1)


def test_clean_rows_give_what_scikit_learn_gives() -> None:
    rng = np.random.default_rng(0)
    x_NF = (rng.normal(size=(500, 4)) * [1, 100, 0.01, 1] + [0, 50, 0, 1e3]).astype(np.float32)
    y_N = x_NF[:, 0] - x_NF[:, 1] / 100 + rng.normal(scale=0.3, size=500)
    z_NF = StandardScaler().fit_transform(x_NF.astype(np.float64))
    np.testing.assert_allclose(fit(x_NF, y_N, l2=2.0).predict(x_NF), Ridge(alpha=2.0).fit(z_NF, y_N).predict(z_NF), atol=1e-4)
    peer = LogisticRegression(C=0.5, max_iter=200).fit(z_NF, y_N > 0)
    np.testing.assert_allclose(fit(x_NF, y_N > 0, "binary", 2, l2=2.0).predict(x_NF), peer.predict_proba(z_NF), atol=1e-4)


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
