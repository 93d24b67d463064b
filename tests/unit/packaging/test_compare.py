"""Two packages side by side: the figures of each, the paired difference, and who may follow whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill import cli
from tidemill.core.artifact import writing
from tidemill.core.errors import EXIT_CONTRACT, EXIT_DONE, ConfigError, DataError, NotFound
from tidemill.core.events import Events
from tidemill.core.metrics import evaluate
from tidemill.core.package import Package
from tidemill.packaging import stage
from tidemill.packaging.compare import compare, held_out, labelled
from tidemill.packaging.evaluate import answered
from tidemill.testing.packages import tiny_package
from tidemill.ui.compare import render_compare

MakeStages = Any


def packaged(stages: Any, folder: Path) -> Package:
    with writing(folder, stage="package") as out:
        stage.run(stages.project, stages.data, stages.features, stages.train, out, events=Events())
    return Package.open(folder)


@pytest.fixture
def pair(tmp_path: Path, make_stages: MakeStages) -> Any:
    """A package that saw everything, one that never saw miles, and the store with the test rows of both."""

    def made(task: str = "binary", **more: Any) -> tuple[Package, Package, Any]:
        good, blind = make_stages(task, **more), make_stages(task, blind=True, **more)
        return packaged(good, tmp_path / "good"), packaged(blind, tmp_path / "blind"), good

    return made


def rows_of(stages: Any) -> Any:
    """A store that holds the data artifact of these stages."""
    store = stages.data.path.parent / "store"
    if not store.exists():
        (store / "tiny").mkdir(parents=True)
        (store / "tiny" / "data-0").symlink_to(stages.data.path)
    return store


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_worse_one_loses_and_the_better_one_may_follow(task: str, pair: Any) -> None:
    good, blind, stages = pair(task)
    rows, target = held_out(good, rows_of(stages))
    found = compare(good, blind, rows, target)
    metric = found["metric"]
    assert not found["passed"]
    assert found["breaches"] == [breach for breach in found["breaches"] if metric in breach]
    back = compare(blind, good, rows, target)
    assert back["passed"]
    assert back["breaches"] == []
    there, here = found["metrics"][metric]["difference"], back["metrics"][metric]["difference"]
    assert there["estimate"] == pytest.approx(-here["estimate"])
    assert there["high"] < 0 < here["low"]
    y_N, _ = target.read(rows)
    expected = evaluate(task, y_N, answered(blind, rows), metrics=[metric])[metric]  # type: ignore[arg-type]
    assert found["metrics"][metric]["second"]["point"] == pytest.approx(expected)


def test_against_itself_there_is_no_difference(pair: Any) -> None:
    good, _, stages = pair()
    found = compare(good, good, *held_out(good, rows_of(stages)))
    assert found["passed"]
    assert {measured["difference"]["estimate"] for measured in found["metrics"].values()} == {0.0}


def test_what_may_be_lost_is_the_bound_not_the_estimate(pair: Any) -> None:
    good, blind, stages = pair()
    rows, target = held_out(good, rows_of(stages))
    difference = compare(good, blind, rows, target)["metrics"]["roc_auc"]["difference"]
    between = (-difference["estimate"] + difference["drop"]) / 2
    assert difference["drop"] > -difference["estimate"] > 0
    assert not compare(good, blind, rows, target, max_drop=between)["passed"]
    assert compare(good, blind, rows, target, max_drop=difference["drop"])["passed"]


def test_a_broken_contract_is_named_although_nothing_is_lost(pair: Any) -> None:
    good, _, stages = pair(contract={"quality": {"metric": "accuracy", "min": 0.6}})
    table = stages.table
    wrong = table.set_column(table.schema.get_field_index("y"), "y", pa.array([not value for value in table["y"].to_pylist()]))
    pq.write_table(wrong, good.path.parent / "wrong.parquet")
    rows = labelled(good.path.parent / "wrong.parquet", [good], "y")
    _, target = held_out(good, rows_of(stages))
    found = compare(good, good, rows, target)
    assert not found["passed"]
    assert found["metric"] == "accuracy"
    assert any(breach.startswith("quality min (accuracy)") for breach in found["breaches"])
    assert any(breach.startswith("better than trivial") for breach in found["breaches"])


def test_another_question_is_refused(tmp_path: Path, pair: Any) -> None:
    good, _, stages = pair()
    rows, target = held_out(good, rows_of(stages))
    with pytest.raises(ConfigError, match="the same task"):
        compare(good, tiny_package(tmp_path / "other", task="regression"), rows, target)
    with pytest.raises(ConfigError, match="the same classes"):
        compare(good, tiny_package(tmp_path / "third", classes=[0, 1]), rows, target)


def test_rows_that_are_not_there(tmp_path: Path, pair: Any) -> None:
    good, _, stages = pair()
    with pytest.raises(DataError, match="--data"):
        held_out(good, tmp_path / "nowhere")
    pq.write_table(stages.table.drop(["miles"]), tmp_path / "less.parquet")
    with pytest.raises(NotFound, match="miles"):
        labelled(tmp_path / "less.parquet", [good], "y")
    pq.write_table(
        stages.table.set_column(stages.table.schema.get_field_index("y"), "y", pa.nulls(400, pa.bool_())), tmp_path / "blank.parquet"
    )
    with pytest.raises(DataError, match="'y' is known"):
        labelled(tmp_path / "blank.parquet", [good], "y")


def test_other_data_is_said(tmp_path: Path, make_stages: MakeStages) -> None:
    stages = make_stages("binary")
    good = packaged(stages, tmp_path / "good")
    newer = make_stages("binary", rows_of=lambda count, task, seed: make_stages.rows(count, task, seed + 7))
    rows, target = held_out(good, rows_of(stages))
    assert "different data" in compare(packaged(newer, tmp_path / "newer"), good, rows, target)["caution"]
    assert compare(good, good, rows, target)["caution"] is None


def test_the_page_shows_the_verdict_and_both_names(pair: Any) -> None:
    good, blind, stages = pair()
    rows, target = held_out(good, rows_of(stages))
    text = render_compare(compare(good, blind, rows, target))
    assert "May not follow." in text
    assert "ROC AUC" in text
    assert "<script" not in text
    assert "May follow." in render_compare(compare(blind, good, rows, target))


def test_the_gate_is_an_exit_code(tmp_path: Path, pair: Any, capsys: pytest.CaptureFixture[str]) -> None:
    good, blind, stages = pair()
    pq.write_table(stages.table, tmp_path / "rows.parquet")
    call = ["models", "compare", str(good.path), str(blind.path), "--data", str(tmp_path / "rows.parquet"), "--json"]
    assert cli.main(call) == EXIT_DONE  # looking breaks nothing
    assert json.loads(capsys.readouterr().out)["passed"] is False
    assert cli.main([*call, "--gate", "--output", str(tmp_path / "page" / "compare.html")]) == EXIT_CONTRACT
    assert "roc_auc" in capsys.readouterr().err
    assert (tmp_path / "page" / "compare.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    call[2], call[3] = call[3], call[2]
    assert cli.main([*call[:-1], "--gate"]) == EXIT_DONE
    assert "the second is better in roc_auc" in capsys.readouterr().out
