from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
import pytest

from tidemill.core.errors import ConfigError, DataError, Unsupported
from tidemill.core.metrics import evaluate
from tidemill.core.project import build
from tidemill.models import native
from tidemill.models.base import Batch, MemoryMatrix
from tidemill.models.calibration import calibrate
from tidemill.models.config import ModelConfig
from tidemill.models.ensemble import Ensemble, EnsembleParams
from tidemill.models.linear import Linear, LinearParams
from tidemill.models.xgboost import XGBoost, XGBoostParams

CLASSES = {"binary": 2, "multiclass": 3, "regression": None}
TREES = {"kind": "xgboost", "num_rounds": 12, "max_depth": 3, "learning_rate": 0.3}


def matrix(seed: int, task: str = "binary", num: int = 900) -> MemoryMatrix:
    """Partly straight, partly bent, so that trees and lines know different things."""
    rng = np.random.default_rng(seed)
    x_NF = rng.normal(size=(num, 4)).astype(np.float32)
    signal_N = 2 * x_NF[:, 0] + x_NF[:, 1] - 1.5 * np.abs(x_NF[:, 2]) + 1 + 0.7 * rng.normal(size=num)
    y_N = {"binary": signal_N > 0, "multiclass": np.digitize(signal_N, [-1, 1]), "regression": 50 + 10 * signal_N}[task]
    return MemoryMatrix(x_NF, y_N.astype(np.float64))


def fit(task: str = "binary", *, valid: Any = 1, on_round: Any = None, **params: Any) -> Any:
    settings = EnsembleParams(**{"members": (TREES, {"kind": "linear"}), "folds": 3, **params})
    return Ensemble().fit(
        matrix(0, task), matrix(valid, task) if valid is not None else None, task=task, num_classes=CLASSES[task], params=settings,
        seed=0, threads=1, on_round=on_round,
    )  # fmt: skip


def loss(fitted: Any, task: str) -> float:
    (batch,) = matrix(2, task, num=4000).batches()
    metric = "rmse" if task == "regression" else "log_loss"
    return evaluate(task, batch.y_N, fitted.predict(batch.x_NF), metrics=[metric])[metric]  # type: ignore[arg-type]


@pytest.mark.parametrize("task", list(CLASSES))
@pytest.mark.parametrize("how", ["average", "stacking", "bagging"])
def test_graph_library_and_files_agree(task: str, how: str, tmp_path: Path) -> None:
    fitted = fit(task, how=how, copies=3, **({"members": (TREES,)} if how == "bagging" else {}))
    (batch,) = matrix(3, task).batches()
    expected = fitted.predict(batch.x_NF)
    (answer,) = ort.InferenceSession(fitted.to_onnx().SerializeToString()).run(None, {"features": batch.x_NF})
    np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)
    native.save(fitted, tmp_path / "native", kind="ensemble")
    loaded = native.load(tmp_path / "native")
    np.testing.assert_array_equal(loaded.predict(batch.x_NF), expected)
    assert loaded.to_onnx() == fitted.to_onnx()
    assert sum(fitted.importance().values()) == pytest.approx(1)


@pytest.mark.parametrize("task", list(CLASSES))
@pytest.mark.parametrize("how", ["average", "stacking"])
def test_together_they_lose_less_than_the_best_alone(task: str, how: str) -> None:
    common: dict[str, Any] = {"task": task, "num_classes": CLASSES[task], "seed": 0, "threads": 1}
    params = XGBoostParams(num_rounds=12, max_depth=3, learning_rate=0.3)
    trees = XGBoost().fit(matrix(0, task), matrix(1, task), params=params, **common)
    line = Linear().fit(matrix(0, task), matrix(1, task), params=LinearParams(), **common)
    assert loss(fit(task, how=how), task) < min(loss(trees, task), loss(line, task)) + 0.002


def test_bagging_calms_deep_trees() -> None:
    deep = {"kind": "xgboost", "num_rounds": 1, "learning_rate": 1.0, "max_depth": 12, "min_child_weight": 0.0, "reg_lambda": 0.0}
    deep |= {"subsample": 1.0, "colsample": 1.0}
    one = fit("regression", members=(deep,))
    for drawn in ({}, {"replace": False, "rows": 0.6}):
        bagged = fit("regression", how="bagging", members=(deep,), copies=12, **drawn)
        assert len(bagged.members) == 12
        assert loss(bagged, "regression") < 0.9 * loss(one, "regression")


def test_weights_may_be_given() -> None:
    fitted = fit(weights=(1, 3))
    (batch,) = matrix(3).batches()
    parts = [member.predict(batch.x_NF) for member in fitted.members]
    np.testing.assert_allclose(fitted.predict(batch.x_NF), 0.25 * parts[0] + 0.75 * parts[1], atol=1e-6)
    assert fit(valid=None).weight_M == pytest.approx([0.5, 0.5])


def test_stacking_answers_rows_by_models_that_did_not_see_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(matrix: Any) -> set[bytes]:
        return {row.tobytes() for batch in matrix.batches() for row in batch.x_NF}

    seen: list[set[bytes]] = []
    fitted_on, asked = Ensemble._fit, []

    def spy(self: Any, config: Any, train: Any, *rest: Any) -> Any:
        seen.append(rows(train))
        member = fitted_on(self, config, train, *rest)
        predict, known = member.predict, seen[-1]

        def watched(x_NF: np.ndarray) -> np.ndarray:
            asked.append((known, {row.tobytes() for row in x_NF}))
            return predict(x_NF)

        member.predict = watched
        return member

    monkeypatch.setattr(Ensemble, "_fit", spy)
    fit(how="stacking", folds=4)
    assert len(seen) == 2 + 4 * 2
    held = [there for known, there in asked if known != seen[0]]
    assert all(not known & there for known, there in asked if known != seen[0])
    assert set.union(*held) == seen[0]


def test_calibration_goes_on_top() -> None:
    fitted = fit("multiclass")
    calibrated = calibrate(fitted, matrix(1, "multiclass"), method="platt", task="multiclass", num_classes=3)
    (batch,) = matrix(3, "multiclass").batches()
    (answer,) = ort.InferenceSession(calibrated.to_onnx().SerializeToString()).run(None, {"features": batch.x_NF})
    np.testing.assert_allclose(answer, calibrated.predict(batch.x_NF), atol=1e-5)


def test_an_ensemble_may_hold_another() -> None:
    inner = {"kind": "ensemble", "how": "bagging", "copies": 2, "members": [TREES]}
    fitted = fit(members=(inner, {"kind": "linear"}))
    (batch,) = matrix(3).batches()
    (answer,) = ort.InferenceSession(fitted.to_onnx().SerializeToString()).run(None, {"features": batch.x_NF})
    np.testing.assert_allclose(answer, fitted.predict(batch.x_NF), atol=1e-6)


class Unwritable:
    """A kind that leaves no graph, and remembers how many rows it was given."""

    Params: ClassVar[type] = LinearParams
    space: ClassVar[Mapping[str, Any]] = {}
    rows: ClassVar[list[int]] = []

    def fit(self, train: Any, valid: Any, **options: Any) -> Any:
        self.rows.append(train.num_rows)
        fitted = Linear().fit(train, valid, **options)

        def to_onnx() -> Any:
            raise Unsupported("no operator for this")

        fitted.to_onnx = to_onnx  # type: ignore[method-assign]
        return fitted

    def load(self, folder: Path) -> Any:
        return Linear().load(folder)

    def pace(self, params: Any) -> float:
        return 1.0


def test_a_member_without_a_graph_is_refused_before_the_work() -> None:
    with pytest.raises(Unsupported, match=r"model\.members\[1\]: must leave a graph, .* does not: no operator for this"):
        fit(members=(TREES, {"kind": f"{__name__}:Unwritable"}))
    assert Unwritable.rows == [200]


@pytest.mark.parametrize(
    ("tree", "error", "said"),
    [
        ({"members": [{"kind": "xgboost", "max_dept": 3}]}, ConfigError, r"model\.members\[0\]\.max_dept: is not a known key"),
        ({"members": ["xgboost"]}, ConfigError, r"model\.members\[0\]: must be a table"),
        ({"members": [{"kind": "linear", "calibrate": "platt"}]}, Unsupported, r"model\.members\[0\]\.calibrate: is not of a member"),
        ({"how": "bagging", "members": [{}, {}]}, ConfigError, "must be one model to bag, got 2"),
        ({"how": "bagging", "replace": False}, ConfigError, r"model\.rows: must be below 1"),
        ({"weights": [1, 2, 3]}, ConfigError, r"model\.weights: must be 2 numbers"),
        ({"weights": [1, -1]}, ConfigError, r"model\.weights: must be 2 numbers"),
        ({"how": "stacking", "weights": [1, 1]}, ConfigError, r"model\.weights: must be left out for stacking"),
        ({"interval": 0.9}, Unsupported, r"model\.interval: needs a kind that fits quantiles"),
    ],
)
def test_a_wrong_section_is_named(tree: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        build(ModelConfig, {"kind": "ensemble", **tree}, path="model")


def test_batches_and_weights_reach_the_members() -> None:
    class Parts(MemoryMatrix):
        def batches(self) -> Any:
            (whole,) = super().batches()
            for start in range(0, self.num_rows, 200):
                yield Batch(*(values[start : start + 200] for values in (whole.x_NF, whole.y_N, whole.weight_N) if values is not None))

    (batch,) = matrix(0).batches()
    times_N = np.where(batch.y_N == 1, 5.0, 1.0)
    common: dict[str, Any] = {"task": "binary", "num_classes": 2, "seed": 0, "threads": 1}
    for how in ("average", "stacking", "bagging"):
        params = EnsembleParams(how=how, members=({"kind": "linear"},), folds=3, copies=3)  # type: ignore[arg-type]
        plain = Ensemble().fit(matrix(0), None, params=params, **common)
        weighted = Ensemble().fit(Parts(batch.x_NF, batch.y_N, times_N), None, params=params, **common)
        assert weighted.predict(batch.x_NF)[:, 1].mean() > plain.predict(batch.x_NF)[:, 1].mean() + 0.05


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    native.save(fit(), tmp_path / "native", kind="ensemble")
    (tmp_path / "native" / "member-1" / "kind.json").unlink()
    with pytest.raises(DataError, match="must hold"):
        native.load(tmp_path / "native")
