"""The project file is checked whole, and every complaint names the key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from tidemill.core.errors import ConfigError, Unsupported
from tidemill.core.project import Project, build, fingerprint, from_tree, read


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = field(default=1, metadata={"min": 1, "max": 10})
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    kind: Literal["a", "b"] = "a"
    share: float = 0.5
    inner: Inner = field(default_factory=Inner)
    many: tuple[str, ...] = ()
    table: dict[str, int] = field(default_factory=dict)
    either: str | dict[str, str] = ""

    unbuilt: ClassVar[dict[str, str]] = {"later": "use kind"}

    def check(self) -> None:
        if self.share > 1 and self.kind == "a":
            raise ConfigError("outer.share: must be at most 1 for kind a")


def make(**tree: object) -> Outer:
    made = build(Outer, tree, path="outer", where="file.toml")
    assert isinstance(made, Outer)
    return made


def test_values_become_the_struct() -> None:
    made = make(kind="b", share=2, inner={"size": 3}, many=["x", "y"], table={"k": 1}, either={"a": "b"})
    assert made == Outer(kind="b", share=2.0, inner=Inner(size=3), many=("x", "y"), table={"k": 1}, either={"a": "b"})
    assert isinstance(made.share, float)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"knd": "a"}, "outer.knd: is not a known key (file.toml); did you mean 'outer.kind'?"),
        ({"inner": {"sise": 1}}, "outer.inner.sise: is not a known key (file.toml); did you mean 'outer.inner.size'?"),
        ({"kind": "c"}, "outer.kind: must be one of a, b, got 'c' (file.toml)"),
        ({"inner": {"size": 0}}, "outer.inner.size: must be in 1..10, got 0 (file.toml)"),
        ({"inner": {"size": 11}}, "outer.inner.size: must be in 1..10, got 11 (file.toml)"),
        ({"inner": {"size": True}}, "outer.inner.size: must be a whole number, got True (file.toml)"),
        ({"inner": {"size": 1.5}}, "outer.inner.size: must be a whole number, got 1.5 (file.toml)"),
        ({"inner": 3}, "outer.inner: must be a table, got 3 (file.toml)"),
        ({"many": "x"}, "outer.many: must be a list, got 'x' (file.toml)"),
        ({"many": [1]}, "outer.many[0]: must be text, got 1 (file.toml)"),
        ({"table": {"k": "v"}}, "outer.table.k: must be a whole number, got 'v' (file.toml)"),
        ({"either": 3}, "outer.either: must be text or a table, got 3 (file.toml)"),
        ({"share": 1.5}, "outer.share: must be at most 1 for kind a"),
    ],
)
def test_complaints_name_the_key(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**tree)
    assert caught.value.message == message


def test_a_known_key_that_is_not_built_says_what_can() -> None:
    with pytest.raises(Unsupported, match=r"outer\.later: is not built.*use kind"):
        make(later=1)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


MINIMAL = 'name = "x"\n[data]\nsource = "a.csv"\ntarget = "y"\n'


def test_source_and_target_are_a_complete_project(tmp_path: Path) -> None:
    project = read([write(tmp_path / "tidemill.toml", MINIMAL)])
    assert (project.name, project.data.target, project.tune, project.compress) == ("x", "y", None, None)
    assert project.model.kind == "xgboost"
    assert project.folder == tmp_path.resolve()


def test_later_files_and_overrides_win(tmp_path: Path) -> None:
    base = write(tmp_path / "a.toml", MINIMAL + "[engine]\nmemory = '1GiB'\nthreads = 1\n")
    over = write(tmp_path / "b.toml", "[engine]\nthreads = 3\n")
    project = read([base, over], ["seed=7", "engine.memory=4GiB", 'name="z"'])
    assert (project.engine.threads, project.engine.memory, project.seed, project.name) == (3, "4GiB", 7, "z")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "must be TOML"),
        ('nam = "x"\n[data]\nsource="a"\ntarget="y"', "nam: is not a known key"),
        ('[data]\nsource="a"\ntarget="y"', "name: must be given"),
        ('name="x"', "data: must be given"),
        ('name="X y"\n[data]\nsource="a"\ntarget="y"', "name: must be lower-case"),
        (MINIMAL + "[compress]\ngoal = 'x'", "compress: compression is not built"),
        (MINIMAL + "[stream]", "stream: streams are not built"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises((ConfigError, Unsupported), match=message):
        read([write(tmp_path / "t.toml", text)])


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tidemill init"):
        read([tmp_path / "none.toml"])


def test_python_builds_the_same_tree(tmp_path: Path) -> None:
    from_file = read([write(tmp_path / "t.toml", MINIMAL)])
    from_python = from_tree({"name": "x", "data": {"source": "a.csv", "target": "y"}}, folder=tmp_path)
    assert from_file.to_json() == from_python.to_json()
    assert isinstance(from_python, Project)


def test_the_fingerprint_follows_every_value() -> None:
    assert fingerprint(a=Inner(size=1)) == fingerprint(a=Inner(size=1))
    assert fingerprint(a=Inner(size=1)) != fingerprint(a=Inner(size=2))
