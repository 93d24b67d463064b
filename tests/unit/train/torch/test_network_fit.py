"""A fit from a matrix to a fitted model, here and on ranks in processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tidemill.core.errors import DataError  # noqa: E402
from tidemill.core.events import Event, Events  # noqa: E402
from tidemill.core.load import load  # noqa: E402
from tidemill.core.metrics import evaluate  # noqa: E402
from tidemill.core.project import build  # noqa: E402
from tidemill.models.base import MemoryMatrix, predict  # noqa: E402
from tidemill.models.networks.mlp import Mlp, MlpParams  # noqa: E402
from tidemill.models.weights import Reweighted  # noqa: E402
from tidemill.train.torch.config import NetworkConfig, Training  # noqa: E402


def matrix(count: int, *, seed: int, task: str = "binary") -> MemoryMatrix:
    random = np.random.default_rng(seed)
    x_NF = random.normal(size=(count, 5)).astype(np.float32)
    score_N = x_NF[:, 0] * x_NF[:, 1] + x_NF[:, 2]
    return MemoryMatrix(x_NF, 1000 + 50 * score_N if task == "regression" else (score_N > 0).astype(np.float64))


def fit(task: str = "binary", *, train: Any = None, valid: Any = None, on_round: Any = None, **given: Any) -> tuple[Any, Training]:
    kind, events = Mlp(), given.pop("events", [])
    folder, project = given.pop("folder", None), given.pop("project", Path())
    tree = {"epochs": 6, "batch_size": 64, "early_stopping": 0, "optimizer": {"learning_rate": 0.01}, "loader": {"workers": 0}, **given}
    kind.training = Training(config=build(NetworkConfig, tree, path="train"), folder=folder, project=project, events=Events(events.append))
    fitted = kind.fit(
        train or matrix(1000, seed=0, task=task),
        valid or matrix(300, seed=1, task=task),
        task=task, num_classes=None if task == "regression" else 2, params=MlpParams(width=32, depth=2, dropout=0.0), seed=0, threads=1,
        on_round=on_round,
    )  # fmt: skip
    return fitted, kind.training


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_what_is_kept_is_what_the_best_evaluation_measured(task: Any) -> None:
    told: list[dict[str, float]] = []
    fitted, training = fit(task, on_round=lambda number, measured: told.append(dict(measured)) or False)
    name = "rmse" if task == "regression" else "log_loss"
    valid = matrix(300, seed=1, task=task)
    assert evaluate(task, valid.targets()[0], predict(fitted, valid))[name] == pytest.approx(
        told[fitted.best_round][f"valid_{name}"], rel=1e-4
    )
    assert told[-1][f"valid_{name}"] < told[0][f"valid_{name}"]
    assert {"steps_per_s", "rows_per_s", "data_wait", "mfu", "memory_mb"} <= set(training.report["speed"])
    assert training.report["training"]["step"] == 6 * 16
    assert training.report["training"]["config"]["optimizer"]["momentum"] is None


def test_the_callers_random_numbers_and_threads_stay() -> None:
    torch.manual_seed(5)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    kind, rows = Mlp(), matrix(100, seed=0)
    config = build(NetworkConfig, {"epochs": 1}, path="train")
    answer = load("fit", "network")(
        kind, rows, None, task="binary", num_classes=2, params=MlpParams(width=8), seed=0, threads=threads + 1, training=Training(config=config)
    )  # fmt: skip
    assert answer.best_round is None
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_weights_of_classes_count() -> None:
    rows = matrix(800, seed=0)
    plain, _ = fit(train=rows)
    heavy, _ = fit(train=Reweighted(rows, np.array([1.0, 20.0])))
    x_NF = next(rows.batches()).x_NF
    assert heavy.predict(x_NF)[:, 1].mean() > plain.predict(x_NF)[:, 1].mean() + 0.05


def test_checkpoints_go_when_the_fit_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        fit(folder=folder, checkpoint={"every_steps": 5}, on_round=_interrupt)
    assert list((folder / "checkpoints").glob("step-*"))
    events: list[Event] = []
    told: list[int] = []
    again, _ = fit(folder=folder, checkpoint={"every_steps": 5}, events=events, on_round=lambda number, _: told.append(number) or False)
    whole, _ = fit()
    assert [event.kind for event in events if event.kind == "train.resumed"]
    assert told == list(range(6))
    assert all(np.array_equal(value, whole.state[name]) for name, value in again.state.items())
    assert not folder.exists()


def _interrupt(number: int, measured: Any) -> bool:
    if number == 2:
        raise KeyboardInterrupt
    return False


def test_tensorboard_gets_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    fit(project=tmp_path, tensorboard="boards", epochs=1)
    (file,) = (tmp_path / "boards").iterdir()
    assert file.stat().st_size > 500
    assert b"valid_log_loss" in file.read_bytes()


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="rows"):
        fit(train=matrix(0, seed=0))


@pytest.mark.slow
def test_ranks_of_their_own_give_what_one_gives() -> None:
    told: list[int] = []
    one, _ = fit(epochs=3)
    two, training = fit(epochs=3, parallel={"data": 2}, on_round=lambda number, _: told.append(number) or False)
    assert told == [0, 1, 2]
    assert training.report["restarts"] == 0
    for name, value in one.state.items():
        np.testing.assert_allclose(two.state[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
