"""Every field of the project file has a line under it that says what it controls."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

SRC = Path(__file__).parents[2] / "src"


def test_every_config_field_is_documented() -> None:
    silent = []
    for path in sorted((SRC / "tidemill").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        silent += [f"{path.relative_to(SRC)}: {name}" for name in undocumented(tree)]
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
    tree = ast.parse(
        '@dataclass(frozen=True)\nclass AConfig:\n    a: int\n    """Says."""\n    b: int = 1\n    c: ClassVar[int] = 2\n    d: B | None = None\n    """Says."""\n@dataclass\nclass B:\n    x: int'
    )
    assert list(undocumented(tree)) == ["AConfig.b", "B.x"]


def undocumented(tree: ast.Module) -> Iterator[str]:
    """The fields with no text under them, of config structs and of the structs that their fields are made of."""
    structs = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and "dataclass" in decorators(node)}
    config = {name for name in structs if name.endswith("Config") or name == "Project"}
    for node in [structs[name] for name in sorted(config)]:
        told = " ".join([*(ast.unparse(field.annotation) for field in fields(node)), *(ast.unparse(base) for base in node.bases)])
        config |= {name for name in structs if re.search(rf"\b{name}\b", told)}
    for node in (structs[name] for name in sorted(config)):
        texts = {id(field) for field, below in pairwise(node.body) if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)}
        yield from (f"{node.name}.{ast.unparse(field.target)}" for field in fields(node) if id(field) not in texts)


def decorators(node: ast.ClassDef) -> str:
    return " ".join(ast.unparse(decorator) for decorator in node.decorator_list)


def fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [field for field in node.body if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation)]
