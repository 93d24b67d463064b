"""One body over every kind of model and every task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tidemill.core.errors import DataError
from tidemill.core.load import load, names
from tidemill.core.metrics import metric_of
from tidemill.models import base, export, native
from tidemill.models.base import MemoryMatrix, Scored
from tidemill.train.torch.config import NetworkConfig, Training

TASKS = {"binary": 2, "multiclass": 3, "regression": None}
TEXT = (".json", ".ubj", ".skops", ".safetensors")  # numbers and text: nothing here runs when it is read
# Kinds over features; those that read texts or images have rows of another kind.
KINDS = [kind for kind in sorted(names("model")) if getattr(load("model", kind), "reads", "features") == "features"]
# How far the graph may be from the library: layers of a network in single precision are judged by double precision.
CLOSE = {"mlp": 5e-6, "dcn": 5e-6}


class Streamed:
    """A matrix that hands out small batches and never the whole."""

    def __init__(self, matrix: MemoryMatrix, rows: int) -> None:
        self.names, self.num_rows, self.num_features = matrix.names, matrix.num_rows, matrix.num_features
        self._whole = next(iter(matrix.batches()))
        self._rows = rows

    def batches(self) -> Any:
        whole = self._whole
        for start in range(0, self.num_rows, self._rows):
            part = slice(start, start + self._rows)
            weight_N = None if whole.weight_N is None else whole.weight_N[part]
            yield base.Batch(whole.x_NF[part], whole.y_N[part], weight_N)

    def targets(self) -> Any:
        return self._whole.y_N, self._whole.weight_N


def rows(task: str, *, seed: int, num: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x_NF = rng.normal(size=(num, 5)).astype(np.float32)
    signal_N = 2 * x_NF[:, 0] - x_NF[:, 1] + rng.normal(scale=0.5, size=num)
    x_NF[:, 3] = 7  # a constant
    x_NF[rng.random(x_NF.shape) < 0.1] = np.nan
    y_N = {"binary": signal_N > 0.5, "multiclass": np.digitize(signal_N, [-1, 1]), "regression": 10 * signal_N + 100}[task]
    return x_NF, y_N.astype(np.float64)


def params_of(kind: str, task: str, **given: Any) -> Any:
    """The kind's own parameters; of `sklearn` an estimator of the task has to be named."""
    if kind == "sklearn":
        estimator = "sklearn.ensemble:HistGradientBoosting" + ("Regressor" if task == "regression" else "Classifier")
        given = {"estimator": estimator, "arguments": {"max_iter": 40}, **given}
    return load("model", kind).Params(**given)


def matrix(task: str, *, seed: int, **options: Any) -> MemoryMatrix:
    return MemoryMatrix(*rows(task, seed=seed, **options), names=["signal", "counter", "noise", "constant", "noise_2"])


def model_of(kind: str) -> Any:
    model = load("model", kind)()
    if hasattr(model, "training"):
        model.training = Training(config=NetworkConfig(epochs=6, batch_size=128))
    return model


def fit(kind: str, task: str, *, train: Any = None, valid: Any = None, on_round: Any = None, seed: int = 3, **params: Any) -> Any:
    return model_of(kind).fit(
        matrix(task, seed=0) if train is None else train,
        matrix(task, seed=1) if valid is None else valid,
        task=task, num_classes=TASKS[task], params=params_of(kind, task, **params), seed=seed, threads=1, on_round=on_round,
    )  # fmt: skip


def run_graph(fitted: Any, x_NF: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(fitted.to_onnx().SerializeToString(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"features": x_NF})
    return np.asarray(answer)


@pytest.fixture(scope="module", params=[(kind, task) for kind in KINDS for task in TASKS], ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str, Any]:
    kind, task = request.param
    return kind, task, fit(kind, task)


def test_it_learns(case: tuple[str, str, Any]) -> None:
    _, task, fitted = case
    x_NF, y_N = rows(task, seed=2)
    p = fitted.predict(x_NF)
    if task == "regression":
        assert np.mean((p - y_N) ** 2) < 0.5 * np.var(y_N)
    else:
        assert np.mean(p.argmax(axis=1) == y_N) > 0.7


def test_predictions_have_the_shape_of_the_task(case: tuple[str, str, Any]) -> None:
    _, task, fitted = case
    x_NF, _ = rows(task, seed=2, num=7)
    for part in (x_NF, x_NF[:1], x_NF[:0]):
        p = fitted.predict(part)
        assert p.shape == ((len(part),) if TASKS[task] is None else (len(part), TASKS[task]))
        assert p.dtype == np.float64
        if TASKS[task] is not None:
            np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
            assert ((p >= 0) & (p <= 1)).all()


def test_graph_and_library_agree(case: tuple[str, str, Any]) -> None:
    kind, task, fitted = case
    x_NF, _ = rows(task, seed=2)
    x_NF[:4, 0] = [np.inf, -np.inf, 3e38, -3e38]
    x_NF[4:6] = np.nan
    native_p = fitted.predict(x_NF)
    graph_p = run_graph(fitted, x_NF)
    assert graph_p.dtype == np.float32
    scale = 1.0 if task != "regression" else np.abs(native_p).max()
    np.testing.assert_allclose(graph_p / scale, native_p / scale, rtol=0, atol=CLOSE.get(kind, 1e-6))


def test_the_graph_keeps_to_the_format(case: tuple[str, str, Any]) -> None:
    from tidemill.core.graph import IR_VERSION, OPSETS

    _, task, fitted = case
    graph = fitted.to_onnx()
    assert [value.name for value in graph.graph.input] == ["features"]
    assert [value.name for value in graph.graph.output] == ["prediction" if task == "regression" else "probability"]
    assert {entry.domain: entry.version for entry in graph.opset_import} == OPSETS
    assert graph.ir_version == IR_VERSION


def test_a_row_alone_is_answered_as_among_others(case: tuple[str, str, Any]) -> None:
    _, task, fitted = case
    x_NF, _ = rows(task, seed=2, num=20)
    alone = np.concatenate([fitted.predict(x_NF[i : i + 1]) for i in range(len(x_NF))])
    np.testing.assert_allclose(alone, fitted.predict(x_NF), rtol=1e-9)


def test_saved_and_loaded_is_the_same(case: tuple[str, str, Any], tmp_path: Path) -> None:
    kind, task, fitted = case
    native.save(fitted, tmp_path / "native", kind=kind)
    loaded = native.load(tmp_path / "native")
    x_NF, _ = rows(task, seed=2)
    np.testing.assert_array_equal(loaded.predict(x_NF), fitted.predict(x_NF))
    assert loaded.to_onnx() == fitted.to_onnx()
    assert loaded.importance() == fitted.importance()
    assert {path.suffix for path in (tmp_path / "native").rglob("*") if path.is_file()} <= set(TEXT)


def test_the_same_fit_gives_the_same_bytes(case: tuple[str, str, Any], tmp_path: Path) -> None:
    kind, task, fitted = case
    again = fit(kind, task)
    for folder, model in (("a", fitted), ("b", again)):
        native.save(model, tmp_path / folder, kind=kind)
    files = sorted(str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert [(tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files] == [True] * len(files)
    assert again.to_onnx().SerializeToString(deterministic=True) == fitted.to_onnx().SerializeToString(deterministic=True)


def test_importance_is_shares_by_name(case: tuple[str, str, Any]) -> None:
    _, _, fitted = case
    importance = fitted.importance()
    assert list(importance) == ["signal", "counter", "noise", "constant", "noise_2"]
    assert sum(importance.values()) == pytest.approx(1)
    assert max(importance, key=lambda name: importance[name]) == "signal"
    assert importance["constant"] < 0.1  # where it is missing may look like signal


def test_scores_are_what_the_link_is_over(case: tuple[str, str, Any]) -> None:
    _, task, fitted = case
    assert isinstance(fitted, Scored)
    x_NF, _ = rows(task, seed=2)
    np.testing.assert_allclose(export.link(task).apply(fitted.score(x_NF)), fitted.predict(x_NF), rtol=1e-5, atol=1e-6)


def test_batches_do_not_matter(case: tuple[str, str, Any]) -> None:
    kind, task, fitted = case
    streamed = fit(kind, task, train=Streamed(matrix(task, seed=0), 130), valid=Streamed(matrix(task, seed=1), 99))
    x_NF, _ = rows(task, seed=2)
    expected = fitted.predict(x_NF)
    # Quantiles are sketched batch by batch: the trees may differ a little, the answers on the whole may not.
    assert np.mean(np.abs(streamed.predict(x_NF) - expected)) < 0.02 * np.std(expected)


def test_weights_count(case: tuple[str, str, Any]) -> None:
    kind, task, fitted = case
    x_NF, y_N = rows(task, seed=0)
    high_N = y_N >= np.quantile(y_N, 0.7)
    weighted = fit(kind, task, train=MemoryMatrix(x_NF, y_N, np.where(high_N, 20.0, 1.0)), valid=matrix(task, seed=1))
    before, after = fitted.predict(x_NF), weighted.predict(x_NF)
    assert np.mean(after if task == "regression" else after[:, -1]) > np.mean(before if task == "regression" else before[:, -1])


def test_rounds_are_told_and_can_be_stopped(case: tuple[str, str, Any]) -> None:
    kind, task, _ = case
    seen: list[tuple[int, dict[str, float]]] = []

    def on_round(number: int, losses: Any) -> bool:
        seen.append((number, dict(losses)))
        return number == 2

    fit(kind, task, on_round=on_round)
    assert [number for number, _ in seen] == list(range(len(seen)))
    assert len(seen) <= 3
    measured = [name.partition("_")[2] for name in seen[0][1] if name.startswith(("valid_", "train_"))]
    assert next(iter(seen[0][1])).startswith("valid_")
    assert set(measured) & {"rmse" if task == "regression" else "log_loss"}
    assert all(task in metric_of(name).tasks for name in measured)


def test_a_round_has_a_pace(case: tuple[str, str, Any]) -> None:
    model = load("model", case[0])()
    assert 0 < model.pace(params_of(case[0], case[1])) <= 1


def test_no_validation_rows_are_needed(case: tuple[str, str, Any]) -> None:
    kind, task, _ = case
    fitted = model_of(kind).fit(
        matrix(task, seed=0), None, task=task, num_classes=TASKS[task], params=params_of(kind, task), seed=0, threads=1
    )
    assert np.isfinite(fitted.predict(rows(task, seed=2)[0])).all()


def test_no_rows_are_an_error(case: tuple[str, str, Any]) -> None:
    kind, task, _ = case
    with pytest.raises(DataError, match="needs rows"):
        fit(kind, task, train=MemoryMatrix(np.empty((0, 5), np.float32), np.empty(0)))


def test_a_damaged_model_is_named(case: tuple[str, str, Any], tmp_path: Path) -> None:
    kind, _, fitted = case
    native.save(fitted, tmp_path / "native", kind=kind)
    for path in (tmp_path / "native").rglob("*"):
        if path.is_file() and path.name != native.KIND:
            path.write_bytes(b"{")
    with pytest.raises(DataError, match="must hold"):
        native.load(tmp_path / "native")


def test_infinity_in_training_is_taken(case: tuple[str, str, Any]) -> None:
    kind, task, _ = case
    x_NF, y_N = rows(task, seed=0)
    x_NF[:20, 2], x_NF[20:40, 2] = np.inf, -np.inf
    fitted = fit(kind, task, train=MemoryMatrix(x_NF, y_N))
    graph_p, native_p = run_graph(fitted, x_NF), fitted.predict(x_NF)
    scale = 1.0 if task != "regression" else np.abs(native_p).max()
    np.testing.assert_allclose(graph_p / scale, native_p / scale, rtol=0, atol=CLOSE.get(kind, 1e-6))


def test_a_class_that_training_lacks_is_never_predicted(case: tuple[str, str, Any]) -> None:
    kind, task, _ = case
    if task != "multiclass":
        pytest.skip("needs more than two classes")
    x_NF, y_N = rows(task, seed=0)
    there = y_N != 1
    fitted = fit(kind, task, train=MemoryMatrix(x_NF[there], y_N[there]), valid=matrix(task, seed=1))
    p = fitted.predict(x_NF)
    assert p.shape == (len(x_NF), 3)
    assert not (p.argmax(axis=1) == 1).any()
    # Many trees, for the loss goes on falling: they are added up in another order.
    np.testing.assert_allclose(run_graph(fitted, x_NF), p, atol=CLOSE.get(kind, 3e-6))
