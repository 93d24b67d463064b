"""`[serve]` and `[monitor]` reach the commands that they are about; what is not built is refused before anything runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from tidemill.cli.options import section
from tidemill.core.errors import ConfigError, Unsupported
from tidemill.core.project import from_tree, read_section


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(file: list[str] | None = None, changes: list[str] | None = None) -> argparse.Namespace:
    return argparse.Namespace(file=file, set=changes or [])


def test_a_section_is_read_from_the_file_that_lies_here(here: Path) -> None:
    (here / "tidemill.toml").write_text("[serve]\nport = 8123\n")
    assert section(options(), "serve").port == 8123
    assert section(options(changes=["serve.max_batch_rows=7"]), "serve").max_batch_rows == 7


def test_the_file_that_is_named_goes_before_the_one_that_lies_here(here: Path) -> None:
    (here / "tidemill.toml").write_text("[monitor]\nmoderate = 0.2\n")
    (here / "other.toml").write_text("[monitor]\nmoderate = 0.05\n")
    assert section(options(["other.toml"]), "monitor").moderate == 0.05


def test_without_a_file_there_are_defaults(here: Path) -> None:
    assert section(options(), "serve").port == 8000


def test_a_named_file_must_exist(here: Path) -> None:
    with pytest.raises(ConfigError, match="must exist"):
        section(options(["absent.toml"]), "serve")


def test_an_unknown_key_is_refused_with_the_nearest(here: Path) -> None:
    (here / "tidemill.toml").write_text("[serve]\nprot = 1\n")
    with pytest.raises(ConfigError, match=r"serve\.prot.*serve\.port"):
        read_section("serve", [here / "tidemill.toml"])


@pytest.mark.parametrize(("path", "value"), [("task", "forecast"), ("engine", {"data": "spark"}), ("engine", {"train": "spark"})])
def test_what_is_not_built_is_refused(path: str, value: Any) -> None:
    tree = {"name": "x", "data": {"source": "x.csv", "target": "y"}, path: value}
    with pytest.raises(Unsupported, match=path):
        from_tree(tree)


def test_a_budget_that_is_no_size_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"engine\.memory"):
        from_tree({"name": "x", "data": {"source": "x.csv", "target": "y"}, "engine": {"memory": "huge"}})
