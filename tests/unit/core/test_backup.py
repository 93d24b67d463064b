"""A backup brings back the ledger and every package, or says what is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.core.backup import backup, restore
from tidemill.core.errors import Conflict, DataError
from tidemill.core.ledger import Ledger
from tidemill.core.package import write


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "home" / "ledger.db", actor="ann")
    for marker in ("a", "b"):
        signature = {"kind": "row", "inputs": [], "outputs": []}
        package = write(
            tmp_path / "src",
            name="m",
            task="regression",
            signature=signature,
            files={"full.onnx": marker.encode()},
            documents={},
            lineage={},
        )
        made.register(package)
    made.promote("m", 2, why="better")
    return made


def test_it_comes_back_whole(ledger: Ledger, tmp_path: Path) -> None:
    assert backup(ledger, tmp_path / "b.tar") == 5
    assert restore(tmp_path / "b.tar", tmp_path / "other") == 4
    back = Ledger(tmp_path / "other" / "ledger.db")
    assert [str(entry) for entry in back.history()] == [str(entry) for entry in ledger.history()]
    assert back.resolve("m").open().graph_file.read_bytes() == b"b"


def test_it_never_overwrites(ledger: Ledger, tmp_path: Path) -> None:
    backup(ledger, tmp_path / "b.tar")
    with pytest.raises(Conflict, match="must have no ledger yet"):
        restore(tmp_path / "b.tar", tmp_path / "home")


def test_a_damaged_package_is_not_backed_up(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "home" / "packages" / "m" / "1" / "full.onnx").write_bytes(b"x")
    with pytest.raises(DataError, match="corrupted"):
        backup(ledger, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


def test_a_damaged_archive_leaves_nothing(ledger: Ledger, tmp_path: Path) -> None:
    backup(ledger, tmp_path / "b.tar")
    content = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(content[: len(content) // 3])
    with pytest.raises(DataError):
        restore(tmp_path / "b.tar", tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())
