"""The examples of the documents run as they stand: what a reader types works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tidemill import cli

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
def test_bring_your_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "bring-your-own-model.md").read_text(encoding="utf-8")
    made, from_python = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(made, "bring-your-own-model.md", "exec"), names)
    command = next(line for line in page.splitlines() if line.startswith("$ tidemill package tumour.skops"))
    assert cli.main(shlex.split(command)[2:]) == 0
    assert "parity over 143 rows" in capsys.readouterr().out
    exec(compile(from_python, "bring-your-own-model.md", "exec"), names)
    assert names["package"].name == "tumour"
    assert (tmp_path / "tumour-package" / "tidemill.json").is_file()
