"""The stage from a data artifact to `features.onnx` and `features.json`, on the embedded engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill.core.artifact import Artifact, hash_file, write_json, writing
from tidemill.core.errors import ConfigError
from tidemill.core.events import Event, Events
from tidemill.core.graph import BulkGraph
from tidemill.core.load import load
from tidemill.core.project import from_tree
from tidemill.core.schema import Schema
from tidemill.features import stage

ROWS = 3000
RANDOM = np.random.default_rng(3)
TRAIN = pa.table(
    {
        "id": pa.array(range(ROWS)),
        "carrier": pa.array(RANDOM.choice(["UA", "AA", None, "DL"], ROWS)),
        "distance": pa.array(RANDOM.normal(1000, 200, ROWS), mask=RANDOM.random(ROWS) < 0.1),
        "year": pa.array([2013] * ROWS),
        "late": pa.array(RANDOM.random(ROWS) < 0.3),
        "weight": pa.array(RANDOM.random(ROWS)),
    }
)


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    with writing(tmp_path / "data", stage="data") as out:
        (out / "train").mkdir()
        pq.write_table(TRAIN, out / "train" / "part-0.parquet", row_group_size=700)
        facts = {"task": "binary", "classes": [False, True], "rows": {"train": ROWS}}
        roles = {"target": "late", "keys": ["id"], "weight": "weight", **facts}
        write_json(out / "schema.json", {"columns": Schema.from_arrow(TRAIN.schema).to_json(), **roles})
    return Artifact.open(tmp_path / "data")


def run(
    data: Artifact, out: Path, features: dict[str, Any], *, threads: int = 2, kind: str = "xgboost"
) -> tuple[dict[str, Any], list[Event]]:
    tree = {"name": "n", "data": {"source": "x.parquet", "target": "late"}, "features": features, "engine": {"threads": threads}}
    project = from_tree({**tree, "model": {"kind": kind}})
    heard: list[Event] = []
    out.mkdir()
    return stage.run(project, data, out, events=Events(heard.append)), heard


def test_target_keys_and_weight_are_no_inputs(data: Artifact, tmp_path: Path) -> None:
    facts, heard = run(data, tmp_path / "out", {"distance": ["impute", "standardize"]})
    assert facts == {"inputs": 2, "features": 6, "dropped": {"year": "every value is 2013"}}
    assert [event.message for event in heard if event.level == "warning"] == ["column 'year' is kept out: every value is 2013"]
    import json

    description = json.loads((tmp_path / "out" / "features.json").read_text())
    assert [column["name"] for column in description["inputs"]] == ["carrier", "distance"]
    onnx.checker.check_model(onnx.load(tmp_path / "out" / "features.onnx"), full_check=True)
    answer = BulkGraph(tmp_path / "out" / "features.onnx", Schema.from_json(description["inputs"])).run(TRAIN.to_batches()[0])["features"]
    np.testing.assert_array_equal(answer, load("reference", "features")(description, TRAIN))
    distance = answer[:, description["names"].index("distance")]
    assert abs(distance.mean()) < 0.01
    assert abs(distance.std() - 1) < 0.06


def test_the_same_rows_give_the_same_bytes_whatever_the_threads(data: Artifact, tmp_path: Path) -> None:
    features = {"distance": [{"op": "impute", "strategy": "mean"}, "standardize"], "year": [], "carrier": ["target"]}
    for threads in (1, 2):
        run(data, tmp_path / f"out{threads}", features, threads=threads)
    for name in ("features.onnx", "training.onnx", "features.json"):
        assert hash_file(tmp_path / "out1" / name) == hash_file(tmp_path / "out2" / name)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"late": ["impute"]}, "features.late: must be no input, is the target"),
        ({"x": {"of": ["late", "year"], "steps": ["cross", "one_hot"]}}, "features.x.of: must be no input, is the target"),
        ({"id": ["impute"]}, "features.id: must be no input, is a key"),
        (
            {"distence": ["impute"]},
            "features: column 'distence' must be one that can be a feature, is not in the data or has another role; ",
        ),
        ({"drop": ["carier"]}, "did you mean 'carrier'?"),
    ],
)
def test_a_column_that_cannot_be_a_feature_is_named(data: Artifact, tmp_path: Path, features: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        run(data, tmp_path / "out", features)
    assert list((tmp_path / "out").iterdir()) == []


def test_only_what_the_target_taught_makes_a_graph_for_training(data: Artifact, tmp_path: Path) -> None:
    run(data, tmp_path / "plain", {})
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == ["features.json", "features.onnx"]
    features = {"pair": {"of": ["carrier", "year"], "steps": ["cross", "target"]}, "drop": ["carrier", "year", "distance"]}
    run(data, tmp_path / "taught", features)
    names = {}
    for name in ("features", "training"):
        names[name] = [value.name for value in onnx.load(tmp_path / "taught" / f"{name}.onnx").graph.input]
    assert names["features"] == ["carrier", "year", "year__valid"]
    assert names["training"] == [*names["features"], "__fold"]


def test_dropping_a_column_of_another_role_changes_nothing(data: Artifact, tmp_path: Path) -> None:
    facts, _ = run(data, tmp_path / "out", {"drop": ["id", "carrier"]})
    assert facts["inputs"] == 1


def test_selection_leaves_features_out_of_the_graph_and_says_why(data: Artifact, tmp_path: Path) -> None:
    select = [{"op": "correlation", "max": 0.9}, {"op": "mutual_information", "keep": 1, "deviations": 0}]
    facts, heard = run(data, tmp_path / "out", {"distance": ["impute", "standardize"], "select": select})
    made = Artifact.open(data.path).path.parent / "out"
    description = json.loads((made / "features.json").read_text())
    assert facts["features"] == len(description["names"]) == 1
    assert facts["left_out"] == len(description["selected"]["dropped"]) == 5
    assert [(step["op"], step["before"], step["after"]) for step in description["selected"]["steps"]][1][2] == 1
    told = [event for event in heard if event.kind == "features.selected"]
    assert sum(len(event.fields["dropped"]) for event in told) == 5
    answer = BulkGraph(made / "features.onnx", Schema.from_json(description["inputs"])).run(TRAIN.to_batches()[0])["features"]
    np.testing.assert_array_equal(answer, load("reference", "features")(description, TRAIN))


def test_selection_is_checked_when_the_project_is_read() -> None:
    with pytest.raises(ConfigError, match=r"features\.select\[0\]\.max"):
        from_tree({"name": "n", "data": {"source": "x", "target": "y"}, "features": {"select": [{"op": "correlation", "max": 3}]}})


def test_an_embedding_needs_a_model_with_tables(data: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"features\.carrier: embedding needs a network .* model\.kind is 'xgboost'"):
        run(data, tmp_path / "out", {"carrier": ["embedding"]})


def test_what_text_becomes_goes_by_the_kind_of_model(tmp_path: Path) -> None:
    table = TRAIN.append_column("plane", pa.array(RANDOM.choice([f"N{i}" for i in range(40)], ROWS)))
    with writing(tmp_path / "data", stage="data") as out:
        (out / "train").mkdir()
        pq.write_table(table, out / "train" / "part-0.parquet")
        roles = {"target": "late", "keys": ["id"], "weight": None, "task": "binary", "classes": [False, True], "rows": {"train": ROWS}}
        write_json(out / "schema.json", {"columns": Schema.from_arrow(table.schema).to_json(), **roles})
    planes = Artifact.open(tmp_path / "data")
    for kind, op in (("xgboost", "vocabulary"), ("linear", "vocabulary"), ("mlp", "embedding"), ("dcn", "embedding")):
        run(planes, tmp_path / kind, {}, kind=kind)
        made = json.loads((tmp_path / kind / "features.json").read_text())
        assert [step["op"] for step in made["columns"]["plane"]] == [op], kind
        assert ("plane" in made.get("embedding", {})) == (op == "embedding"), kind


def test_embeddings_say_their_tables_and_come_last() -> None:
    table = TRAIN.select(["carrier", "distance"])
    description, _ = stage.fit_table(table, {"carrier": [{"op": "embedding", "width": 4}]})
    assert description["embedding"] == {"carrier": {"rows": 5, "width": 4}}
    assert "embedding" not in stage.fit_table(table, {"carrier": ["vocabulary"]})[0]
    with pytest.raises(ConfigError, match="must be the last step, standardize follows"):
        stage.fit_table(table, {"carrier": ["embedding", "standardize"]})
