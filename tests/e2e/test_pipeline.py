"""The pipeline through the command line: what is run again, what is not, and that the same comes out of the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

STAGES = ["data", "features", "train", "package"]


@pytest.fixture(scope="module")
def finished(make_project: Callable[..., Any]) -> Any:
    """A project that was run once; tests that use it leave its files as they are."""
    project = make_project()
    project.first = project.run()
    return project


def test_the_first_run_runs_everything_and_leaves_its_record(finished: Any) -> None:
    told = finished.first
    assert _ran(told) == STAGES
    assert (told["version"], told["promoted"], told["champion"]) == (1, True, True)
    folder = Path(told["report"]).parent
    assert sorted(path.name for path in folder.iterdir()) == ["events.jsonl", "report.html", "run.json"]
    record = json.loads((folder / "run.json").read_text())
    assert record["stages"]["train"]["inputs"].keys() >= {"data", "features"}
    assert record["environment"]["hardware"]["cores"] >= 1
    assert all(record["stages"][stage]["seconds"] > 0 and record["stages"][stage]["peak_mb"] > 50 for stage in STAGES)


def test_an_unchanged_run_runs_nothing(finished: Any) -> None:
    told = finished.run()
    assert _ran(told) == []
    assert (told["identity"], told["version"], told["promoted"]) == (finished.first["identity"], 1, False)
    assert told["champion"], "it still is"


@pytest.mark.parametrize(
    ("override", "last", "again"),
    [
        ("model.num_rounds=6", "train", ["train"]),
        ("train.batch_rows=1024", "train", ["train"]),
        ('features.distance=["standardize"]', "train", ["features", "train"]),
        ("data.split.test=0.2", "features", ["data", "features"]),
        ("seed=1", "features", ["data", "features"]),
        ("serve.port=9000", "package", []),
        ("engine.memory=1GiB", "package", []),
        ('contract.quality={ metric = "roc_auc", min = 0.5 }', "package", ["package"]),
    ],
)
def test_a_change_reruns_what_depends_on_it(override: str, last: str, again: list[str], finished: Any) -> None:
    assert _ran(finished.run("--set", override, "--to", last)) == again


def test_a_sample_is_a_run_of_its_own(finished: Any) -> None:
    told = finished.run("--sample", "0.5", "--to", "data")
    assert _ran(told) == ["data"]
    assert 200 < sum(told["stages"]["data"]["facts"]["rows"].values()) < 400
    assert told["version"] is None
    assert _ran(finished.run("--to", "data")) == []


def test_a_changed_model_is_trained_and_packaged_anew_and_does_not_become_champion(project: Any) -> None:
    first = project.run()
    told = project.run("--set", "model.num_rounds=6")
    assert _ran(told) == ["train", "package"]
    assert told["identity"] != first["identity"]
    assert (told["version"], told["champion"]) == (2, False)
    said = project.call("run", "--set", "model.num_rounds=6").fine().out
    assert "small version 2 is registered; tidemill models promote small 2 makes it champion" in said
    assert "small version 1 is champion" in project.call("run").fine().out


def test_from_runs_again_what_is_unchanged(project: Any) -> None:
    first = project.run()
    told = project.run("--from", "train")
    assert _ran(told) == ["train", "package"]
    assert (told["identity"], told["version"]) == (first["identity"], 1)
    assert _ran(project.run("--from", "package", "--to", "train")) == []


def test_to_stops_there_and_registers_nothing(project: Any) -> None:
    told = project.run("--to", "features")
    assert list(told["stages"]) == ["data", "features"]
    assert (told["version"], told["identity"]) == (None, None)
    assert not list(project.home.glob("packages/*/*"))
    assert _ran(project.run()) == ["train", "package"], "and the next run goes on from there"


def test_profile_says_time_memory_and_where_the_time_went(finished: Any) -> None:
    told = finished.run("--from", "features", "--to", "features", "--profile")
    record = json.loads((Path(told["report"]).parent / "run.json").read_text())["stages"]["features"]
    assert record["seconds"] > 0
    assert record["peak_mb"] > 50
    assert len(record["cpu"]) >= 5
    assert {"function", "place", "calls", "own_s", "total_s"} == record["cpu"][0].keys()
    assert record["cpu"][0]["own_s"] >= record["cpu"][-1]["own_s"]
    assert "features" in Path(told["report"]).read_text()


def test_changed_data_is_noticed_and_a_touched_file_is_not(project: Any, make_rows: Any) -> None:
    first = project.run()
    (project.folder / "rows.parquet").touch()
    assert _ran(project.run()) == []
    table = make_rows(600)
    pq.write_table(pa.concat_tables([table.slice(300), table.slice(0, 300)]), project.folder / "rows.parquet")
    told = project.run()
    assert _ran(told) == ["data"], "the same rows in another order are the same table"
    assert told["identity"] == first["identity"]
    pq.write_table(make_rows(600, seed=1), project.folder / "rows.parquet")
    assert _ran(project.run("--to", "train")) == ["data", "features", "train"]


def test_changed_prepare_is_noticed(project: Any) -> None:
    (project.folder / "shape.py").write_text("def prepare(table):\n    return table\n")
    project.write(data='source = "rows.parquet"\ntarget = "late"\nkeys = ["id"]\nprepare = "shape:prepare"')
    project.run("--to", "data")
    assert _ran(project.run("--to", "data")) == []
    (project.folder / "shape.py").write_text("def prepare(table):\n    return table.drop('stops')\n")
    told = project.run("--to", "data")
    assert _ran(told) == ["data"]
    assert told["stages"]["data"]["facts"]["columns"] == 4


@pytest.mark.parametrize("stage", ["data", "features", "train", "package"])
def test_a_damaged_artifact_is_made_again(stage: str, project: Any) -> None:
    first = project.run()
    (folder,) = project.home.glob(f"store/small/{stage}-*")
    file = next(path for path in sorted(folder.rglob("*")) if path.suffix in (".parquet", ".onnx"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    done = project.call("run").fine()
    assert f"{file.name} is corrupted" in done.err
    assert "made again" in done.err
    assert done.err.count("unchanged") == 3, "only that one"
    assert project.run()["identity"] == first["identity"]
    project.check_whole()


def test_a_half_deleted_artifact_is_made_again(project: Any) -> None:
    first = project.run()
    next(project.home.glob("store/small/train-*/model.onnx")).unlink()
    next(project.home.glob("store/small/features-*/manifest.json")).write_text("{")
    told = project.run()
    assert _ran(told) == ["features", "train"]
    assert told["identity"] == first["identity"]


def test_two_homes_two_folders_two_forms_of_the_same_rows_give_the_same_package(finished: Any, tmp_path: Path) -> None:
    """Bitwise: the hashes of the graphs are part of the identity."""
    other = tmp_path / "with space ünd 文字"
    other.mkdir()
    (other / "tidemill.toml").write_text((finished.folder / "tidemill.toml").read_text())
    (other / "rows.parquet").write_bytes((finished.folder / "rows.parquet").read_bytes())
    told = finished.run("-f", f"{other.name}/tidemill.toml", "--home", "a home", cwd=tmp_path)
    assert _ran(told) == STAGES
    assert told["identity"] == finished.first["identity"]
    assert (tmp_path / "a home" / "ledger.db").exists()
    assert not (other / ".tidemill").exists(), "with another home, nothing is left beside the project"

    table = pq.read_table(finished.folder / "rows.parquet")
    pa.csv.write_csv(table, other / "rows.csv")
    (other / "rows.csv").write_bytes(b"\xef\xbb\xbf" + (other / "rows.csv").read_bytes())
    told = finished.run("--set", "data.source=rows.csv", "--home", str(tmp_path / "csv home"), cwd=other)
    assert told["identity"] == finished.first["identity"]


def test_the_tuned_identity_is_bitwise_for_stated_threads_and_trials(make_project: Callable[..., Any]) -> None:
    told = [make_project().write(tune="trials = 3").run("--set", "engine.threads=2") for _ in range(2)]
    assert told[0]["identity"] == told[1]["identity"]
    record = json.loads((Path(told[0]["report"]).parent / "run.json").read_text())
    assert record["config"]["engine"]["threads"] == 2


def test_several_files_and_overrides(project: Any) -> None:
    (project.folder / "quick.toml").write_text("[model]\nnum_rounds = 2\n")
    told = project.run("-f", "tidemill.toml", "-f", "quick.toml", "--set", "model.max_depth=2", "--to", "train")
    record = json.loads((Path(told["report"]).parent / "run.json").read_text())
    assert record["config"]["model"]["params"] == {"num_rounds": 2, "max_depth": 2}
    project.call("run", "--set", "model.max_depth=shallow").said(2, "model.max_depth: must be a whole number or auto, got 'shallow'")
    project.call("run", "--set", "nonsense").said(2, "--set: must be path=value, got 'nonsense'")
    project.call("run", "-f", "none.toml").said(2, "project file none.toml must exist", "tidemill init")
    project.call("run", "--sample", "2").said(2, "sample: must be in (0, 1], got 2.0")


def test_a_dry_run_reads_the_file_and_leaves_nothing(project: Any) -> None:
    assert "valid" in project.call("run", "--dry-run").fine().out
    assert project.call("run", "--dry-run", "--json").fine().json["name"] == "small"
    assert not project.home.exists()


def test_a_broken_promise_is_exit_code_3_and_registers_nothing(project: Any) -> None:
    first = project.run()
    done = project.call("run", "--set", 'contract.quality={ metric = "roc_auc", min = 0.999 }').said(
        3, "contract broken", "roc_auc", "0.999"
    )
    assert "report: " in done.err
    assert [path.name for path in project.home.glob("packages/small/*")] == ["1"]
    assert not project.leftovers()
    history = project.call("models", "history", "small").fine().out
    assert "refused" in history
    assert project.run()["identity"] == first["identity"]


def test_an_unchanged_run_whose_package_became_champion_runs_nothing(project: Any) -> None:
    project.write(contract='quality = { metric = "roc_auc", max_drop = 0.5 }')
    assert _ran(project.run()) == STAGES
    assert _ran(project.run()) == []
    assert _ran(project.run("--set", "model.num_rounds=6")) == ["train", "package"]


def _ran(told: dict[str, Any]) -> list[str]:
    return [name for name, stage in told["stages"].items() if not stage["cached"]]


@pytest.mark.server
def test_a_team_keeps_its_ledger_in_postgresql(make_project: Callable[..., Any], postgresql: str) -> None:
    project = make_project()
    told = project.run("--ledger", postgresql)
    assert (told["version"], told["champion"]) == (1, True)
    listed = project.call("models", "list", "--ledger", postgresql, "--json").fine().json
    assert [(version["version"], version["aliases"]) for version in listed] == [(1, ["champion"])]
    assert not (project.home / "ledger.db").exists()
