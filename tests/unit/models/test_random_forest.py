from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from tidemill.core.errors import ConfigError
from tidemill.core.metrics import evaluate
from tidemill.models.base import MemoryMatrix
from tidemill.models.random_forest import RandomForest, RandomForestParams

CLASSES = {"binary": 2, "multiclass": 3, "regression": None}


def rows(task: str, seed: int, num: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x_NF = rng.normal(size=(num, 8)).astype(np.float32)
    signal_N = x_NF[:, 0] * x_NF[:, 1] + np.sin(2 * x_NF[:, 2]) + x_NF[:, 3] + rng.normal(scale=0.5, size=num)
    y_N = {"binary": signal_N > 0, "multiclass": np.digitize(signal_N, [-1, 1]), "regression": signal_N}[task]
    return x_NF, y_N.astype(np.float64)


def fit(task: str, **params: Any) -> Any:
    settings = RandomForestParams(**{"num_trees": 60, **params})
    return RandomForest().fit(MemoryMatrix(*rows(task, 0)), None, task=task, num_classes=CLASSES[task], params=settings, seed=0, threads=1)


@pytest.mark.parametrize("task", CLASSES)
def test_it_is_as_good_as_scikit_learns(task: str) -> None:
    kind = RandomForestRegressor if task == "regression" else RandomForestClassifier
    options = {"max_features": 1 / 3} if task == "regression" else {}
    peer = kind(60, min_samples_leaf=5, random_state=0, **options).fit(*rows(task, 0))
    x_NF, y_N = rows(task, 1)
    metric = "rmse" if task == "regression" else "log_loss"
    ours = evaluate(task, y_N, fit(task).predict(x_NF), metrics=[metric])[metric]  # type: ignore[arg-type]
    theirs = evaluate(task, y_N, peer.predict(x_NF) if task == "regression" else peer.predict_proba(x_NF), metrics=[metric])[metric]  # type: ignore[arg-type]
    assert ours < 1.05 * theirs


def test_a_monotone_feature_never_lowers_the_answer() -> None:
    train = MemoryMatrix(*rows("binary", 0))
    settings = RandomForestParams(num_trees=30, monotone={"f3": "increasing"})
    fitted = RandomForest().fit(train, None, task="binary", num_classes=2, params=settings, seed=0, threads=1)
    x_NF = np.repeat(rows("binary", 1, 50)[0], 40, axis=0)
    x_NF[:, 3] = np.tile(np.linspace(-3, 3, 40), 50)
    p_RV = fitted.predict(x_NF)[:, 1].reshape(50, 40)
    assert (np.diff(p_RV, axis=1) >= -1e-6).all()
    assert (np.diff(fit("binary").predict(x_NF)[:, 1].reshape(50, 40), axis=1) < -1e-3).any()
    with pytest.raises(ConfigError, match=r"model\.monotone\.f33: must be a feature"):
        fit("binary", monotone={"f33": "increasing"})


@pytest.mark.parametrize("task", CLASSES)
def test_rows_on_disk_give_as_good_a_forest(task: str) -> None:
    inside, outside = fit(task), fit(task, external_memory=True)
    assert (inside.external_memory, outside.external_memory) == (False, True)
    x_NF, y_N = rows(task, 1)
    metric = "rmse" if task == "regression" else "log_loss"
    losses = [evaluate(task, y_N, model.predict(x_NF), metrics=[metric])[metric] for model in (inside, outside)]  # type: ignore[arg-type]
    assert losses[1] < 1.03 * losses[0]


def test_a_search_quantises_the_rows_once() -> None:
    model, train = RandomForest(), MemoryMatrix(*rows("multiclass", 0))
    kept = []
    for depth in (3, 5):
        model.fit(train, None, task="multiclass", num_classes=3, params=RandomForestParams(num_trees=3, max_depth=depth), seed=0, threads=1)
        kept.append(model._trees._quantised)
    assert kept[0] is kept[1]
