"""The reference says what the code says: the pages are made anew and compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generator(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("docs/generate.py")


@pytest.fixture(scope="module")
def pages(generator: ModuleType) -> dict[str, str]:
    made: dict[str, str] = generator.pages()
    return made


def test_the_reference_is_what_the_code_says(pages: dict[str, str]) -> None:
    stale = [
        name
        for name, text in pages.items()
        if not (DOCS / "reference" / name).is_file() or (DOCS / "reference" / name).read_text("utf-8") != text
    ]
    assert not stale, f"make docs: {', '.join(stale)} in docs/reference say something else than the code"


def test_no_page_is_left_over(pages: dict[str, str]) -> None:
    assert {path.name for path in (DOCS / "reference").glob("*.md")} == set(pages)


def test_every_section_command_operator_and_metric_is_there(pages: dict[str, str], generator: ModuleType) -> None:
    from tidemill import cli
    from tidemill.core.load import TABLE
    from tidemill.core.metrics import METRICS

    assert all(f"\n## [{name}]\n" in pages["project-file.md"] for name in TABLE["section"])
    assert all(f"\n## {name}\n" in pages["operators.md"] for name in TABLE["operator"])
    assert all(f"\n## {name}\n" in pages["models.md"] for name in TABLE["model"])
    assert all(f"| `{name}` |" in pages["metrics.md"] for name in METRICS)
    assert all(
        f"`tidemill {name}`" in pages["command-line.md"] or f"## tidemill {name}\n" in pages["command-line.md"]
        for name in generator.commands(cli.build_parser())
    )


def test_no_cell_breaks_its_table(pages: dict[str, str]) -> None:
    for name, text in pages.items():
        for block in text.split("\n\n"):
            lines = block.splitlines()
            if len(lines) > 1 and lines[0].startswith("|"):
                bars = {line.replace(r"\|", "").count("|") for line in lines}
                assert len(bars) == 1, f"{name}: {block[:200]}"
