"""The lock files hold exact pins of everything that the extras ask for, the same version everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
PIN = re.compile(r"([a-z0-9]+(?:-[a-z0-9]+)*)==([0-9][\w.!]*)")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_holds_exact_pins_alone(lock: Path) -> None:
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    assert [line.partition("==")[0] for line in lines] == sorted(line.partition("==")[0] for line in lines)
    assert [line for line in lines if not PIN.fullmatch(line)] == []


@pytest.mark.parametrize("extra", ["serve", "train", "torch", "mlflow", "dev"])
def test_a_lock_meets_what_the_project_asks_for(extra: str) -> None:
    assert unmet([*project()["dependencies"], *project()["optional-dependencies"][extra]], pins(ROOT / "locks" / f"{extra}.txt")) == []


def test_a_package_has_one_version_in_all_locks() -> None:
    dev = pins(ROOT / "locks" / "dev.txt")
    for lock in LOCKS:
        other = [f"{name}=={version}" for name, version in pins(lock).items() if dev.get(name, version) != version]
        assert other == [], lock.name


def test_the_server_stays_small() -> None:
    assert len(pins(ROOT / "locks" / "serve.txt")) < 15  # with tidemill itself, 15


def test_no_cuda() -> None:
    assert [name for lock in LOCKS for name in pins(lock) if name.startswith(("nvidia", "cuda", "triton"))] == []


def test_the_changelog_opens_with_the_projects_version() -> None:
    headings = re.findall(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == project()["version"]


def test_an_unmet_requirement_is_seen() -> None:
    assert unmet(["numpy>=2", "rich>=13", "polars"], {"numpy": "1.26.0", "rich": "13.0"}) == ["numpy>=2", "polars"]


def project() -> dict[str, object] | dict[str, list[str]]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


def pins(lock: Path) -> dict[str, str]:
    return dict(PIN.findall("\n".join(line for line in lock.read_text().splitlines() if not line.startswith("#"))))


def unmet(requirements: list[str], pinned: dict[str, str]) -> list[str]:
    parsed = [(text, Requirement(text)) for text in requirements]
    return [text for text, wanted in parsed if wanted.name not in pinned or not wanted.specifier.contains(pinned[wanted.name])]
