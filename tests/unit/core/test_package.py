"""The package: every byte checked, identity from what decides the answers, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tidemill.core.errors import DataError, Unsupported
from tidemill.core.package import MANIFEST, Package, write


def make(path: Path, graph: bytes = b"graph", **more: Any) -> Package:
    signature = {"kind": "row", "inputs": [{"name": "x", "type": "float64", "nullable": True}], "outputs": [], **more.pop("signature", {})}
    documents = {
        "contract.json": {"promises": []},
        "evidence/latency.json": {"p99_ms": 1.0},
        "card.md": "# m\n",
        **more.pop("documents", {}),
    }
    return write(
        path, name="m", task="regression", signature=signature, files={"full.onnx": graph}, documents=documents, lineage={}, **more
    )


def test_it_opens_with_what_was_written(tmp_path: Path) -> None:
    package = make(tmp_path / "p")
    assert package.evidence() == {"latency": {"p99_ms": 1.0}}
    assert package.schema.names == ["x"]
    assert package.graph_file.read_bytes() == b"graph"


def test_identity_is_what_decides_the_answers(tmp_path: Path) -> None:
    base = make(tmp_path / "a").identity
    assert make(tmp_path / "b", documents={"evidence/latency.json": {"p99_ms": 9.0}}).identity == base
    assert make(tmp_path / "b", signature={"example": {"x": 1.0}}).identity == base
    assert make(tmp_path / "b", graph=b"other").identity != base
    assert make(tmp_path / "b", signature={"classes": [0, 1]}).identity != base
    assert make(tmp_path / "b", fitted={"mean": 1}).identity != base


@pytest.mark.parametrize("file", ["full.onnx", "contract.json", "card.md", "evidence/latency.json", MANIFEST])
@pytest.mark.parametrize("place", [0, -1])
def test_one_flipped_bit_anywhere_is_found(tmp_path: Path, file: str, place: int) -> None:
    make(tmp_path / "p")
    target = tmp_path / "p" / file
    content = bytearray(target.read_bytes())
    content[place] ^= 1
    target.write_bytes(content)
    with pytest.raises(DataError, match=rf"{Path(file).name}.* is corrupted"):
        Package.open(tmp_path / "p")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    make(tmp_path / "p")
    (tmp_path / "p" / "card.md").unlink()
    with pytest.raises(DataError, match=r"card\.md is missing"):
        Package.open(tmp_path / "p")


def test_a_folder_that_is_no_package_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a package folder"):
        Package.open(tmp_path)


def test_a_newer_format_is_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "p")
    monkeypatch.setattr("tidemill.core.package.FORMAT", 0)
    with pytest.raises(Unsupported, match="package format 1"):
        Package.open(tmp_path / "p")


def test_a_failed_writer_leaves_the_old_package(tmp_path: Path) -> None:
    identity = make(tmp_path / "p").identity
    with pytest.raises(TypeError):
        make(tmp_path / "p", documents={"contract.json": {"bad": object()}})
    assert Package.open(tmp_path / "p").identity == identity
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_the_manifest_says_every_file(tmp_path: Path) -> None:
    make(tmp_path / "p")
    manifest = json.loads((tmp_path / "p" / MANIFEST).read_text(encoding="utf-8"))
    assert sorted(manifest["files"]) == ["card.md", "contract.json", "evidence/latency.json", "full.onnx"]
