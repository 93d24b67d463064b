from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow.parquet as pq
import pytest

from tidemill.core.artifact import Artifact
from tidemill.core.contract import ContractConfig
from tidemill.core.engine import EngineConfig
from tidemill.core.errors import ConfigError, Unsupported
from tidemill.core.events import Event, Events
from tidemill.core.metrics import evaluate
from tidemill.core.project import Project, build
from tidemill.models import native
from tidemill.models.base import predict
from tidemill.models.config import ModelConfig
from tidemill.models.interval import Ranged
from tidemill.models.xgboost import XGBoost
from tidemill.train.config import TrainConfig
from tidemill.train.matrix import FeatureMatrix
from tidemill.train.stage import run
from tidemill.train.workload import prepare_model

Stages = Callable[..., tuple[Artifact, Artifact]]


def project(model: dict[str, Any] | None = None, **sections: Any) -> Project:
    config = build(ModelConfig, {"num_rounds": 30, "early_stopping": 5} if model is None else model, path="model")
    unread: dict[str, Any] = {section: {} for section in ("data", "features", "serve", "monitor", "rollout")}
    given = {"contract": ContractConfig(), "engine": EngineConfig(threads=1), "train": TrainConfig(batch_rows=512), **sections}
    return Project(name="flights", model=config, **{**unread, **given})


def train(stages: tuple[Artifact, Artifact], out: Path, made: Project, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    out.mkdir()
    facts = run(made, *stages, out, events=options.pop("events", Events()), **options)
    return facts, json.loads((out / "train.json").read_text())


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("kind", ["linear", "xgboost"])
def test_the_folder_is_whole(finished_stages: Stages, tmp_path: Path, task: str, kind: str) -> None:
    stages = finished_stages(task)
    facts, report = train(stages, tmp_path / "out", project({"kind": kind}))
    out = tmp_path / "out"
    matrix = FeatureMatrix(*stages, "valid")
    x_NF, (y_N, _) = np.concatenate([batch.x_NF for batch in matrix.batches()]), matrix.targets()
    for folder, metrics in ((out, report["metrics"]), (out / "baseline", report["baseline"]["metrics"])):
        fitted = native.load(folder / "native")
        (answer,) = ort.InferenceSession(folder / "model.onnx").run(None, {"features": x_NF})
        np.testing.assert_allclose(answer, fitted.predict(x_NF), atol=1e-5)
        assert metrics["valid"] == pytest.approx(evaluate(task, y_N, fitted.predict(x_NF)))  # type: ignore[arg-type]
        assert metrics["train"].keys() == metrics["valid"].keys()
    assert report["baseline"]["kind"] == "linear"
    loss = "rmse" if task == "regression" else "log_loss"
    assert report["metrics"]["valid"][loss] < report["trivial"]["metrics"]["valid"][loss]
    assert set(report["importance"]) == {"distance", "stops", "carrier"}
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [line["round"] for line in history] == list(range(report["rounds"]))
    assert facts["valid"] == report["metrics"]["valid"][facts["metric"]]
    assert facts["rows"] == {"train": 2000, "valid": 500}
    predictions = pq.read_table(out / "valid_predictions.parquet")
    expected = {"binary": ["probability"], "multiclass": [f"probability_{k}" for k in range(3)], "regression": ["prediction"]}[task]
    assert predictions.column_names == ["id", "target", *expected]
    assert predictions.num_rows == 500


def test_the_same_project_leaves_the_same_bytes(finished_stages: Stages, tmp_path: Path) -> None:
    stages = finished_stages()
    for name in ("a", "b"):
        train(stages, tmp_path / name, project({"calibrate": "platt", "subsample": 0.7, "num_rounds": 20}))
    files = sorted(str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert "native/model.ubj" in files
    assert [name for name in files if (tmp_path / "a" / name).read_bytes() != (tmp_path / "b" / name).read_bytes()] == []


def test_calibration_reaches_graph_and_native(finished_stages: Stages, tmp_path: Path) -> None:
    stages = finished_stages("multiclass")
    _, report = train(stages, tmp_path / "out", project({"calibrate": "platt", "num_rounds": 10}))
    assert len(report["calibration"]["slope"]) == 3
    x_NF = next(FeatureMatrix(*stages, "valid").batches()).x_NF
    (answer,) = ort.InferenceSession(tmp_path / "out" / "model.onnx").run(None, {"features": x_NF})
    np.testing.assert_allclose(answer, native.load(tmp_path / "out" / "native").predict(x_NF), atol=1e-6)


def test_what_tuning_found_goes_over_the_project(finished_stages: Stages, tmp_path: Path) -> None:
    _, report = train(finished_stages(), tmp_path / "out", project(), tuned={"model.max_depth": 2, "model.num_rounds": 3})
    assert report["config"]["max_depth"] == 2
    assert report["config"]["early_stopping"] == 5
    assert report["rounds"] == 3
    assert report["tuned"] == {"model.max_depth": 2, "model.num_rounds": 3}


def test_class_weights_shift_the_model_and_not_the_measures(finished_stages: Stages, tmp_path: Path) -> None:
    stages = finished_stages()
    _, plain = train(stages, tmp_path / "plain", project())
    _, shifted = train(stages, tmp_path / "shifted", project({"num_rounds": 30, "class_weight": {"true": 10.0}}))
    assert shifted["metrics"]["valid"]["recall"] > plain["metrics"]["valid"]["recall"]
    assert shifted["trivial"] == plain["trivial"]


def test_the_trivial_model_answers_the_weighted_share(finished_stages: Stages, tmp_path: Path) -> None:
    stages = finished_stages(weight=True)
    _, report = train(stages, tmp_path / "out", project())
    y_N, weight_N = FeatureMatrix(*stages, "train").targets()
    assert report["trivial"]["prediction"] == pytest.approx([1 - np.average(y_N, weights=weight_N), np.average(y_N, weights=weight_N)])


def test_without_validation_rows_there_are_no_valid_measures(finished_stages: Stages, tmp_path: Path) -> None:
    _, report = train(finished_stages(valid=0), tmp_path / "out", project())
    assert report["metrics"]["valid"] == {}
    assert report["rounds"] == 30
    assert not (tmp_path / "out" / "valid_predictions.parquet").exists()


def test_memory_does_not_change_the_model(finished_stages: Stages, tmp_path: Path) -> None:
    stages = finished_stages()
    reports = [
        train(stages, tmp_path / f"out-{share}", project(train=TrainConfig(batch_rows=512, cache_share=share)))[1] for share in (0.0, 0.5)
    ]
    assert reports[0] == reports[1]


def test_progress_and_the_end_are_told(finished_stages: Stages, tmp_path: Path) -> None:
    told: list[Event] = []
    train(finished_stages(), tmp_path / "out", project(), events=Events(told.append))
    kinds = [event.kind for event in told]
    assert kinds[0] == "train.round"
    assert told[0].level == "progress"
    assert "train.fitted" in kinds


def test_rows_on_disk_are_told_and_give_the_same_model(finished_stages: Stages, tmp_path: Path) -> None:
    stages, told = finished_stages(), list[Event]()
    reports = [
        train(stages, tmp_path / str(outside), project({"num_rounds": 9, "external_memory": outside}), events=Events(told.append))[1]
        for outside in (False, True)
    ]
    assert [report["external_memory"] for report in reports] == [False, True]
    assert [event.kind for event in told].count("train.external_memory") == 1
    assert reports[0]["metrics"]["valid"] == pytest.approx(reports[1]["metrics"]["valid"], rel=1e-3)


def test_a_model_is_told_its_part_of_the_memory() -> None:
    model, _ = prepare_model(project(engine=EngineConfig(memory="1GiB"), train=TrainConfig(cache_share=0.25)))
    assert isinstance(model, XGBoost)
    assert model.memory_bytes == 3 * 2**28


def test_an_interval_goes_into_graph_and_native(finished_stages: Stages, tmp_path: Path) -> None:
    stages = finished_stages("regression")
    _, report = train(stages, tmp_path / "out", project({"num_rounds": 20, "interval": 0.8}))
    assert report["interval"]["level"] == 0.8
    x_NF = next(FeatureMatrix(*stages, "valid").batches()).x_NF
    fitted = native.load(tmp_path / "out" / "native")
    assert isinstance(fitted, Ranged)
    (answer,) = ort.InferenceSession(tmp_path / "out" / "model.onnx").run(["interval"], {"features": x_NF})
    np.testing.assert_allclose(answer, fitted.predict_interval(x_NF), rtol=1e-5, atol=1e-5)


def test_codes_in_no_order_cannot_be_monotone(finished_stages: Stages, tmp_path: Path) -> None:
    stages = finished_stages()
    for column, said in (("carrier", "numbers have an order, those of 'vocabulary' have none"), ("carier", "must be a feature")):
        with pytest.raises(ConfigError, match=rf"model\.monotone\.{column}: .*{said}"):
            train(stages, tmp_path / column, project({"num_rounds": 5, "monotone": {column: "increasing"}}))
    train(stages, tmp_path / "distance", project({"num_rounds": 5, "monotone": {"distance": "decreasing"}}))


def test_a_kind_of_ones_own_is_found_beside_the_project(finished_stages: Stages, tmp_path: Path) -> None:
    (tmp_path / "shallow_kind.py").write_text("from tidemill.models.xgboost import XGBoost\n\n\ndef build():\n    return XGBoost()\n")
    made = project({"kind": "shallow_kind:build", "max_depth": 2, "num_rounds": 4}, folder=tmp_path)
    _, report = train(finished_stages(), tmp_path / "out", made)
    assert report["config"]["max_depth"] == 2
    assert native.load(tmp_path / "out" / "native").best_round == report["best_round"]
    with pytest.raises(ConfigError, match="max_dept"):
        train(finished_stages(), tmp_path / "wrong", project({"kind": "shallow_kind:build", "max_dept": 2}, folder=tmp_path))


@pytest.mark.parametrize(
    ("task", "model", "said"),
    [
        ("regression", {"class_weight": "balanced"}, "model.class_weight: needs a binary or multiclass task"),
        ("regression", {"calibrate": "platt", "num_rounds": 2}, "model.calibrate: needs a binary or multiclass task"),
    ],
)
def test_what_a_task_cannot_have_is_named(finished_stages: Stages, tmp_path: Path, task: str, model: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        train(finished_stages(task), tmp_path / "out", project(model))


def test_calibration_needs_validation_rows(finished_stages: Stages, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="needs validation rows"):
        train(finished_stages(valid=0), tmp_path / "out", project({"calibrate": "platt", "num_rounds": 2}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("precision", "bf16"), ("epochs", 3), ("optimizer", {"name": "sgd"}), ("parallel", {"tensor": 2}), ("ema", 0.9)],
)
def test_what_is_for_networks_is_refused_beside_trees(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"train.{key}: is for networks, got model.kind 'xgboost'"):
        project(train=build(TrainConfig, {key: value}, path="train"))


def test_predictions_come_in_batches(finished_stages: Stages, tmp_path: Path) -> None:
    stages = finished_stages()
    train(stages, tmp_path / "out", project())
    fitted = native.load(tmp_path / "out" / "native")
    whole = predict(fitted, FeatureMatrix(*stages, "valid"))
    np.testing.assert_array_equal(predict(fitted, FeatureMatrix(*stages, "valid", batch_rows=64)), whole)


def test_a_model_that_knows_its_training_rows_better_is_told(finished_stages: Stages, tmp_path: Path) -> None:
    stages, told = finished_stages(), list[Event]()
    wild = {"num_rounds": 60, "max_depth": 12, "learning_rate": 0.5, "min_child_weight": 0.0, "reg_lambda": 0.0, "early_stopping": 0}
    facts, report = train(stages, tmp_path / "wild", project(wild), events=Events(told.append))
    (event,) = [event for event in told if event.kind == "train.judged"]
    assert event.level == "warning"
    assert report["generalization"]["said"] == event.message
    assert facts["verdict"] in ("overfit", "useless")
    facts, report = train(stages, tmp_path / "mild", project({"max_depth": 2, "num_rounds": 200, "early_stopping": 20}))
    assert facts["verdict"] in ("usual", "alike")
    _, report = train(stages, tmp_path / "short", project({"max_depth": 2, "num_rounds": 3}))
    assert report["generalization"]["cut_off"]
    history = [json.loads(line) for line in (tmp_path / "mild" / "history.jsonl").read_text().splitlines()]
    losses = [line["train_log_loss"] for line in history if "train_log_loss" in line]
    assert len(losses) == -(-len(history) // 10)
    assert losses[-1] < losses[0]
