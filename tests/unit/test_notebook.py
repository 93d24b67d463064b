"""`tm.fit` takes a frame and leaves a package that answers alike for pandas, Polars and Arrow."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import tidemill as tm
from tidemill.core.errors import ConfigError, ContractViolation, DataError


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x, kind = rng.normal(size=1200), rng.choice(["a", "b", "c"], size=1200)
    return pd.DataFrame({"x": x, "kind": kind, "late": x + (kind == "a") + rng.normal(size=1200) * 0.3 > 0.4})


@pytest.fixture(scope="module")
def model(frame: pd.DataFrame) -> tm.Model:
    return tm.fit(frame, target="late", model="linear")


def test_it_predicts(model: tm.Model, frame: pd.DataFrame) -> None:
    predicted = model.predict(frame)
    assert predicted.dtype == bool
    assert (predicted == frame["late"]).mean() > 0.85
    assert model.classes == [False, True]
    np.testing.assert_allclose(model.predict_proba(frame).sum(axis=1), 1, atol=1e-6)


def test_frames_of_every_kind_answer_alike(model: tm.Model, frame: pd.DataFrame) -> None:
    expected = model.predict_proba(frame)
    for same in (pl.from_pandas(frame), pl.from_pandas(frame).lazy(), pa.Table.from_pandas(frame), frame.set_index(frame.index + 7)):
        np.testing.assert_array_equal(model.predict_proba(same), expected)


def test_its_repr_reads(model: tm.Model) -> None:
    said = repr(model).splitlines()
    assert said[0] == "<tidemill.Model model: binary of 'late'>"
    assert said[1].split() == ["columns", "x,", "kind"]
    assert "roc_auc 0." in said[2]
    assert model._repr_html_().startswith("<pre>&lt;tidemill.Model")


def test_it_is_saved_as_a_package(model: tm.Model, frame: pd.DataFrame, tmp_path: Path) -> None:
    saved = tm.Package.open(model.save(tmp_path / "kept"))
    np.testing.assert_array_equal(tm.Model(saved).predict(frame), model.predict(frame))


def test_the_temporary_home_goes_with_the_model(frame: pd.DataFrame) -> None:
    made = tm.fit(frame, target="late", model="linear")
    path = made.package.path
    assert path.exists()
    del made
    gc.collect()
    assert not path.exists()


def test_a_home_keeps_versions(frame: pd.DataFrame, tmp_path: Path) -> None:
    first = tm.fit(frame, target="late", model="linear", home=tmp_path / "home", name="late")
    again = tm.fit(frame, target="late", model="linear", home=tmp_path / "home", name="late")
    assert first.package.identity == again.package.identity
    assert again.package.version == "1"


def test_numbers_and_text_are_told_apart(frame: pd.DataFrame) -> None:
    assert tm.fit(frame, target="x", model="linear", contract={"parity": 1e-4}).package.task == "regression"
    assert tm.fit(frame, target="kind", model="linear").package.task == "multiclass"


def test_intervals_are_asked_for_and_answered(frame: pd.DataFrame) -> None:
    settings = {"kind": "xgboost", "num_rounds": 20, "max_depth": 3, "interval": 0.8}
    numbers = frame.assign(y=frame["x"] * 3 + np.random.default_rng(1).normal(size=len(frame)))
    made = tm.fit(numbers, target="y", model=settings, contract={"parity": 1e-4, "interval": {"min_coverage": 0.5}})
    low, high = made.predict_interval(numbers).T
    predicted = made.predict(numbers)
    assert ((low <= predicted) & (predicted <= high)).all()
    assert ((low <= numbers["y"]) & (numbers["y"] <= high)).mean() > 0.7
    with pytest.raises(ConfigError, match=r"contract\.interval: needs intervals"):
        tm.fit(numbers, target="y", contract={"interval": {"min_coverage": 0.5}})


def test_mistakes_are_named(frame: pd.DataFrame, model: tm.Model) -> None:
    with pytest.raises(DataError, match="predict_interval needs a model with intervals"):
        model.predict_interval(frame)
    with pytest.raises(DataError, match="pandas, Polars or Arrow"):
        tm.fit([1, 2], target="late")
    with pytest.raises(Exception, match="lat"):
        tm.fit(frame, target="lat")
    with pytest.raises(ConfigError, match=r"modle|fit"):
        tm.fit(frame, target="late", modle={"kind": "linear"})
    with pytest.raises(DataError, match="'kind'"):
        model.predict(frame.drop(columns="kind"))


def test_noise_is_refused() -> None:
    rng = np.random.default_rng(1)
    noise = pd.DataFrame({"x": rng.normal(size=4000), "y": rng.integers(0, 2, 4000)})
    with pytest.raises(ContractViolation, match=r"promised >= 0\.7"):
        tm.fit(noise, target="y", model="linear", contract={"quality": {"min": 0.7}})
