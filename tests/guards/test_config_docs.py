"""Every field of the project file has a line under it that says what it controls."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).parents[2] / "src"


def test_every_config_field_is_documented() -> None:
    silent = []
    for path in sorted((SRC / "tidemill").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        silent += [f"{path.relative_to(SRC)}: {name}" for name in undocumented(tree, whole_file=path.name == "config.py")]
    assert silent == []


def test_every_section_is_a_frozen_keyword_only_dataclass() -> None:
    import dataclasses

    from tidemill.core.load import TABLE, load

    for name, ref in TABLE["section"].items():
        module = SRC / (ref.partition(":")[0].replace(".", "/") + ".py")
        if not module.exists():
            continue
        section = load("section", name)
        assert dataclasses.is_dataclass(section), name
        assert section.__dataclass_params__.frozen, name
        assert all(field.kw_only for field in dataclasses.fields(section)), name


def test_a_silent_field_is_seen() -> None:
    tree = ast.parse('@dataclass(frozen=True)\nclass AConfig:\n    a: int\n    """Says."""\n    b: int = 1\n    c: ClassVar[int] = 2\n')
    assert list(undocumented(tree, whole_file=False)) == ["AConfig.b"]


def undocumented(tree: ast.Module, *, whole_file: bool) -> Iterator[str]:
    """The fields of config structs with no text under them; `whole_file` counts every dataclass as one."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef) or not any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            continue
        if not (whole_file or node.name.endswith("Config") or node.name == "Project"):
            continue
        for field, below in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign) or "ClassVar" in ast.unparse(field.annotation):
                continue
            if not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)):
                yield f"{node.name}.{ast.unparse(field.target)}"
