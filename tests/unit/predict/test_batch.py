"""Batch prediction on small packages: forms of input and output, resuming, replacing, refusing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tidemill.core.artifact import PARTIAL, lock
from tidemill.core.engine import EngineConfig
from tidemill.core.errors import ConfigError, Conflict, DataError, Unavailable
from tidemill.core.events import Event, Events
from tidemill.core.package import Package, Predictor
from tidemill.predict import batch
from tidemill.predict.batch import BLOCK_ROWS, predict
from tidemill.testing.packages import tiny_package

ROWS = 3 * BLOCK_ROWS + 123


class Killed(BaseException):
    """Stands for a process that dies: nothing catches it."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return tiny_package(tmp_path_factory.mktemp("package") / "tiny")


@pytest.fixture(scope="module")
def table() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "row": np.arange(ROWS),
            "distance": pa.array(rng.normal(1000, 300, ROWS), mask=rng.random(ROWS) < 0.1),
            "fare": rng.normal(20, 5, ROWS).astype(np.float32),
            "seats": pa.array(rng.integers(0, 9, ROWS), mask=rng.random(ROWS) < 0.1),
            "carrier": pa.array(rng.choice(["UA", "DL", "航空", "new", ""], ROWS).tolist(), mask=rng.random(ROWS) < 0.1),
            "weekend": pa.array(rng.random(ROWS) < 0.3, mask=rng.random(ROWS) < 0.1),
            "departs": pa.array(rng.integers(0, 10**15, ROWS), pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        }
    )


@pytest.fixture(scope="module")
def rows(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(table, path, row_group_size=1_000)
    return path


@pytest.fixture(scope="module")
def expected(package: Package, table: pa.Table) -> pa.Table:
    """The answers, from the predictor itself."""
    answers = Predictor(package).arrow(table.combine_chunks().to_batches()[0])
    assert answers.probability is not None
    return pa.table({"row": table["row"], "prediction": answers.prediction, "probability": np.ascontiguousarray(answers.probability[:, 1])})


def _same(found: pa.Table, expected: pa.Table) -> bool:
    return found.schema.names == expected.schema.names and found.to_pydict() == expected.to_pydict()


def _as_file(table: pa.Table, folder: Path) -> str:
    pq.write_table(table, folder / "in.parquet")
    return "in.parquet"


def _as_csv(table: pa.Table, folder: Path) -> str:
    # Fractions and times in CSV keep every digit; floats of 32 bits are read as such because the package says so.
    pa.csv.write_csv(table, folder / "in.csv")
    return "in.csv"


def _as_csv_with_mark(table: pa.Table, folder: Path) -> str:
    _as_csv(table, folder)
    (folder / "in.csv").write_bytes(b"\xef\xbb\xbf" + (folder / "in.csv").read_bytes())
    return "in.csv"


def _as_glob(table: pa.Table, folder: Path) -> str:
    for number, start in enumerate(range(0, len(table), 5_000)):
        pq.write_table(table.slice(start, 5_000), folder / f"in-{number}.parquet")
    return "in-*.parquet"


def _as_hive(table: pa.Table, folder: Path) -> str:
    for number, start in enumerate(range(0, len(table), 5_000)):
        (folder / "in" / f"year={2020 + number}").mkdir(parents=True)
        pq.write_table(table.slice(start, 5_000), folder / "in" / f"year={2020 + number}" / "part.parquet")
    return "in"


@pytest.mark.parametrize("write", [_as_file, _as_csv, _as_csv_with_mark, _as_glob, _as_hive])
@pytest.mark.parametrize("output", ["out.parquet", "out"])
def test_every_form_in_and_out(
    write: Callable[[pa.Table, Path], str], output: str, package: Package, table: pa.Table, expected: pa.Table, tmp_path: Path
) -> None:
    folder = tmp_path / "名 with spaces"
    folder.mkdir()
    name = write(table, folder)
    done = predict(package, folder / name, folder / output, keep=["row"])
    assert (done.rows, done.resumed_rows) == (ROWS, 0)
    assert _same(pq.read_table(folder / output), expected)
    assert _names(folder) == sorted({output, *(path.name for path in folder.glob("in*"))})
    if output == "out":
        manifest = json.loads((folder / "out" / "_manifest.json").read_text())
        assert manifest["rows"] == ROWS
        assert _names(folder / "out") == ["_manifest.json", *(part["file"] for part in manifest["parts"])]


def test_hive_keys_can_be_kept(package: Package, table: pa.Table, tmp_path: Path) -> None:
    predict(package, tmp_path / _as_hive(table, tmp_path), tmp_path / "out.parquet", keep=["year", "row", "year"])
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.schema.names == ["year", "row", "prediction", "probability"]
    assert set(found["year"].to_pylist()) == {2020, 2021, 2022}


@pytest.mark.parametrize("batch_rows", [1, 4_097, 10**9])
@pytest.mark.parametrize("threads", [1, 3])
def test_no_answer_depends_on_batch_size_or_threads(
    batch_rows: int, threads: int, package: Package, rows: Path, expected: pa.Table, tmp_path: Path
) -> None:
    predict(package, rows, tmp_path / "out.parquet", keep=["row"], batch_rows=batch_rows, engine=EngineConfig(threads=threads))
    assert _same(pq.read_table(tmp_path / "out.parquet"), expected)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_columns_of_each_task(task: Any, table: pa.Table, rows: Path, tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "tiny", task=task)
    predict(package, rows, tmp_path / "out.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    predict(package, tmp_path / "none.parquet", tmp_path / "empty.parquet")
    found, empty = pq.read_table(tmp_path / "out.parquet"), pq.read_table(tmp_path / "empty.parquet")
    names = {
        "binary": ["prediction", "probability"],
        "multiclass": ["prediction", "probability_high", "probability_low", "probability_mid"],
        "regression": ["prediction"],
    }[task]
    assert found.schema.names == names
    assert len(found) == ROWS
    assert len(empty) == 0
    assert empty.schema == found.schema, "no rows have the columns and types of many"


@pytest.mark.parametrize("classes", [[False, True], [0, 1], ["no", "yes"]])
def test_labels_keep_their_type(classes: list[Any], rows: Path, tmp_path: Path) -> None:
    predict(tiny_package(tmp_path / "tiny", classes=classes), rows, tmp_path / "out.parquet")
    assert set(pq.read_table(tmp_path / "out.parquet")["prediction"].to_pylist()) == set(classes)


@pytest.mark.parametrize("task", ["text", "embedding"])
def test_text_packages(task: Any, tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "tiny", task=task)
    texts = ["great", "awful", "good grief", "", "great"] * 20
    pq.write_table(pa.table({"id": np.arange(100), "text": texts}), tmp_path / "in.parquet")
    predict(package, tmp_path / "in.parquet", tmp_path / "out.parquet", keep=["id"])
    found = pq.read_table(tmp_path / "out.parquet")
    assert found["id"].to_pylist() == list(range(100))
    answers = Predictor(package).records([{"text": text} for text in texts[:5]])
    assert np.allclose(np.array(found["prediction"].to_pylist()[:5]) == answers.prediction, True)


@pytest.mark.parametrize("output", ["out.parquet", "out"])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_stopped_prediction_goes_on_after_the_last_part(
    output: str, parts: int, package: Package, rows: Path, expected: pa.Table, tmp_path: Path
) -> None:
    _stopped_after(parts, package, rows, tmp_path / output)
    assert not (tmp_path / output).exists()
    done = predict(package, rows, tmp_path / output, keep=["row"], part_rows=BLOCK_ROWS)
    assert (done.rows, done.resumed_rows) == (ROWS, parts * BLOCK_ROWS)
    assert _same(pq.read_table(tmp_path / output), expected)
    assert _names(tmp_path) == [output]


def test_resumed_rows_do_not_go_through_the_graph_again(
    package: Package, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stopped_after(2, package, rows, tmp_path / "out.parquet")
    seen: list[int] = []
    arrow = Predictor.arrow

    def counted(self: Predictor, block: pa.RecordBatch) -> Any:
        seen.append(block.num_rows)
        return arrow(self, block)

    monkeypatch.setattr(Predictor, "arrow", counted)
    predict(package, rows, tmp_path / "out.parquet", keep=["row"], part_rows=BLOCK_ROWS)
    assert sum(seen) == ROWS - 2 * BLOCK_ROWS


@pytest.mark.parametrize("change", ["rows", "columns", "part", "package", "progress"])
def test_what_was_made_of_something_else_is_not_used(
    change: str, package: Package, table: pa.Table, tmp_path: Path, expected: pa.Table
) -> None:
    pq.write_table(table, tmp_path / "in.parquet")
    output = tmp_path / "out.parquet"
    _stopped_after(1, package, tmp_path / "in.parquet", output)
    work = tmp_path / f"{PARTIAL}predict-out.parquet"
    keep = ["row"]
    if change == "rows":
        pq.write_table(table.slice(0, 100), tmp_path / "in.parquet")
    elif change == "columns":
        keep = ["row", "carrier"]
    elif change == "part":
        next(work.glob("part-*")).write_bytes(b"cut short")
    elif change == "package":
        package = tiny_package(tmp_path / "other", classes=["no", "yes"])
    else:
        (work / "progress.json").write_text("{")
    done = predict(package, tmp_path / "in.parquet", output, keep=keep, part_rows=BLOCK_ROWS)
    assert done.resumed_rows == 0
    assert pq.read_table(output).num_rows == (100 if change == "rows" else ROWS)


@pytest.mark.parametrize("output", ["out.parquet", "out"])
def test_an_older_output_stays_until_the_new_one_is_whole(
    output: str, package: Package, rows: Path, table: pa.Table, tmp_path: Path, expected: pa.Table
) -> None:
    pq.write_table(table.slice(0, 10), tmp_path / "few.parquet")
    predict(package, tmp_path / "few.parquet", tmp_path / output, keep=["row"])
    _stopped_after(2, package, rows, tmp_path / output)
    assert pq.read_table(tmp_path / output).num_rows == 10
    predict(package, rows, tmp_path / output, keep=["row"])
    assert _same(pq.read_table(tmp_path / output), expected)
    assert _names(tmp_path) == sorted(["few.parquet", output])


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("output", ["out.parquet", "out"])
def test_a_death_at_any_rename_of_the_end(
    output: str, step: int, package: Package, rows: Path, tmp_path: Path, expected: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(package, rows, tmp_path / output)
    _stopped_after(3, package, rows, tmp_path / output)
    replace, left = os.replace, [step]

    def dying(source: Any, target: Any) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(batch.os, "replace", dying)
        with suppress(Killed):
            predict(package, rows, tmp_path / output, keep=["row"], part_rows=BLOCK_ROWS)
    predict(package, rows, tmp_path / output, keep=["row"], part_rows=BLOCK_ROWS)
    assert _same(pq.read_table(tmp_path / output), expected)
    assert _names(tmp_path) == [output]


def test_two_at_once(package: Package, rows: Path, tmp_path: Path) -> None:
    with lock(tmp_path / ".out.parquet.lock"), pytest.raises(Conflict, match=f"out.parquet is in use by process {os.getpid()}"):
        predict(package, rows, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_progress_is_told(package: Package, rows: Path, tmp_path: Path) -> None:
    told: list[Event] = []
    predict(package, rows, tmp_path / "out.parquet", part_rows=BLOCK_ROWS, events=Events(told.append))
    rows_told = [event.fields["rows"] for event in told if event.kind == "predict.rows"]
    assert rows_told == [BLOCK_ROWS, 2 * BLOCK_ROWS, 3 * BLOCK_ROWS, ROWS]


def test_a_value_of_another_type_far_down_leaves_nothing(package: Package, table: pa.Table, tmp_path: Path) -> None:
    """A text among a CSV's numbers shows when its row is read, long after the start."""
    pa.csv.write_csv(table, tmp_path / "in.csv")
    lines = (tmp_path / "in.csv").read_text().splitlines()
    lines[-1] = lines[-1].replace(",", ",x", 1)
    (tmp_path / "in.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="'distance'"):
        predict(package, tmp_path / "in.csv", tmp_path / "out.parquet")
    assert _names(tmp_path) == ["in.csv"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"output": "out.csv"}, ConfigError, "must end in .parquet or be a folder, got out.csv"),
        ({"output": "rows.parquet"}, ConfigError, "must not be the input"),
        ({"output": "file/out.parquet"}, Unavailable, "must be a folder that can be made"),
        ({"output": "folder.parquet"}, ConfigError, "must be a file, is a folder"),
        ({"keep": ["nothing"]}, DataError, "must have 'nothing'"),
        ({"keep": ["row", "prediction"]}, ConfigError, "'prediction' has the name of an answer"),
        ({"batch_rows": 0}, ConfigError, "batch_rows and part_rows: must be at least 1"),
        ({"engine": EngineConfig(memory="plenty")}, ConfigError, "engine.memory"),
    ],
)
def test_what_is_refused(
    arguments: dict[str, Any], error: type[Exception], message: str, package: Package, table: pa.Table, tmp_path: Path
) -> None:
    pq.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "file").touch()
    (tmp_path / "folder.parquet").mkdir()
    before = sorted(path for path in tmp_path.rglob("*"))
    given = {"output": "out.parquet", **arguments}
    with pytest.raises(error, match=message):
        predict(package, tmp_path / "rows.parquet", tmp_path / str(given.pop("output")), **given)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _stopped_after(parts: int, package: Package, source: Path, output: Path) -> None:
    """A prediction that dies when so many parts are committed."""

    def die(event: Event) -> None:
        if event.fields.get("rows") == parts * BLOCK_ROWS:
            raise Killed

    with pytest.raises(Killed):
        predict(package, source, output, keep=["row"], part_rows=BLOCK_ROWS, events=Events(die))


def test_an_interval_becomes_two_columns(rows: Path, tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "package", task="interval")
    written = pq.read_table(predict(package, rows, tmp_path / "out.parquet", keep=["row"]).path)
    assert written.column_names == ["row", "prediction", "prediction_low", "prediction_high"]
    prediction = written["prediction"].to_numpy()
    np.testing.assert_allclose(written["prediction_low"].to_numpy(), prediction - 1, atol=1e-5)
    np.testing.assert_allclose(written["prediction_high"].to_numpy(), prediction + 2, atol=1e-5)
    with pytest.raises(ConfigError, match="column 'prediction_low' has the name of an answer"):
        predict(package, rows, tmp_path / "other.parquet", keep=["prediction_low"])
