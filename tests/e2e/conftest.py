"""A small project in a folder of its own, and the command line on it as a user would call it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill.core.artifact import PARTIAL, Artifact
from tidemill.core.package import Package

PATIENCE_S = 120


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def said(self, code: int, *words: str) -> Done:
        """Check that it failed with one clear message that holds every word, and nothing else that a user must not see."""
        assert self.code == code, self.err + self.out
        messages = [line for line in self.err.splitlines() if line.startswith("tidemill: ")]
        assert len(messages) == 1, self.err
        told = self.err[self.err.index("tidemill: ") :]
        for word in words:
            assert word in told, told
        for noise in ("Traceback", "nanobind", 'File "', "internal error", "Exception ignored"):
            assert noise not in self.err + self.out, self.err
        assert len(told.strip().splitlines()) <= 2, told
        return self

    def fine(self) -> Done:
        assert self.code == 0, self.err + self.out
        assert "Traceback" not in self.err
        return self


@dataclass
class SmallProject:
    """A folder with `rows.parquet` and `tidemill.toml`. Sections are written anew by `write`."""

    folder: Path
    sections: dict[str, str] = field(default_factory=dict)

    def write(self, **sections: str) -> SmallProject:
        """Write the project file; each argument is the body of a section, laid over the ones given before."""
        self.sections |= sections
        text = 'name = "small"\n' + "".join(f"[{name}]\n{body}\n" for name, body in self.sections.items())
        (self.folder / "tidemill.toml").write_text(text, encoding="utf-8")
        return self

    @property
    def home(self) -> Path:
        return self.folder / ".tidemill"

    def start(self, *arguments: str, cwd: Path | None = None, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tidemill.cli", *arguments]
        return subprocess.Popen(
            command, cwd=cwd or self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, **options
        )

    def call(self, *arguments: str, cwd: Path | None = None, **options: Any) -> Done:
        return self.ended(self.start(*arguments, cwd=cwd, **options))

    def ended(self, process: subprocess.Popen[str]) -> Done:
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return Done(code=process.returncode, out=out, err=err)

    def run(self, *arguments: str, **options: Any) -> dict[str, Any]:
        """A run that must end well: what it says with `--json`."""
        told: dict[str, Any] = self.call("run", "--json", *arguments, **options).fine().json
        return told

    def stop_in(self, stage: str, *arguments: str, after_s: float = 0.0, number: signal.Signals = signal.SIGKILL) -> Done:
        """Start a run and send it a signal `after_s` into a stage."""
        known = set(self.home.glob("runs/*/*/events.jsonl"))
        # A shell starts what runs in the background deaf to Ctrl-C; a user at a terminal does not.
        process = self.start("run", *arguments, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        until = time.monotonic() + PATIENCE_S
        while process.poll() is None and not self._began(stage, known) and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(after_s)
        process.send_signal(number)
        return self.ended(process)

    def _began(self, stage: str, known: set[Path]) -> bool:
        for log in set(self.home.glob("runs/*/*/events.jsonl")) - known:
            lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
            if any(line["kind"] == "stage.started" and line["stage"] == stage for line in lines):
                return True
        return False

    def leftovers(self) -> list[Path]:
        """What a writer left behind, anywhere in the folder."""
        return sorted(path for path in self.folder.rglob("*") if path.name.startswith(PARTIAL))

    def check_whole(self, home: Path | None = None) -> None:
        """Whatever has a final name is whole, to the byte."""
        home = home or self.home
        for folder in home.glob("store/*/*"):
            if folder.is_dir() and not folder.name.startswith((PARTIAL, "work-")):
                Artifact.open(folder).verify()
        for folder in home.glob("packages/*/*"):
            if folder.name.isdigit():
                Package.open(folder)
        for table in self.folder.glob("out*.parquet"):
            pq.read_table(table)


def rows_table(rows: int = 600, *, seed: int = 0) -> pa.Table:
    """Rows whose `late` can be learned: a number, a count with nulls, a text, a key."""
    rng = np.random.default_rng(seed)
    distance = rng.normal(size=rows)
    carrier = rng.choice(["AA", "DL", "UA"], rows)
    late = distance + np.where(carrier == "UA", 1.0, 0.0) + rng.normal(scale=0.7, size=rows) > 0
    return pa.table(
        {
            "id": np.arange(rows),
            "distance": distance,
            "stops": pa.array(rng.integers(0, 4, rows), mask=rng.random(rows) < 0.1),
            "carrier": pa.array(carrier.tolist()),
            "late": late,
        }
    )


@pytest.fixture(scope="session")
def make_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SmallProject]:
    """Makes a small project; with `at`, in that folder."""

    def make(*, rows: int = 600, at: Path | None = None) -> SmallProject:
        folder = at or tmp_path_factory.mktemp("project")
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows_table(rows), folder / "rows.parquet")
        return SmallProject(folder).write(
            data='source = "rows.parquet"\ntarget = "late"\nkeys = ["id"]', model="num_rounds = 5", engine="threads = 1"
        )

    return make


@pytest.fixture
def project(make_project: Callable[..., SmallProject], tmp_path: Path) -> SmallProject:
    return make_project(at=tmp_path / "project")


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., pa.Table]:
    return rows_table


@pytest.fixture(scope="session")
def serving(script: Callable[[str], Any]) -> Any:
    """The module `serving_load` beside this file: servers of a ledger, and callers that note what fails."""
    return script("tests/e2e/serving_load.py")


@pytest.fixture(scope="session")
def serving_fuzz(script: Callable[[str], Any]) -> Any:
    """The module `serving_fuzz` beside this file: malformed requests."""
    return script("tests/e2e/serving_fuzz.py")
