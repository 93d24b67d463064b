"""XGBoost on several workers against one process: the same trees but for the rounding of sums."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidemill.core.artifact import Artifact
from tidemill.core.errors import ConfigError, Unsupported
from tidemill.core.events import Events
from tidemill.core.project import Project, from_tree
from tidemill.core.ranks.pulse import read_beat
from tidemill.models.base import predict
from tidemill.train.matrix import FeatureMatrix
from tidemill.train.workload import Workload, prepare_model

MODEL = {"subsample": 1.0, "num_rounds": 30, "early_stopping": 5, "max_depth": 4}


def project(workers: int, *, task: str = "binary", data: Any = None, **sections: Any) -> Project:
    tree = {
        "name": "small", "task": task, "data": {"source": "rows.parquet", "target": "outcome", **(data or {})},
        "model": {"kind": "xgboost", **MODEL, **sections.pop("model", {})},
        "train": {"parallel": {"data": workers}, **sections.pop("train", {})}, "engine": {"threads": 1}, **sections,
    }  # fmt: skip
    return from_tree(tree)


def fitted(made: Project, data: Artifact, features: Artifact) -> tuple[Any, np.ndarray, list[dict[str, float]]]:
    """The model, what it answers on the validation rows, and what each round measured."""
    workload, rounds = Workload.of(made, data, features), []

    def on_round(_: int, values: Any) -> bool:
        rounds.append(dict(values))
        return False

    model, params = prepare_model(made)
    found = workload.fit(model, params, on_round)
    assert workload.valid is not None
    return found, predict(found, workload.valid), rounds


@pytest.mark.slow
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_workers_grow_the_trees_of_one(finished_stages: Callable[..., tuple[Artifact, Artifact]], task: str) -> None:
    data, features = finished_stages(task, rows=3000, weight=task == "binary")
    settings: dict[str, Any] = {"model": {"class_weight": "balanced"}} if task == "binary" else {}
    if task == "regression":
        settings = {"model": {"max_depth": "auto"}}
    alone, alone_p, alone_rounds = fitted(project(1, task=task, **settings), data, features)
    together, together_p, together_rounds = fitted(project(2, task=task, **settings), data, features)
    assert together.best_round == alone.best_round
    assert np.abs(together_p - alone_p).max() < 1e-4
    assert len(together_rounds) == len(alone_rounds)
    for ours, theirs in zip(together_rounds, alone_rounds, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_shares_are_all_rows_once_with_the_folds_of_the_whole(finished_stages: Callable[..., tuple[Artifact, Artifact]]) -> None:
    data, features = finished_stages(rows=2500)
    whole = FeatureMatrix(data, features, "train")
    whole_NF = np.concatenate([batch.x_NF for batch in whole.batches()])
    for parts in (2, 3, 7):
        shares = [FeatureMatrix(data, features, "train", share=(part, parts)) for part in range(parts)]
        assert all(share.num_rows > 0 for share in shares)
        assert max(share.num_rows for share in shares) <= 2500 / parts + 400, "shares differ by a row group"
        parts_NF = [np.concatenate([batch.x_NF for batch in share.batches()]) for share in shares]
        np.testing.assert_array_equal(np.concatenate(parts_NF), whole_NF)
        np.testing.assert_array_equal(np.concatenate([share.targets()[0] for share in shares]), whole.targets()[0])
        assert [len(part) for part in parts_NF] == [share.num_rows for share in shares]


def test_more_workers_than_row_groups_are_refused(finished_stages: Callable[..., tuple[Artifact, Artifact]]) -> None:
    data, features = finished_stages(rows=800)
    with pytest.raises(ConfigError, match=r"train\.parallel\.data: each worker must have a row group to read, got 3 workers for 2"):
        fitted(project(3), data, features)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"parallel": {"data": 2, "tensor": 2}}, "train.parallel: is for networks.*divides its rows alone: train.parallel.data"),
        ({"epochs": 3}, "train.epochs: is for networks.*model.num_rounds"),
    ],
)
def test_what_only_networks_know_is_refused(train: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare_model(project(1, train=train))


def test_workers_take_no_samples(finished_stages: Callable[..., tuple[Artifact, Artifact]]) -> None:
    data, features = finished_stages(rows=1000)
    made = project(2)
    workload = Workload.of(made, data, features).sampled(0.5)
    model, params = prepare_model(made)
    with pytest.raises(Unsupported, match="several workers need all training rows"):
        workload.fit(model, params)


@pytest.mark.slow
def test_what_a_worker_raises_is_raised(finished_stages: Callable[..., tuple[Artifact, Artifact]]) -> None:
    data, features = finished_stages()
    with pytest.raises(ConfigError, match=r"model\.monotone\.far: must be a feature"):
        fitted(project(2, model={"monotone": {"far": "increasing"}}), data, features)


@pytest.mark.slow
def test_a_wish_to_stop_reaches_the_workers(finished_stages: Callable[..., tuple[Artifact, Artifact]]) -> None:
    data, features = finished_stages()
    made = project(2, model={"num_rounds": 3000, "early_stopping": 0, "learning_rate": 0.001})
    model, params = prepare_model(made)
    found: Any = Workload.of(made, data, features).fit(model, params, lambda number, _: number >= 3)
    assert 3 < found.booster.num_boosted_rounds() < 3000


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_trees_are_the_same(
    tmp_path: Path, finished_stages: Callable[..., tuple[Artifact, Artifact]]
) -> None:
    data, features = finished_stages()
    # Ranks tell their step once a second: rounds enough that some are left when the second is over.
    made, heard = project(2, model={"num_rounds": 2_000, "early_stopping": 0}), []
    workload = Workload.of(made, data, features)
    assert workload.valid is not None

    def fit(folder: Path) -> np.ndarray:
        model, params = prepare_model(made, training={"folder": folder, "events": Events(heard.append)})
        return predict(workload.fit(model, params), workload.valid)  # type: ignore[arg-type]

    def kill() -> None:
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            beat = read_beat(tmp_path / "disturbed" / "attempt-0" / "rank-1.beat")
            if beat is not None and beat.step is not None:
                os.kill(beat.pid, signal.SIGKILL)
                return
            time.sleep(0.01)

    undisturbed = fit(tmp_path / "undisturbed")
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        disturbed = fit(tmp_path / "disturbed")
    finally:
        killer.join(150)
    assert [(event.fields["rank"], event.fields["cause"]) for event in heard if event.kind == "ranks.failed"] == [(1, "killed")]
    np.testing.assert_array_equal(disturbed, undisturbed)
