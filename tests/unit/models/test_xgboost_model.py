from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import xgboost as xgb

from tidemill.core.errors import ConfigError, DataError
from tidemill.models.base import Batch, MemoryMatrix
from tidemill.models.xgboost import FittedTrees, XGBoost, XGBoostParams, quantised_bytes


def matrix(seed: int, *, num: int = 3000, task: str = "binary") -> MemoryMatrix:
    rng = np.random.default_rng(seed)
    x_NF = rng.normal(size=(num, 6)).astype(np.float32)
    x_NF[rng.random(x_NF.shape) < 0.1] = np.nan
    signal_N = np.nan_to_num(x_NF[:, 0]) * 2 + np.nan_to_num(x_NF[:, 1]) ** 2 + rng.normal(size=num)
    y_N = {"binary": signal_N > 1, "multiclass": np.digitize(signal_N, [0, 2]), "regression": signal_N}[task]
    return MemoryMatrix(x_NF, y_N.astype(np.float64))


def fit(train: Any, valid: Any, *, model: XGBoost | None = None, task: str = "binary", on_round: Any = None, **params: Any) -> Any:
    classes = {"binary": 2, "multiclass": 3}.get(task)
    settings = XGBoostParams(**{"num_rounds": 40, **params})
    model = model or XGBoost()
    return model.fit(train, valid, task=task, num_classes=classes, params=settings, seed=1, threads=1, on_round=on_round)


@pytest.mark.parametrize(("task", "metric"), [("binary", "logloss"), ("multiclass", "mlogloss"), ("regression", "rmse")])
def test_the_trees_are_those_of_bare_xgboost(task: str, metric: str) -> None:
    train, valid = matrix(0, task=task), matrix(1, task=task)
    fitted = fit(train, valid, task=task, early_stopping=4, subsample=0.8, colsample=1.0, learning_rate=0.3, max_depth=6)
    (a,), (b,) = train.batches(), valid.batches()
    data = xgb.QuantileDMatrix(a.x_NF, a.y_N)
    objective = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}[task]
    settings = {
        "objective": objective, "eval_metric": metric, "tree_method": "hist", "nthread": 1, "seed": 1,
        "max_depth": 6, "learning_rate": 0.3, "subsample": 0.8,
    }  # fmt: skip
    bare = xgb.train(
        settings | ({"num_class": 3} if task == "multiclass" else {}),
        data,
        40,
        evals=[(xgb.QuantileDMatrix(b.x_NF, b.y_N, ref=data), "valid")],
        early_stopping_rounds=4,
        verbose_eval=False,
    )
    assert fitted.best_round == bare.best_iteration < 39
    expected = bare.inplace_predict(b.x_NF, iteration_range=(0, bare.best_iteration + 1))
    answer = fitted.predict(b.x_NF)
    np.testing.assert_array_equal(answer[:, 1] if task == "binary" else answer, expected.astype(np.float64))


def test_the_depth_is_that_which_is_best_on_the_validation_rows() -> None:
    train, valid = matrix(0), matrix(1)
    (rows,) = valid.batches()

    def loss(**params: Any) -> float:
        answer_NK = fit(train, valid, **params).predict(rows.x_NF)
        return float(-np.log(answer_NK[np.arange(len(rows.y_N)), rows.y_N.astype(int)]).mean())

    losses = [loss(max_depth=depth) for depth in (2, 4, 6)]
    told: list[tuple[int, float]] = []
    chosen = fit(train, valid, on_round=lambda number, values: bool(told.append((number, values["valid_log_loss"]))))
    assert loss() == min(losses) < max(losses)
    assert [number for number, _ in told] == list(range(len(told))), "the rounds of the best one alone"
    assert min(told, key=lambda one: one[1])[0] == chosen.best_round


def test_trees_grow_deeper_as_long_as_that_is_better() -> None:
    """Targets that hang on three columns together, in no way on fewer: six splits do not tell their 512 cells apart."""
    rng = np.random.default_rng(0)
    cell_ABC = rng.random((8, 8, 8)) < 0.5

    def rows(num: int) -> MemoryMatrix:
        place_N3 = rng.integers(0, 8, (num, 3))
        return MemoryMatrix(place_N3.astype(np.float32), cell_ABC[tuple(place_N3.T)].astype(np.float64))

    train, valid = rows(6000), rows(2000)
    auto, six = fit(train, valid), fit(train, valid, max_depth=6)
    assert depth_of(auto) > 6 == depth_of(six)


def depth_of(fitted: FittedTrees) -> int:
    return int(json.loads(fitted.booster.save_config())["learner"]["gradient_booster"]["tree_train_param"]["max_depth"])


def counts(seed: int, *, num: int = 3000) -> MemoryMatrix:
    """Counts whose expectation is a product, as visits or rides are."""
    rng = np.random.default_rng(seed)
    x_NF = rng.normal(size=(num, 4)).astype(np.float32)
    return MemoryMatrix(x_NF, rng.poisson(np.exp(0.8 * x_NF[:, 0] + 0.6 * x_NF[:, 1] + 1)).astype(np.float64))


def graph_answer(fitted: FittedTrees, x_NF: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(fitted.to_onnx().SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"features": x_NF})[0])


def test_counts_take_the_loss_that_is_better_on_the_validation_rows(tmp_path: Path) -> None:
    train, valid = counts(0), counts(1)
    (rows,) = valid.batches()

    def error(**params: Any) -> float:
        return float(
            np.sqrt(
                np.mean((fit(train, valid, task="regression", max_depth=4, learning_rate=0.3, **params).predict(rows.x_NF) - rows.y_N) ** 2)
            )
        )

    errors = {loss: error(loss=loss) for loss in ("squared", "poisson", "auto")}
    assert errors["auto"] == errors["poisson"] < errors["squared"], errors
    shifted = MemoryMatrix(rows.x_NF, rows.y_N + 0.5)
    fitted = fit(shifted, shifted, task="regression", max_depth=4, learning_rate=0.3)
    assert not fitted.answers_logarithms, "no counts, no loss for counts"


def test_trees_of_logarithms_answer_the_same_as_a_graph_and_after_loading(tmp_path: Path) -> None:
    train = counts(0)
    (rows,) = train.batches()
    fitted = fit(train, counts(1), task="regression", loss="poisson", max_depth=3)
    native_N = fitted.predict(rows.x_NF)
    assert fitted.answers_logarithms
    assert native_N.min() > 0
    np.testing.assert_array_equal(fitted.score(rows.x_NF)[:, 0], native_N)
    np.testing.assert_allclose(graph_answer(fitted, rows.x_NF), native_N, rtol=1e-5)
    fitted.save(tmp_path)
    loaded = XGBoost().load(tmp_path)
    np.testing.assert_array_equal(loaded.predict(rows.x_NF), native_N)
    np.testing.assert_array_equal(graph_answer(loaded, rows.x_NF), graph_answer(fitted, rows.x_NF))


def test_many_trees_of_logarithms_lose_no_digits() -> None:
    rng = np.random.default_rng(0)
    x_NF = rng.normal(size=(1000, 3)).astype(np.float32)
    many = MemoryMatrix(x_NF, rng.poisson(np.exp(8 + x_NF[:, 0])).astype(np.float64))
    fitted = fit(many, many, task="regression", loss="poisson", num_rounds=600, early_stopping=0, max_depth=3)
    np.testing.assert_allclose(graph_answer(fitted, x_NF), fitted.predict(x_NF), rtol=4e-6)


def test_a_loss_must_suit_the_task_and_the_targets() -> None:
    with pytest.raises(ConfigError, match=r"model.loss: must be auto for a binary task, got 'poisson'"):
        fit(matrix(0), matrix(1), loss="poisson")
    with pytest.raises(DataError, match="poisson needs targets from 0 up, got -"):
        fit(matrix(0, task="regression"), matrix(1, task="regression"), task="regression", loss="poisson")


def test_only_the_rounds_up_to_the_best_are_kept() -> None:
    seen: list[float] = []
    fitted = fit(
        matrix(0),
        matrix(1),
        watch="roc_auc",
        early_stopping=3,
        learning_rate=0.5,
        on_round=lambda _, m: bool(seen.append(m["valid_roc_auc"])),
    )
    assert fitted.best_round == int(np.argmax(seen))
    assert len(seen) == fitted.best_round + 4
    assert fitted.booster.num_boosted_rounds() == fitted.best_round + 1


def test_without_early_stopping_all_rounds_are_kept() -> None:
    fitted = fit(matrix(0), matrix(1), early_stopping=0, learning_rate=0.9, num_rounds=25)
    assert fitted.best_round == 24
    assert fitted.booster.num_boosted_rounds() == 25


def test_what_early_stopping_goes_by_can_be_chosen() -> None:
    measured: list[list[str]] = []
    for watch in ("auto", "roc_auc", "average_precision"):
        fit(matrix(0), matrix(1), watch=watch, num_rounds=1, on_round=lambda _, m: bool(measured.append(list(m))))
    watched = [["log_loss"], ["roc_auc", "log_loss"], ["average_precision", "log_loss"]]
    assert measured == [[f"{split}_{name}" for split in ("valid", "train") for name in names] for names in watched]
    with pytest.raises(ConfigError, match=r"model.watch: must judge a binary task, got 'rmse'"):
        fit(matrix(0), matrix(1), watch="rmse")


def test_a_single_class_in_validation_is_judged_by_loss() -> None:
    (batch,) = matrix(1).batches()
    ones = MemoryMatrix(batch.x_NF, np.ones(len(batch.y_N)))
    measured: list[dict[str, float]] = []
    fit(matrix(0), ones, num_rounds=3, on_round=lambda _, m: bool(measured.append(dict(m))))
    assert [next(iter(entry)) for entry in measured] == ["valid_log_loss"] * 3
    assert np.isfinite([entry["valid_log_loss"] for entry in measured]).all()


def test_quantised_rows_are_made_once_for_a_search() -> None:
    counted = Counted(matrix(0)), Counted(matrix(1))
    model = XGBoost()
    first = fit(*counted, model=model, num_rounds=3)
    passes = [matrix.passes for matrix in counted]
    fit(*counted, model=model, num_rounds=3, max_depth=2)
    assert [matrix.passes for matrix in counted] == passes
    again = fit(*counted, model=model, num_rounds=3)
    np.testing.assert_array_equal(again.predict(counted[1].x_NF), first.predict(counted[1].x_NF))
    fit(*counted, model=model, num_rounds=3, max_bin=32)
    assert [matrix.passes for matrix in counted] > passes
    other = Counted(matrix(2))
    fit(other, counted[1], model=model, num_rounds=3, max_bin=32)
    assert other.passes > 0


def test_external_memory_gives_the_same_trees_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    train, valid = Counted(matrix(0), rows=700), Counted(matrix(1), rows=700)
    inside = fit(train, valid)
    model = XGBoost()
    outside = fit(train, valid, model=model, external_memory=True)
    assert any(tmp_path.rglob("*"))
    np.testing.assert_allclose(outside.predict(valid.x_NF), inside.predict(valid.x_NF), atol=1e-5)
    del model
    assert not any(tmp_path.rglob("*"))
    unstopped = fit(train, valid, num_rounds=3, early_stopping=0, external_memory=True)
    assert not any(tmp_path.rglob("*"))
    assert unstopped.booster.num_boosted_rounds() == 3


@pytest.mark.parametrize("external_memory", [False, True])
def test_training_rows_are_told_too_every_tenth_round(external_memory: bool) -> None:
    told: list[dict[str, float]] = []
    (batch,) = matrix(0).batches()
    weight_N = np.linspace(0.5, 2, len(batch.y_N))
    train = Counted(MemoryMatrix(batch.x_NF, batch.y_N, weight_N), rows=700)
    options: dict[str, Any] = {"num_rounds": 21, "early_stopping": 0, "subsample": 0.7, "external_memory": external_memory}
    fitted = fit(train, matrix(1), on_round=lambda _, m: bool(told.append(dict(m))), **options)
    assert [number for number, entry in enumerate(told) if "train_log_loss" in entry] == [0, 10, 20]
    p_N = fitted.predict(batch.x_NF)[:, 1]
    loss_N = -np.log(np.where(batch.y_N == 1, p_N, 1 - p_N))
    assert told[-1]["train_log_loss"] == pytest.approx(np.average(loss_N, weights=weight_N), rel=1e-4)


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_answers_rise_and_fall_as_told(task: str) -> None:
    directions = {"f1": "increasing", "f0": "decreasing"}  # against what the rows say of both
    free, bound = (fit(matrix(0, task=task), matrix(1, task=task), task=task, monotone=one) for one in ({}, directions))
    (batch,) = matrix(2, num=200, task=task).batches()
    for column, sign in ((1, 1), (0, -1)):
        swept = np.repeat(batch.x_NF, 40, axis=0)
        swept[:, column] = np.tile(np.linspace(-4, 4, 40, dtype=np.float32), len(batch.x_NF))
        for fitted, always in ((free, False), (bound, True)):
            answer = fitted.predict(swept)
            steps = sign * np.diff((answer[:, 1] if task == "binary" else answer).reshape(-1, 40), axis=1)
            assert bool((steps >= -1e-6).all()) is always


def test_a_monotone_feature_must_be_one() -> None:
    with pytest.raises(ConfigError, match=r"model\.monotone\.f9: must be a feature") as caught:
        fit(matrix(0), None, monotone={"f9": "increasing"})
    assert "f5" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="multiclass task has one a class"):
        fit(matrix(0, task="multiclass"), None, task="multiclass", monotone={"f0": "increasing"})


def test_whole_weights_count_as_repeated_rows() -> None:
    (batch,) = matrix(0, num=1500).batches()
    times_N = np.random.default_rng(5).integers(0, 4, len(batch.y_N))
    weighted = MemoryMatrix(batch.x_NF, batch.y_N, times_N.astype(np.float64))
    repeated = MemoryMatrix(np.repeat(batch.x_NF, times_N, axis=0), np.repeat(batch.y_N, times_N))
    # As many bins as values, so that both see the same thresholds.
    first, second = (
        fit(one, None, num_rounds=15, max_bin=4096, learning_rate=0.1, subsample=1.0, colsample=1.0) for one in (weighted, repeated)
    )
    np.testing.assert_allclose(first.predict(batch.x_NF), second.predict(batch.x_NF), atol=0.02)
    assert np.mean(np.abs(first.predict(batch.x_NF) - second.predict(batch.x_NF))) < 1e-3


def test_rows_go_to_disk_where_they_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    train, valid = Counted(matrix(0), rows=300), Counted(matrix(1), rows=300)
    needed = quantised_bytes(train, valid)
    for memory_bytes, outside in ((None, False), (needed, False), (needed - 1, True)):
        model = XGBoost()
        model.memory_bytes = memory_bytes
        assert fit(train, valid, model=model, num_rounds=2).external_memory is outside
        assert any(tmp_path.rglob("*.page*")) is outside
        assert fit(train, valid, model=model, num_rounds=2, external_memory=not outside).external_memory is not outside
    (tmp_path / "tidemill-xgboost-999999999-x").mkdir()  # of a process that was killed
    fit(train, valid, num_rounds=2, external_memory=True)
    assert not list(tmp_path.glob("*-999999999-*"))


def test_an_error_while_reading_comes_through() -> None:
    class Broken(Counted):
        def batches(self) -> Any:
            yield from super().batches()
            raise DataError("the weight must be a number", field="weight")

    with pytest.raises(DataError, match="the weight must be a number"):
        fit(Broken(matrix(0)), None)


def test_categorical_splits_are_refused() -> None:
    import pandas as pd

    frame = pd.DataFrame({"carrier": pd.Categorical(["a", "b", "c", "d"] * 50)})
    y_N = np.tile([0.0, 1, 0, 1], 50)
    booster = xgb.train({"tree_method": "hist", "max_cat_to_onehot": 1}, xgb.DMatrix(frame, y_N, enable_categorical=True), 3)
    with pytest.raises(ConfigError, match="categorical splits cannot be written"):
        FittedTrees(booster, task="regression", num_classes=None, names=["carrier"]).to_onnx()


class Counted:
    """A matrix in batches that counts how often it is read."""

    def __init__(self, matrix: MemoryMatrix, rows: int = 1000) -> None:
        (self._whole,) = matrix.batches()
        self.x_NF = self._whole.x_NF
        self.names, self.num_rows, self.num_features = matrix.names, matrix.num_rows, matrix.num_features
        self.passes = 0
        self._rows = rows

    def batches(self) -> Any:
        self.passes += 1
        for start in range(0, self.num_rows, self._rows):
            part = slice(start, start + self._rows)
            weight_N = self._whole.weight_N
            yield Batch(self._whole.x_NF[part], self._whole.y_N[part], None if weight_N is None else weight_N[part])

    def targets(self) -> Any:
        return self._whole.y_N, self._whole.weight_N
