"""A folder is written whole or not at all, and says when it was changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.artifact import Artifact, lock, sweep, write_json, writing
from tidemill.core.errors import Conflict, DataError


def make(path: Path, text: str = "hello", **more: str) -> Artifact:
    with writing(path, stage="data", **more) as out:  # type: ignore[arg-type]
        (out / "sub").mkdir()
        (out / "sub" / "a.txt").write_text(text, encoding="utf-8")
    return Artifact.open(path)


def test_what_was_written_opens_and_verifies(tmp_path: Path) -> None:
    artifact = make(tmp_path / "x", fingerprint="f")
    artifact.verify()
    assert artifact.manifest["files"]["sub/a.txt"]["bytes"] == 5
    assert artifact.manifest["fingerprint"] == "f"


def test_the_id_follows_the_content_only(tmp_path: Path) -> None:
    assert make(tmp_path / "x").id == make(tmp_path / "y", fingerprint="other").id
    assert make(tmp_path / "x").id != make(tmp_path / "y", "hullo").id


def test_a_failed_writer_leaves_the_old_one(tmp_path: Path) -> None:
    old = make(tmp_path / "x")
    with pytest.raises(RuntimeError), writing(tmp_path / "x", stage="data") as out:
        (out / "b.txt").write_text("half", encoding="utf-8")
        raise RuntimeError
    assert Artifact.open(tmp_path / "x").id == old.id
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_killed_writer_leaves_only_what_sweep_removes(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from tidemill.core.artifact import writing\n"
        "with writing(Path(sys.argv[1]), stage='data') as out:\n (out / 'a').write_text('half'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], check=False)
    assert done.returncode == -9
    assert not (tmp_path / "x").exists()
    assert len(list(tmp_path.iterdir())) == 1
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    artifact = make(tmp_path / "x")
    (tmp_path / "x" / "sub" / "a.txt").write_text("hellO", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.txt is corrupted"):
        artifact.verify()


def test_a_missing_or_shorter_file_is_found_on_open(tmp_path: Path) -> None:
    make(tmp_path / "x")
    (tmp_path / "x" / "sub" / "a.txt").write_text("hell", encoding="utf-8")
    with pytest.raises(DataError, match="must hold 5 bytes, holds 4"):
        Artifact.open(tmp_path / "x")
    (tmp_path / "x" / "sub" / "a.txt").unlink()
    with pytest.raises(DataError, match="must be a whole artifact"):
        Artifact.open(tmp_path / "x")


def test_the_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tidemill.core.artifact import lock\n"
        "with lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(Conflict, match=f"process {holder.pid}"), lock(tmp_path / "lock"):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with lock(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text(encoding="utf-8") == str(os.getpid())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.lists(inner).map(tuple),
        max_leaves=30,
    )
)
def test_json_is_laid_out_as_the_standard_library_does(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert path.read_text(encoding="utf-8") == json.dumps(value, indent=1, ensure_ascii=False) + "\n"
