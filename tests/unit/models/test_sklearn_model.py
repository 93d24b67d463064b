from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from tidemill.core.errors import ConfigError, DataError, Unsupported
from tidemill.core.project import build, to_plain
from tidemill.models import native, skops
from tidemill.models.base import MemoryMatrix
from tidemill.models.config import ModelConfig
from tidemill.models.sklearn import Estimator, EstimatorParams

CLASSES = {"binary": 2, "multiclass": 3, "regression": None}


def rows(task: str, *, missing: bool = False, num: int = 600) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x_NF = rng.normal(size=(num, 4)).astype(np.float32)
    signal_N = x_NF[:, 0] + np.abs(x_NF[:, 1]) + rng.normal(scale=0.3, size=num)
    if missing:
        x_NF[rng.random(x_NF.shape) < 0.1] = np.nan
    y_N = {"binary": signal_N > 1, "multiclass": np.digitize(signal_N, [0, 1.5]), "regression": signal_N * 10 + 500}[task]
    return x_NF, y_N.astype(np.float64)


def fit(task: str, estimator: str, *, train: Any = None, memory_bytes: int | None = None, missing: bool = False, **arguments: Any) -> Any:
    model = Estimator()
    model.memory_bytes = memory_bytes
    train = MemoryMatrix(*rows(task, missing=missing), names=["a", "b", "c", "d"]) if train is None else train
    params = EstimatorParams(estimator=estimator, arguments=arguments)
    return model.fit(train, None, task=task, num_classes=CLASSES[task], params=params, seed=0, threads=1)


@pytest.mark.parametrize(
    ("task", "estimator", "arguments"),
    [
        ("binary", "sklearn.ensemble:RandomForestClassifier", {"n_estimators": 10}),
        ("multiclass", "sklearn.ensemble:ExtraTreesClassifier", {"n_estimators": 10}),
        ("regression", "sklearn.ensemble:GradientBoostingRegressor", {"n_estimators": 10}),
        ("binary", "sklearn.linear_model:LogisticRegression", {"C": 0.5}),
        ("multiclass", "sklearn.naive_bayes:GaussianNB", {}),
        ("regression", "sklearn.neighbors:KNeighborsRegressor", {"n_neighbors": 3}),
        ("multiclass", "sklearn.neural_network:MLPClassifier", {"hidden_layer_sizes": [8], "max_iter": 30}),
        ("regression", "sklearn.svm:SVR", {}),
    ],
    ids=lambda value: value.partition(":")[2] if isinstance(value, str) else "",
)
def test_graph_native_and_saved_agree(task: str, estimator: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    fitted = fit(task, estimator, **arguments)
    probe_NF = np.concatenate([rows(task)[0], np.float32([[np.inf, -np.inf, 3e38, 0]])])
    expected = fitted.predict(probe_NF)
    (answer,) = ort.InferenceSession(fitted.to_onnx().SerializeToString()).run(None, {"features": probe_NF})
    scale = np.abs(expected).max() if task == "regression" else 1.0
    np.testing.assert_allclose(answer / scale, expected / scale, atol=1e-5)
    native.save(fitted, tmp_path / "native", kind="sklearn")
    loaded = native.load(tmp_path / "native")
    np.testing.assert_array_equal(loaded.predict(probe_NF), expected)
    assert max(fitted.importance(), key=fitted.importance().get) in ("a", "b")


def test_the_estimator_is_fitted_as_by_hand() -> None:
    x_NF, y_N = rows("binary", missing=True)
    peer = HistGradientBoostingClassifier(max_iter=20, random_state=0).fit(x_NF.astype(np.float64), y_N)
    ours = fit("binary", "sklearn.ensemble:HistGradientBoostingClassifier", missing=True, max_iter=20)
    np.testing.assert_array_equal(ours.predict(x_NF), peer.predict_proba(x_NF.astype(np.float64)))


def build_pipeline(scale: bool = True) -> Pipeline:
    from sklearn.linear_model import LogisticRegression

    return make_pipeline(StandardScaler(with_mean=scale), LogisticRegression())


def test_a_function_of_ones_own_may_put_it_together() -> None:
    weight_N = np.where(rows("binary")[1] > 0, 9.0, 1.0)
    fitted = [fit("binary", f"{__name__}:build_pipeline", train=MemoryMatrix(*rows("binary"), weights)) for weights in (None, weight_N)]
    before, after = (model.predict(rows("binary")[0])[:, 1].mean() for model in fitted)
    assert after > before + 0.05


class Unconvertible(HistGradientBoostingClassifier):
    """Known to no converter; counts its fits."""

    sizes: list[int] = []

    def fit(self, x_NF: Any, y_N: Any, sample_weight: Any = None) -> Any:
        self.sizes.append(len(x_NF))
        return super().fit(x_NF, y_N, sample_weight)


def test_what_does_not_convert_is_refused_before_it_is_fitted() -> None:
    Unconvertible.sizes.clear()
    with pytest.raises(Unsupported, match="skl2onnx must be able to convert Unconvertible"):
        fit("binary", f"{__name__}:Unconvertible", max_iter=2)
    assert max(Unconvertible.sizes) < 250


@pytest.mark.parametrize(
    ("task", "estimator", "options", "error", "said"),
    [
        (
            "binary",
            "sklearn.linear_model:LogisticRegression",
            {"missing": True},
            DataError,
            "takes no missing values, feature 'a' has some",
        ),
        ("regression", "sklearn.linear_model:LogisticRegression", {}, ConfigError, "must be a regressor"),
        ("binary", "sklearn.linear_model:Ridge", {}, ConfigError, "must be a classifier for a binary task"),
        ("binary", "sklearn.svm:LinearSVC", {}, ConfigError, "has no predict_proba"),
        ("binary", "sklearn.linear_model:LogisticRegression", {"memory_bytes": 1000}, Unsupported, "must have its rows in memory"),
    ],
)
def test_what_cannot_be_is_said_before_training(task: str, estimator: str, options: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        fit(task, estimator, **options)


def test_a_conversion_that_is_wrong_is_refused_before_training() -> None:
    """A forest of scikit-learn sends missing values where it learnt to; its graph does not."""
    with pytest.raises(Unsupported, match="with missing values must answer as it does") as error:
        fit("binary", "sklearn.ensemble:RandomForestClassifier", missing=True, n_estimators=5)
    assert error.value.hint == "impute the missing values"


def test_weights_that_an_estimator_does_not_take_are_named() -> None:
    x_NF, y_N = rows("binary")
    with pytest.raises(Unsupported, match="KNeighborsClassifier takes no row weights"):
        fit("binary", "sklearn.neighbors:KNeighborsClassifier", train=MemoryMatrix(x_NF, y_N, np.ones(len(y_N))))


def test_a_missing_value_that_training_never_had_is_an_error() -> None:
    fitted = fit("binary", "sklearn.linear_model:LogisticRegression")
    with pytest.raises(DataError, match="feature 'c' has some"):
        fitted.predict(np.float32([[0, 0, np.nan, 0]]))


def test_arguments_stand_beside_the_estimator() -> None:
    beside = {"kind": "sklearn", "estimator": "sklearn.ensemble:RandomForestClassifier", "n_estimators": 7, "class_weight": None}
    config = build(ModelConfig, beside, path="model")
    assert config.parameters() == EstimatorParams(estimator=beside["estimator"], arguments={"n_estimators": 7})  # type: ignore[arg-type]
    assert (
        build(ModelConfig, {**beside, "n_estimators": 3, "params": {"n_estimators": 7}}, path="model").parameters() == config.parameters()
    )
    assert build(ModelConfig, to_plain(config), path="model") == config
    assert config.parameters({"max_depth": 3}).arguments == {"n_estimators": 7, "max_depth": 3}
    params = config.parameters()
    assert (params.n_estimators, params.min_samples_leaf) == (7, 1)
    with pytest.raises(AttributeError):
        _ = params.leaves


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({}, 'model.estimator: must be "module:Class", got None'),
        ({"estimator": "RandomForest"}, "must be \"module:Class\", got 'RandomForest'"),
        ({"estimator": "sklearn.ensemble:RandomForestClasifier"}, "must define 'RandomForestClasifier'"),
        ({"estimator": "sklearn.ensemble:RandomForestClassifier", "n_estimator": 3}, "did you mean 'model.n_estimators'"),
        ({"estimator": "sklearn.ensemble:RandomForestClassifier", "arguments": 3}, "model.arguments: must be a table"),
        ({"estimator": "sklearn.metrics:log_loss"}, "cannot be made"),
        ({"estimator": "sklearn.utils:get_tags", "estimator_": 1}, "is not an argument of"),
    ],
)
def test_a_wrong_section_is_named(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(ModelConfig, {"kind": "sklearn", **tree}, path="model")


def test_a_file_with_other_types_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "estimator.skops"
    skops.write(path, SVC(kernel=strange_kernel))
    with pytest.raises(DataError, match="must hold scikit-learn's own types"):
        skops.read(path)
    assert all(entry.date_time[0] == 1980 for entry in zipfile.ZipFile(path).infolist())


def strange_kernel(x: Any, y: Any) -> Any:
    return x @ y.T
