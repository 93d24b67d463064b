"""Leaks are found where they are, and only there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill.core.engine import row_hash
from tidemill.core.events import Event, Events
from tidemill.core.project import from_tree
from tidemill.core.schema import Column
from tidemill.data import stage
from tidemill.data.leakage import SplitHashes, _auc, giveaways, shared
from tidemill.data.split import Cuts
from tidemill.data.table import ORDER, ROW
from tidemill.data.target import TargetFacts

ROWS = 3_000


def found(tmp_path: Path, table: dict[str, Any], **data: Any) -> list[dict[str, Any]]:
    """What the stage writes as leakage for a table of these columns."""
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    events: list[Event] = []
    project = from_tree({"name": "t", "data": {"source": "t.parquet", "target": "y", **data}}, folder=tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    facts = stage.run(project, out, events=Events(events.append))
    signs = json.loads((out / "leakage.json").read_text())
    assert facts["leakage"] == len(signs) == len([event for event in events if event.kind == "data.leakage" and event.level == "warning"])
    return signs


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


class TestColumns:
    def test_honest_columns_pass(self, tmp_path: Path, rng: np.random.Generator) -> None:
        x = rng.normal(size=ROWS)
        columns = {"x": x, "id": [f"id {i}" for i in range(ROWS)], "n": np.arange(ROWS), "y": x + rng.normal(size=ROWS) > 0}
        assert found(tmp_path, columns) == []

    @pytest.mark.parametrize("kind", ["copy", "number", "far from monotone", "text"])
    def test_a_column_that_gives_a_class_away(self, tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
        y = rng.random(ROWS) < 0.3
        leaks = {
            "copy": y,
            "number": np.where(y, 10.0, -10.0) + rng.normal(size=ROWS),
            "far from monotone": np.where(y, rng.normal(size=ROWS), rng.choice([-9.0, 9.0], ROWS)),
            "text": np.where(y, rng.choice(np.array(["a", "b"]), ROWS), "c"),
        }
        [sign] = found(tmp_path, {"noise": rng.normal(size=ROWS), "leak": leaks[kind], "y": y})
        assert (sign["kind"], sign["column"]) == ("predicts_target", "leak")
        assert sign["value"] >= 0.98
        assert "leak alone predicts y" in sign["message"]

    def test_a_column_that_gives_one_of_several_classes_away_is_not_enough(self, tmp_path: Path, rng: np.random.Generator) -> None:
        y = rng.choice(np.array(["a", "b", "c", "d"]), ROWS)
        signs = found(tmp_path, {"id": np.arange(ROWS), "some": y == "a", "all": [value * 2 for value in y], "y": y})
        assert [sign["column"] for sign in signs] == ["all"]

    def test_a_number_that_gives_a_quantity_away(self, tmp_path: Path, rng: np.random.Generator) -> None:
        y = rng.lognormal(size=ROWS)
        signs = found(tmp_path, {"scaled": y * 3 + 1, "logged": np.log(y), "noisy": y + rng.normal(size=ROWS) * 2, "y": y}, leakage=0.9)
        assert sorted(sign["column"] for sign in signs) == ["logged", "scaled"]

    def test_keys_and_weights_are_no_features(self, tmp_path: Path, rng: np.random.Generator) -> None:
        y = rng.random(ROWS) < 0.5
        assert (
            found(
                tmp_path,
                {"x": rng.normal(size=ROWS), "k": [f"{v} {i}" for i, v in enumerate(y)], "w": y + 1.0, "y": y},
                weight="w",
                keys=["k"],
            )
            == []
        )

    def test_the_threshold_is_the_projects(self, tmp_path: Path, rng: np.random.Generator) -> None:
        x = rng.normal(size=ROWS)
        columns = {"x": x, "y": x + rng.normal(size=ROWS) > 0}
        [sign] = found(tmp_path, columns, leakage=0.7)
        assert 0.7 < sign["value"] < 0.9


class TestPostEvent:
    def test_a_column_that_is_null_with_the_target(self, tmp_path: Path, rng: np.random.Generator) -> None:
        late = rng.random(ROWS) < 0.5
        cancelled = rng.random(ROWS) < 0.1
        columns = {
            "arrived": pa.array(rng.normal(size=ROWS), mask=cancelled),
            "gusts": pa.array(rng.normal(size=ROWS), mask=rng.random(ROWS) < 0.1),
            "y": pa.array(late, mask=cancelled),
        }
        [sign] = found(tmp_path, columns)
        assert (sign["kind"], sign["column"]) == ("post_event", "arrived")
        assert sign["value"] == 1.0

    def test_a_column_whose_nulls_tell_the_class(self, tmp_path: Path, rng: np.random.Generator) -> None:
        y = rng.random(ROWS) < 0.2
        [sign] = found(tmp_path, {"id": np.arange(ROWS), "refund": pa.array(rng.normal(size=ROWS), mask=~y), "y": y})
        assert (sign["kind"], sign["column"]) == ("post_event", "refund")
        assert "whether refund is null gives y away" in sign["message"]


class TestRowsInTwoSplits:
    def test_one_key_in_two_splits(self, tmp_path: Path, rng: np.random.Generator) -> None:
        columns = {"k": np.tile(np.arange(ROWS // 3), 3), "x": rng.normal(size=ROWS), "turn": np.repeat(np.arange(3), ROWS // 3)}
        columns["y"] = rng.random(ROWS) < 0.5
        [sign] = found(tmp_path, columns, split={"by": "group", "column": "turn"}, keys=["k"])
        assert (sign["kind"], sign["column"], sign["value"]) == ("keys_in_splits", "k", ROWS)
        assert "1,000 rows of test in train, 1,000 rows of valid in train, 1,000 rows of test in valid" in sign["message"]

    def test_equal_rows_in_two_splits(self, tmp_path: Path, rng: np.random.Generator) -> None:
        x = np.tile(rng.normal(size=ROWS // 2), 2)
        table = pa.table({"x": x, "k": np.arange(ROWS), "y": x > 0})
        cuts = Cuts(np.zeros(1, np.uint64), np.array([300], np.uint64), np.array([600], np.uint64))
        rows = table.append_column(ROW, pa.array(row_hash(table.to_batches()[0], ["x", "y"]).view(np.int64) ^ np.int64(-(2**63))))
        rows = rows.append_column(ORDER, pa.array(np.arange(ROWS, dtype=np.int64) + np.int64(-(2**63))))
        agg = SplitHashes(cuts, ROW)
        state = agg.init()
        for batch in rows.to_batches(max_chunksize=100):
            state = agg.merge(state, agg.update(agg.init(), batch))
        [sign] = shared(state, ROW, (), every=1)
        assert (sign["kind"], sign["value"]) == ("duplicate_rows", 600)
        assert "300 rows of test in train, 300 rows of valid in train; a model" in sign["message"]
        sampled = SplitHashes(cuts, ROW, 3)
        [sign] = shared(sampled.update(sampled.init(), rows.combine_chunks().to_batches()[0]), ROW, (), every=3)
        assert sign["value"] == pytest.approx(600, rel=0.25)
        assert "about" in sign["message"]


def test_a_sample_too_small_says_nothing() -> None:
    facts = TargetFacts(column=Column(name="y", type="boolean", nullable=False), task="binary", classes=[False, True])
    y = [i % 2 == 0 for i in range(60)]
    sample = pa.table({ROW: pa.array(range(60)), "leak": y, "y": y})
    assert giveaways(sample, ["leak"], facts, threshold=0.98) == []


def test_auc_counts_ties_half() -> None:
    y = np.array([0.0, 0.0, 1.0, 1.0])
    assert _auc(y, np.array([1.0, 2.0, 3.0, 4.0])) == 1.0
    assert _auc(y, np.array([1.0, 3.0, 3.0, 4.0])) == 0.875
    assert _auc(y, np.zeros(4)) == 0.5
    assert _auc(np.zeros(4), np.arange(4.0)) == 0.5
