"""The project speaks of itself alone, and says only what is done."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Folders of one machine, in any committed text.
MACHINE = re.compile(r"(?<![\w./~-])/(?:root|home|Users|work)/[\w.]+|(?<![\w./-])/tmp/(?!tmp)\w{3,}/\w+")
# Work that is left, in the source.
UNDONE = re.compile(r"\b(?:TO-?DO|FIX-?ME|XXX|HACK|NotImplemented(?:Error)?|[Ss]tub(?:bed|s)?|not (?:yet )?implemented)\b")
# Addresses of package registries, in any committed text but the changelog of a dependency.
REGISTRY = re.compile(
    r"(?:\bfiles\.pythonhosted\.org|pypi\.org/simple|registry\.npmjs\.org|deb\.debian\.org|--(?:extra-)?index-url|find-links[= ]\S*/)"
)

TEXT = {".py", ".md", ".toml", ".txt", ".html", ".css", ".js", ".json", ".yml", ".yaml", ".sh", ".cfg", ""}


def test_no_folder_of_a_machine_and_no_registry() -> None:
    wrong = [line for path in committed() for pattern in (MACHINE, REGISTRY) for line in found(pattern, path)]
    assert not wrong, "\n".join(wrong)


def test_nothing_in_the_source_is_left_undone() -> None:
    wrong = [line for path in sorted((ROOT / "src").rglob("*.py")) for line in found(UNDONE, path)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("sample", ["see /" + "work/main", 'open("/' + 'home/ann/x")', "/" + "root/.cache", "/" + "tmp/build7/out"])
def test_a_machines_folder_is_seen(sample: str) -> None:
    assert MACHINE.search(sample)


@pytest.mark.parametrize("sample", ["at /tmp", "https://host/work/x", "POST /v2/models/m/infer", "a/home/b", "/dev/null", "/mnt/models"])
def test_a_plain_path_is_left_alone(sample: str) -> None:
    assert MACHINE.search(sample) is None


@pytest.mark.parametrize("sample", ["# TO" + "DO: later", "raise NotImplemented" + "Error", "a stub", "not yet implemented"])
def test_undone_work_is_seen(sample: str) -> None:
    assert UNDONE.search(sample)


@pytest.mark.parametrize("sample", ["https://pypi" + ".org/simple", "--index" + "-url https://x", "--find" + "-links /opt/x"])
def test_a_registrys_address_is_seen(sample: str) -> None:
    assert REGISTRY.search(sample)


def committed() -> list[Path]:
    """Every text file that git knows, or where there is no git every one that is not hidden."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = done.stdout.split("\0") if done.returncode == 0 and done.stdout else []
    paths = [ROOT / name for name in names if name] or [path for path in ROOT.rglob("*") if not any(p.startswith(".") for p in path.parts)]
    kept = [path for path in paths if path.suffix in TEXT and path.is_file()]
    assert len(kept) > 10
    return kept


def found(pattern: re.Pattern[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if match := pattern.search(line):
            yield f"{path.relative_to(ROOT)}:{number}: {match[0]}"
