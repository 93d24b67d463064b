"""Bad input, full disks, signals and kills: one clear message, nothing half-written, and afterwards the same package."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tidemill.core.errors import DataError
from tidemill.core.package import Package

PREPARES = """
import narwhals as nw
from pathlib import Path
import time

def constant(table): return table.with_columns(late=nw.lit(True))
def null(table): return table.with_columns(late=nw.lit(None).cast(nw.Boolean))
def none(table): return table.filter(nw.col("distance") > 1e9)
def text(table): return table.with_columns(late=nw.col("carrier").cast(nw.Int64))

def broken(table):
    raise RuntimeError("no such luck")

def waiting(table):
    Path(__file__).with_name("waiting").touch()
    while not Path(__file__).with_name("go").exists():
        time.sleep(0.01)
    return table
"""


@dataclass(frozen=True, kw_only=True)
class Bad:
    """One row of the table: how the input is spoiled, what is said, and what mends it."""

    spoil: Callable[[Any], object]
    code: int = 1
    says: tuple[str, ...]
    call: tuple[str, ...] = ("run",)
    mend: Callable[[Any], object] = field(default=lambda project: None)


def _data(**changes: str) -> Callable[[Any], object]:
    """Writes `[data]` with some of its keys changed."""
    keys = {"source": '"rows.parquet"', "target": '"late"', "keys": '["id"]'} | changes
    return lambda project: project.write(data="\n".join(f"{key} = {value}" for key, value in keys.items()))


def _section(**sections: str) -> Callable[[Any], object]:
    return lambda project: project.write(**sections)


def _prepare(name: str) -> Callable[[Any], object]:
    def spoil(project: Any) -> None:
        (project.folder / "shape.py").write_text(PREPARES, encoding="utf-8")
        _data(prepare=f'"shape:{name}"')(project)

    return spoil


def _missing(project: Any) -> None:
    _data(source='"row.parquet"')(project)


def _empty(project: Any) -> None:
    (project.folder / "none.csv").touch()
    _data(source='"none.csv"')(project)


def _truncated(project: Any) -> None:
    whole = (project.folder / "rows.parquet").read_bytes()
    (project.folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    _data(source='"cut.parquet"')(project)


def _ragged(project: Any) -> None:
    pa.csv.write_csv(pq.read_table(project.folder / "rows.parquet"), project.folder / "ragged.csv")
    lines = (project.folder / "ragged.csv").read_text().splitlines()
    lines[6] += ",too much"
    (project.folder / "ragged.csv").write_text("\n".join(lines))
    _data(source='"ragged.csv"')(project)


def _wrong_suffix(project: Any) -> None:
    shutil.copy(project.folder / "rows.parquet", project.folder / "rows.xlsx")
    _data(source='"rows.xlsx"')(project)


def _without_column(project: Any) -> None:
    pq.write_table(pq.read_table(project.folder / "rows.parquet").drop_columns(["carrier"]), project.folder / "new.parquet")


def _other_type(project: Any) -> None:
    table = pq.read_table(project.folder / "rows.parquet")
    pq.write_table(table.set_column(1, "distance", pa.array(["far"] * len(table))), project.folder / "new.parquet")


def _whole_rows(project: Any) -> None:
    shutil.copy(project.folder / "rows.parquet", project.folder / "new.parquet")


def _flipped(project: Any) -> None:
    """One bit of the registered package's graph."""
    file = project.home / "packages" / "small" / "1" / "full.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _occupied(project: Any) -> None:
    project.home.write_text("a file where the folder should be")


SPOILED: dict[str, Bad] = {
    "missing file": Bad(spoil=_missing, says=("must exist", "row.parquet", "did you mean")),
    "empty file": Bad(spoil=_empty, says=("none.csv is empty (0 bytes)",)),
    "truncated Parquet": Bad(spoil=_truncated, says=("cut.parquet", "truncated")),
    "ragged CSV": Bad(spoil=_ragged, says=("ragged.csv", "5 values, line 7 has 6", "mend the line")),
    "wrong suffix": Bad(spoil=_wrong_suffix, says=("rows.xlsx", "must be one of .parquet", "format =")),
    "target absent": Bad(spoil=_data(target='"lat"'), says=("data.target", "'lat'", "did you mean 'late'?")),
    "target constant": Bad(spoil=_prepare("constant"), says=("target 'late' must have at least two values, all are True",)),
    "target all null": Bad(spoil=_prepare("null"), says=("target 'late' must have values, all 600 rows are null", "shape:null")),
    "no rows after prepare": Bad(spoil=_prepare("none"), says=("must have rows, has none after prepare shape:none", "filter or join")),
    "prepare raises": Bad(spoil=_prepare("broken"), says=("prepare shape:broken raised RuntimeError: no such luck (shape.py:12)",)),
    "prepare cannot be computed": Bad(spoil=_prepare("text"), says=("prepare shape:text", "carrier")),
    "unknown key": Bad(spoil=_data(tagret='"late"'), code=2, says=("data.tagret: is not a known key", "did you mean 'data.target'?")),
    "unknown operator": Bad(
        spoil=_section(features='carrier = ["onehot"]'), code=2, says=("'onehot' is not known", "one_hot", "features.carrier"),
        mend=_section(features=""),
    ),
    "impossible split": Bad(
        spoil=_data(split='{ by = "random", valid = 0.6, test = 0.5 }'), code=2, says=("data.split", "0.6 + test 0.5 = 1.1"),
    ),
    "split leaves nothing": Bad(spoil=_data(split='{ by = "group", column = "late" }'), says=("data.split", "must have rows")),
    "column missing at prediction": Bad(
        spoil=_without_column, says=("the input must have 'carrier'",), call=("predict", "small", "new.parquet", "out.parquet"),
        mend=_whole_rows,
    ),
    "column of another type at prediction": Bad(
        spoil=_other_type, says=("column 'distance' must be float64, got string",), call=("predict", "small", "new.parquet", "out.parquet"),
        mend=_whole_rows,
    ),
    "corrupted package": Bad(
        spoil=_flipped, says=("full.onnx is corrupted",), call=("predict", "small", "rows.parquet", "out.parquet"),
    ),
    "unwritable folder": Bad(spoil=_occupied, says=(".tidemill must be a folder", "name another"), mend=lambda p: p.home.unlink()),
    "unknown stage": Bad(spoil=_data(), code=2, says=("stage 'tran' is not known (did you mean 'train'",), call=("run", "--to", "tran")),
    "unknown model": Bad(
        spoil=_data(), code=2, says=("model 'smal' is not known (did you mean 'small'",), call=("predict", "smal", "rows.parquet", "o.parquet")
    ),
}  # fmt: skip
# What goes wrong on the way to a prediction needs a package first.
AFTER_A_RUN = [name for name, bad in SPOILED.items() if bad.call[0] == "predict"]


@pytest.fixture(scope="module")
def clean(make_project: Callable[..., Any]) -> dict[str, Any]:
    """What a run says that nothing disturbs, and what its package predicts."""
    project = make_project()
    told: dict[str, Any] = project.run()
    project.call("predict", "small", "rows.parquet", "out.parquet").fine()
    assert not project.leftovers()
    return {"identity": told["identity"], "predictions": pq.read_table(project.folder / "out.parquet")}


@pytest.fixture(scope="module")
def clean_tuned(make_project: Callable[..., Any]) -> dict[str, Any]:
    told: dict[str, Any] = make_project().write(tune="trials = 3").run()
    return told


@pytest.mark.parametrize("name", SPOILED)
def test_bad_input_gets_one_clear_message_and_the_mended_rerun_the_same_package(name: str, project: Any, clean: dict[str, Any]) -> None:
    bad = SPOILED[name]
    if name in AFTER_A_RUN:
        project.run()
    bad.spoil(project)
    before = {path for path in project.folder.iterdir() if path != project.home}

    project.call(*bad.call).said(bad.code, *bad.says)

    assert {path for path in project.folder.iterdir() if path != project.home} == before, "something half-written lies about"
    assert not project.leftovers()
    if name != "corrupted package":
        project.check_whole()
    bad.mend(project)
    _data()(project)
    assert project.run()["identity"] == clean["identity"]
    if name in AFTER_A_RUN:
        project.call("predict", "small", "rows.parquet", "out.parquet").fine()
        assert pq.read_table(project.folder / "out.parquet").equals(clean["predictions"])
    project.check_whole()
    assert not project.leftovers()


@pytest.mark.parametrize(
    ("name", "kind", "field"),
    [
        ("missing file", "DataError", None),
        ("target absent", "DataError", "lat"),
        ("unknown key", "ConfigError", None),
        ("unknown model", "NotFound", None),
    ],
)
def test_with_json_the_error_is_json_on_stdout_too(name: str, kind: str, field: str | None, project: Any) -> None:
    bad = SPOILED[name]
    bad.spoil(project)
    if name == "unknown model":
        bad = Bad(spoil=bad.spoil, code=2, says=("model 'smal' is not known",), call=bad.call)
    done = project.call(*bad.call, "--json").said(bad.code, *bad.says)
    error = done.json["error"]
    assert (error["kind"], error["field"], error["exit_code"]) == (kind, field, bad.code)
    assert error["message"] in done.err
    assert (error["hint"] or "") in done.err


@pytest.mark.parametrize("kib", [40, 160, 250])
def test_full_disk(kib: int, project: Any, clean: dict[str, Any], tmp_path: Path) -> None:
    with _small_disk(tmp_path / "disk", kib) as disk:
        home = disk / "home"
        project.call("run", "--home", str(home)).said(1, str(disk), "must have", "space", "free some")
        project.check_whole(home)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        told = project.run("--home", str(home))
        assert told["identity"] == clean["identity"]
        project.check_whole(home)
        assert not list(home.rglob(".partial-*"))


@pytest.mark.parametrize("limit", [2_000, 20_000])
def test_quota(limit: int, project: Any, clean: dict[str, Any]) -> None:
    """No file may grow beyond the limit, as a quota has it."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = project.call("run", preexec_fn=limited)
    assert done.code == 1, done.err
    assert len([line for line in done.err.splitlines() if line.startswith("tidemill: ")]) == 1, done.err
    assert "Traceback" not in done.err
    assert "internal error" not in done.err
    project.check_whole()
    assert project.run()["identity"] == clean["identity"]
    assert not project.leftovers()


def test_full_disk_at_prediction(project: Any, clean: dict[str, Any], tmp_path: Path) -> None:
    project.run()
    with _small_disk(tmp_path / "disk", 8) as disk:
        project.call("predict", "small", "rows.parquet", str(disk / "out.parquet")).said(1, str(disk), "must have", "space", "free some")
        assert not (disk / "out.parquet").exists()
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        project.call("predict", "small", "rows.parquet", str(disk / "out.parquet")).fine()
        assert pq.read_table(disk / "out.parquet").equals(clean["predictions"])
        assert [path.name for path in disk.iterdir()] == ["out.parquet"]


def test_read_only_project_folder_with_a_home_elsewhere(project: Any, clean: dict[str, Any], tmp_path: Path) -> None:
    with _read_only(project.folder):
        project.call("run").said(1, ".tidemill", "must be writable", "name another folder")
        assert project.run("--home", str(tmp_path / "elsewhere"))["identity"] == clean["identity"]
    assert not project.home.exists()


@pytest.mark.parametrize("where", ["prepare", "train"])
def test_ctrl_c(where: str, project: Any, clean: dict[str, Any]) -> None:
    if where == "prepare":
        _prepare("waiting")(project)
        done = project.stop_in("data", number=signal.SIGINT, after_s=0.5)
    else:
        long = ("--set", "model.num_rounds=100000", "--set", "model.early_stopping=0", "--set", "model.learning_rate=0.0001")
        done = project.stop_in("train", *long, number=signal.SIGINT, after_s=1.0)
    done.said(130, "interrupted", "same command goes on")
    project.check_whole()
    assert not project.leftovers()
    _data()(project)
    assert project.run()["identity"] == clean["identity"]


STAGES = ("data", "features", "tune", "train", "package")
KILLS = [("data", 0.1), ("tune", 0.2), ("package", 0.1)]
# Six moments in each stage, drawn once; some come after the stage is done, and so hit what follows it.
MANY_KILLS = [(stage, random.Random(f"{stage}{number}").uniform(0.0, 1.0)) for stage in STAGES for number in range(6)]


@pytest.mark.parametrize(("stage", "after_s"), KILLS)
def test_kill_in_a_stage(stage: str, after_s: float, project: Any, clean_tuned: dict[str, Any]) -> None:
    _killed(project, stage, after_s, clean_tuned)


@pytest.mark.long
@pytest.mark.parametrize(("stage", "after_s"), MANY_KILLS)
def test_kill_in_a_stage_many_times(stage: str, after_s: float, project: Any, clean_tuned: dict[str, Any]) -> None:
    _killed(project, stage, after_s, clean_tuned)


def _killed(project: Any, stage: str, after_s: float, clean: dict[str, Any]) -> None:
    project.write(tune="trials = 3")
    done = project.stop_in(stage, after_s=after_s)
    assert done.code in (-signal.SIGKILL, 0), done.err
    project.check_whole()
    told = project.run()
    assert told["identity"] == clean["identity"]
    assert told["version"] == 1
    project.check_whole()
    assert not project.leftovers()
    assert not list(project.home.glob("store/*/work-*"))


def test_two_runs_in_one_folder_at_once(project: Any, clean: dict[str, Any]) -> None:
    _prepare("waiting")(project)
    first = project.start("run", "--json")
    try:
        while not (project.folder / "waiting").exists():
            assert first.poll() is None, first.communicate()
        project.call("run").said(1, f"{project.home} is in use by process {first.pid}", "wait for it")
    finally:
        (project.folder / "go").touch()
    assert project.ended(first).fine().json["identity"] == clean["identity"]
    assert project.run()["identity"] == clean["identity"]


def test_ledger_locked_by_another_process(project: Any, clean: dict[str, Any]) -> None:
    project.run("--to", "train")
    other = sqlite3.connect(project.home / "ledger.db", isolation_level=None)
    try:
        other.execute("BEGIN EXCLUSIVE")
        project.call("run").said(1, str(project.home / "ledger.db"), "locked", "another process holds it")
    finally:
        other.close()
    assert not list(project.home.glob("packages/*/*"))
    assert project.run()["identity"] == clean["identity"]


def test_every_flipped_byte_of_a_package_is_seen(project: Any) -> None:
    project.run()
    folder = project.home / "packages" / "small" / "1"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) >= 8
    rng = np.random.default_rng(0)
    for file in files:
        content = file.read_bytes()
        for place in rng.integers(0, len(content), 3).tolist():
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(DataError, match=file.name):
                Package.open(folder)
        file.write_bytes(content)
    Package.open(folder)


@contextmanager
def _small_disk(path: Path, kib: int) -> Iterator[Path]:
    """A file system of its own with so much room; needs root."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root; the quota test stands in for it")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@contextmanager
def _read_only(path: Path) -> Iterator[None]:
    """The folder cannot be written: by its rights, or for root by a read-only mount of itself."""
    if os.geteuid() != 0:
        path.chmod(0o555)
        try:
            yield
        finally:
            path.chmod(0o755)
        return
    if subprocess.run(["mount", "--bind", str(path), str(path)], capture_output=True, check=False).returncode != 0:
        pytest.skip("root can write everywhere, and may not mount here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(path)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
