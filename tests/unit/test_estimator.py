"""The estimators keep scikit-learn's convention, and take tables as they are."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from tidemill import TidemillClassifier, TidemillRegressor

# Of all rows and features: rows that are drawn are others where a row is repeated instead of weighted.
QUICK = {"num_rounds": 20, "learning_rate": 0.1, "subsample": 1.0, "colsample": 1.0}
ESTIMATORS = [TidemillClassifier(parameters=QUICK), TidemillRegressor(parameters=QUICK), TidemillRegressor("linear")]


def known_gaps(estimator: Any) -> dict[str, str]:
    gap = "check_sample_weight_equivalence_on_dense_data"
    if isinstance(estimator, TidemillClassifier):
        return {gap: "XGBoost's quantile sketch does not treat a weight as repeated rows"}
    return {}


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(ESTIMATORS, expected_failed_checks=known_gaps)
def test_scikit_learn_finds_no_fault(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x, kind = rng.normal(size=400), rng.choice(["a", "b", "ü"], size=400)
    frame = pd.DataFrame({"x": x, "kind": kind, "when": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 1000, 400), "h")})
    frame.loc[::17, "kind"] = None
    return frame.assign(y=np.where(x + (kind == "a") > 0.3, "yes", "no"))


def test_frames_of_every_kind_answer_alike(table: pd.DataFrame) -> None:
    fitted = TidemillClassifier(parameters=QUICK).fit(table.drop(columns="y"), table["y"])
    expected = fitted.predict_proba(table.drop(columns="y"))
    assert (fitted.predict(table.drop(columns="y")) == table["y"]).mean() > 0.95
    polars = pl.from_pandas(table.drop(columns="y"))
    np.testing.assert_array_equal(fitted.predict_proba(polars), expected)
    np.testing.assert_array_equal(fitted.predict_proba(polars.to_arrow()), expected)


def test_it_survives_pickle_and_clone(table: pd.DataFrame) -> None:
    x, y = table.drop(columns="y"), table["y"]
    fitted = TidemillClassifier(parameters=QUICK, random_state=3).fit(x, y)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(x), fitted.predict_proba(x))
    np.testing.assert_array_equal(clone(fitted).fit(x, y).predict_proba(x), fitted.predict_proba(x))


def test_it_works_in_cross_validation(table: pd.DataFrame) -> None:
    scores = cross_val_score(TidemillClassifier(parameters=QUICK), table.drop(columns="y"), table["y"], cv=3)
    assert scores.min() > 0.9
