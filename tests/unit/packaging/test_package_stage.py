"""The package stage: whole packages for every task, and none at all where a promise is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tidemill.core.artifact import writing
from tidemill.core.errors import ContractViolation, DataError
from tidemill.core.events import Event, Events
from tidemill.core.package import MANIFEST, Package, Predictor
from tidemill.core.sketch import ColumnSketch
from tidemill.packaging import stage

MakeStages = Any


def packaged(stages: Any, folder: Path, **more: Any) -> Package:
    with writing(folder, stage="package") as out:
        stage.run(stages.project, stages.data, stages.features, stages.train, out, events=Events(), **more)
    return Package.open(folder)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("kind", ["linear", "xgboost"])
def test_every_task_makes_a_whole_package(tmp_path: Path, make_stages: MakeStages, task: str, kind: str) -> None:
    stages = make_stages(task, kind=kind)
    package = packaged(stages, tmp_path / "package")
    assert {"features.onnx", "model.onnx", "full.onnx", "contract.json", "baseline.json", "card.md"} <= set(package.manifest["files"])
    evidence = package.evidence()
    assert set(evidence) == {"parity", "quality", "latency", "size"}
    assert evidence["parity"]["max_difference"] <= 1e-5
    assert evidence["parity"]["rows"] == stages.table.num_rows
    quality = evidence["quality"]
    assert quality["low"] <= quality["value"] <= quality["high"]
    assert quality["value"] == quality["metrics"][quality["metric"]]["point"]
    assert quality["gain_over_trivial"] > 0
    assert set(quality["baseline"]) == set(quality["trivial"]) == set(quality["metrics"])
    wanted = {"residuals", "scatter"} if task == "regression" else {"roc", "pr", "calibration", "confusion"}
    assert set(quality["curves"]) == wanted
    assert {"column", "value", "rows", "metric", "point"} <= set(quality["slices"][0])
    assert package.keys == ["key"]
    assert package.manifest["lineage"]["train"] == stages.train.id


def test_intervals_are_answered_compared_and_measured(tmp_path: Path, make_stages: MakeStages) -> None:
    contract = {"interval": {"min_coverage": 0.8, "max_width": 1000}}
    stages = make_stages("regression", kind="xgboost", interval=0.9, contract=contract)
    package = packaged(stages, tmp_path / "package")
    assert package.interval == 0.9
    assert [entry["name"] for entry in package.outputs] == ["prediction", "interval"]
    predictor = Predictor(package)
    answers = predictor.arrow(stages.table.to_batches()[0])
    assert answers.interval is not None
    low_N, high_N = answers.interval.T
    assert answers.interval.dtype == np.float32
    y_N = np.array(stages.table["y"].to_pylist())[: len(low_N)]
    evidence = package.evidence()
    assert evidence["parity"]["max_difference"] <= 1e-5
    assert evidence["interval"]["rows"] == stages.table.num_rows == len(low_N)
    assert evidence["interval"]["coverage"] == pytest.approx(np.mean((low_N <= y_N) & (y_N <= high_N)))
    assert 0.8 <= evidence["interval"]["low"] <= evidence["interval"]["coverage"] <= evidence["interval"]["high"]
    assert evidence["interval"]["mean_width"] < evidence["interval"]["target_width"]
    assert "## Intervals" in (package.path / "card.md").read_text()
    np.testing.assert_allclose(predictor.records([package.example]).interval, answers.interval[_place(stages, package)], rtol=1e-6)
    plain = packaged(make_stages("regression", kind="xgboost"), tmp_path / "plain")
    assert plain.interval is None
    assert plain.evidence()["quality"]["metrics"] == evidence["quality"]["metrics"]


def _place(stages: Any, package: Package) -> list[int]:
    rows = stages.table.select(package.schema.names).to_pylist()
    return [rows.index(package.example)]


def test_a_wrong_interval_breaks_parity(tmp_path: Path, make_stages: MakeStages) -> None:
    stages = make_stages("regression", kind="xgboost", interval=0.9)
    path = stages.train.path / "native" / "interval.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "widening": facts["widening"] + 1.0}))
    with pytest.raises(ContractViolation, match="parity"):
        packaged(stages, tmp_path / "package")


def test_intervals_that_hold_too_little_are_no_package(tmp_path: Path, make_stages: MakeStages) -> None:
    stages = make_stages("regression", kind="xgboost", interval=0.5, contract={"interval": {"min_coverage": 0.9}})
    with pytest.raises(ContractViolation, match=r"interval min_coverage: promised >= 0\.9, measured 0\."):
        packaged(stages, tmp_path / "package")


def test_it_answers_its_own_example_and_the_test_rows(tmp_path: Path, make_stages: MakeStages) -> None:
    stages = make_stages("binary")
    predictor = Predictor(packaged(stages, tmp_path / "package"))
    assert predictor.records([predictor.package.example]).prediction.dtype == np.bool_
    right = (predictor.arrow(stages.table.to_batches()[0]).prediction == np.array(stages.table["y"].to_pylist())).mean()
    assert right == pytest.approx(predictor.package.evidence()["quality"]["metrics"]["accuracy"]["point"])


def test_baseline_holds_the_training_rows(tmp_path: Path, make_stages: MakeStages) -> None:
    baseline = packaged(make_stages("multiclass"), tmp_path / "package").baseline()
    assert baseline["rows"] == 800
    assert set(baseline["columns"]) == {"miles", "carrier", "seats"}
    assert set(baseline["predictions"]) == {"prediction", "confidence"}
    sketches = [ColumnSketch.from_json(tree) for part in ("columns", "predictions") for tree in baseline[part].values()]
    assert all(sketch.rows == 800 for sketch in sketches)
    assert sketches[0].nulls > 0


def test_identity_comes_back_and_follows_the_model(tmp_path: Path, make_stages: MakeStages) -> None:
    stages, other = make_stages("binary"), make_stages("binary", kind="xgboost")
    first, again, third = packaged(stages, tmp_path / "a"), packaged(stages, tmp_path / "b"), packaged(other, tmp_path / "c")
    assert first.identity == again.identity
    assert first.identity != third.identity
    for name in ("features.onnx", "model.onnx", "full.onnx"):
        assert (first.path / name).read_bytes() == (again.path / name).read_bytes()


def test_every_broken_promise_is_named_and_nothing_is_left(tmp_path: Path, make_stages: MakeStages) -> None:
    contract = {"quality": {"min": 0.9999}, "latency": {"p99_ms": 1e-6}, "size": {"max_mb": 1e-6}}
    with pytest.raises(ContractViolation) as caught:
        packaged(make_stages("binary", contract=contract), tmp_path / "package")
    assert len(caught.value.breaches) == 3
    assert [word in str(caught.value) for word in ("quality min", "latency p99_ms", "size max_mb")] == [True] * 3
    assert not (tmp_path / "package").exists()
    assert not list(tmp_path.glob(".partial-*"))


def test_a_refused_candidate_has_its_evidence_and_no_manifest(tmp_path: Path, make_stages: MakeStages) -> None:
    stages = make_stages("binary", contract={"quality": {"min": 0.9999}})
    with pytest.raises(ContractViolation):
        stage.run(stages.project, stages.data, stages.features, stages.train, tmp_path, events=Events())
    assert not (tmp_path / MANIFEST).exists()
    assert json.loads((tmp_path / "evidence" / "quality.json").read_text())["rows"] == 400


def test_a_graph_that_answers_otherwise_is_refused_with_the_cause(tmp_path: Path, make_stages: MakeStages) -> None:
    stages = make_stages("binary", graph_scale=1.001)
    with pytest.raises(
        ContractViolation, match=r"parity: promised <= 1e-05, measured .*; \d+ of 400 rows differ .* feature 'miles' is .* in NumPy"
    ):
        packaged(stages, tmp_path / "package")


def test_a_model_no_better_than_trivial_is_refused(tmp_path: Path, make_stages: MakeStages) -> None:
    def noise(count: int, task: str, seed: int) -> pa.Table:
        table = make_stages.rows(count, task, seed)
        return table.set_column(table.schema.names.index("y"), "y", pa.array(np.random.default_rng(seed + 100).normal(size=count)))

    with pytest.raises(ContractViolation, match="better than trivial"):
        packaged(make_stages("regression", kind="xgboost", rows_of=noise), tmp_path / "package")


def test_a_metric_that_the_rows_leave_undefined_keeps_no_promise(tmp_path: Path, make_stages: MakeStages) -> None:
    def one_class(count: int, task: str, seed: int) -> pa.Table:
        table = make_stages.rows(count, task, seed)
        return table.filter(table["y"]) if seed == 2 else table

    stages = make_stages("binary", contract={"quality": {"min": 0.5}}, rows_of=one_class)
    with pytest.raises(ContractViolation, match=r"quality min: promised >= 0\.5, was not measured"):
        packaged(stages, tmp_path / "package")


def test_an_empty_test_split_is_an_error(tmp_path: Path, make_stages: MakeStages) -> None:
    stages = make_stages("binary", rows_of=lambda count, task, seed: make_stages.rows(0 if seed == 2 else count, task, seed))
    with pytest.raises(DataError, match="test split must hold rows"):
        packaged(stages, tmp_path / "package")


def test_no_loss_against_itself_and_a_loss_against_a_better_one(tmp_path: Path, make_stages: MakeStages) -> None:
    contract = {"quality": {"max_drop": 0.02}}
    stages = make_stages("binary", contract=contract)
    champion = packaged(stages, tmp_path / "champion")
    assert "drop" not in champion.evidence()
    same = packaged(stages, tmp_path / "same", champion=champion).evidence()["drop"]
    assert same["estimate"] == same["bound"] == 0
    assert same["champion"] == champion.identity

    worse = make_stages("binary", contract=contract, blind=True)
    with pytest.raises(ContractViolation, match=r"quality max_drop: promised <= 0\.02, measured 0"):
        packaged(worse, tmp_path / "worse", champion=champion)


def test_a_loss_is_positive_where_less_is_better(tmp_path: Path, make_stages: MakeStages) -> None:
    champion = packaged(make_stages("regression"), tmp_path / "champion")
    worse = packaged(make_stages("regression", blind=True), tmp_path / "worse", champion=champion).evidence()["drop"]
    assert worse["metric"] == "rmse"
    assert 0 < worse["estimate"] < worse["bound"]


def test_a_champion_of_other_classes_or_columns_keeps_no_promise(tmp_path: Path, make_stages: MakeStages) -> None:
    champion = packaged(make_stages("multiclass"), tmp_path / "champion")
    with pytest.raises(ContractViolation, match="the champion must answer with the same classes"):
        packaged(make_stages("binary"), tmp_path / "package", champion=champion)
    champion = packaged(make_stages("binary"), tmp_path / "other")
    champion.manifest["signature"]["inputs"].append({"name": "gone", "type": "float64", "nullable": True})
    with pytest.raises(ContractViolation, match="the champion cannot answer the test rows"):
        packaged(make_stages("binary"), tmp_path / "package", champion=champion)


def test_a_metric_may_be_chosen(tmp_path: Path, make_stages: MakeStages) -> None:
    quality = packaged(make_stages("binary", contract={"quality": {"metric": "log_loss", "max": 0.69}}), tmp_path / "p").evidence()[
        "quality"
    ]
    assert quality["metric"] == "log_loss"
    assert quality["gain_over_trivial"] == pytest.approx(quality["trivial"]["log_loss"] - quality["value"])
    assert quality["slices"][0]["metric"] == "log_loss"


def test_what_was_measured_is_told(tmp_path: Path, make_stages: MakeStages) -> None:
    heard: list[Event] = []
    stages = make_stages("binary")
    stage.run(stages.project, stages.data, stages.features, stages.train, tmp_path, events=Events(heard.append))
    judged = next(event for event in heard if event.kind == "package.judged")
    assert "parity: promised <= 1e-05" in judged.message
    assert judged.fields["evidence"]["quality"]["rows"] == 400


def test_the_card_says_what_it_is_and_how_good(tmp_path: Path, make_stages: MakeStages) -> None:
    text = (packaged(make_stages("multiclass"), tmp_path / "package").path / "card.md").read_text()
    for part in ("# tiny", '`"high"`, `"low"`, `"mid"`', "| `carrier` | string | yes |", "log loss", "## Limits", "Where it does worst"):
        assert part in text
