"""What the documents say can be done: commands parse, links lead somewhere, project files are valid, Python compiles and knows its names."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tidemill
from tidemill import cli
from tidemill.cli.parser import UNBUILT
from tidemill.core.project import from_tree

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*/*.md"), *(ROOT / "benchmarks").rglob("*.md")]
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|(?:href|src|srcset)=\"([^\"]+)\"")
# A project that the snippets of a page are laid over.
WHOLE = {"name": "snippet", "data": {"source": "data.csv", "target": "y"}}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.language in languages]


def blocks_of(page: Path) -> Iterator[Block]:
    language, start, kept = None, 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"\s*```(\w*)", line)
        if fence and language is None:
            language, start, kept = fence[1], number, []
        elif fence:
            yield Block(page, start, language or "", "\n".join(kept))
            language = None
        elif language is not None:
            kept.append(line)
    assert language is None, f"{page}: the block of line {start} has no end"


def commands(block: Block) -> Iterator[list[str]]:
    """The commands that a block shows: lines after `$`, or every line where none has one; comments and pipes cut off."""
    text = block.text.replace("\\\n", " ")
    typed = [line.strip()[2:] for line in text.splitlines() if line.strip().startswith("$ ")] or text.splitlines()
    for line in typed:
        words = shlex.split(line, comments=True)
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        ends = [words.index(word) for word in ("|", ">", "&", ";", "2>&1") if word in words]
        yield words[: min(ends, default=len(words))]


@pytest.mark.parametrize("block", blocks("console", "sh", "bash", ""), ids=str)
def test_commands_are_right_calls(block: Block) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands(block) if "tidemill" in block.text or "make " in block.text else []:
        if words[:1] == ["tidemill"] and "..." not in words:
            options = cli.build_parser().parse_args(words[1:])
            assert options.verb not in UNBUILT, words
        if words[:1] == ["make"]:
            assert {word for word in words[1:] if "=" not in word} <= targets, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in ("".join(groups) for groups in LINK.findall(text)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page}: {target}"


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_project_files_are_valid(block: Block) -> None:
    tree: dict[str, Any] = tomllib.loads(block.text)
    made = {**WHOLE, **tree, "data": {**WHOLE["data"], **tree.get("data", {})}}  # type: ignore[dict-item]
    if isinstance(made["data"]["source"], dict) and "path" not in made["data"]["source"]:
        made["data"].setdefault("prepare", "snippet:prepare")
    from_tree(made)


@pytest.mark.parametrize("block", [b for b in blocks("python", "pycon") if b.page.parent.name != "reference"], ids=str)
def test_python_compiles_and_its_names_exist(block: Block) -> None:
    lines = block.text.splitlines()
    source = "\n".join(line[4:] for line in lines if line.startswith((">>> ", "... "))) if block.language == "pycon" else block.text
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("tm", "tidemill"):
            assert hasattr(tidemill, node.attr), f"tidemill.{node.attr}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tidemill"):
            module = __import__(node.module or "", fromlist=["*"])
            assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


def test_the_project_of_the_tutorial_is_the_examples() -> None:
    shown = [tomllib.loads(block.text) for block in blocks_of(ROOT / "docs" / "tutorial.md") if block.language == "toml"]
    assert tomllib.loads((ROOT / "examples" / "flights" / "loop.toml").read_text(encoding="utf-8")) in shown


def test_a_wrong_command_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ cd x && tidemill runn -f a.toml | tee log\nnoise\n```\n")
    (block,) = blocks_of(page)
    assert list(commands(block)) == [["cd", "x"], ["tidemill", "runn", "-f", "a.toml"]]
    with pytest.raises(Exception, match="runn"):
        cli.build_parser().parse_args(["runn"])


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings make."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().lower().replace(" ", "-") for heading in headings}
