"""What this machine can do for Tidemill, and what is missing for the rest."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from tidemill.core.contract import hardware

State = Literal["ok", "missing", "warning"]

# What an extra brings, and what each of its distributions is imported as.
_EXTRAS = {
    "serve": {"httptools": "httptools", "msgspec": "msgspec"},
    "train": {
        "duckdb": "duckdb", "narwhals": "narwhals", "onnx": "onnx", "optuna": "optuna", "pyarrow": "pyarrow",
        "scikit-learn": "sklearn", "skl2onnx": "skl2onnx", "skops": "skops", "xgboost-cpu": "xgboost",
    },
    "torch": {"tokenizers": "tokenizers", "torch": "torch", "transformers": "transformers"},
    "mlflow": {"mlflow": "mlflow"},
    "postgres": {"psycopg": "psycopg"},
}  # fmt: skip

_PURPOSES = {
    "serve": "tidemill serve",
    "train": "tidemill run, package and predict",
    "torch": "Hugging Face folders, text packages",
    "mlflow": "the MLflow mirror",
    "postgres": "a ledger in PostgreSQL",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at. `hint` says what to do where it is not ok."""

    what: str
    state: State
    detail: str
    hint: str = ""


def examine(home: Path) -> list[Finding]:
    """Machine, extras and the home folder, one finding each."""
    return [*_machine(home), *[_extra(name, modules) for name, modules in _EXTRAS.items()], _runtime(), _ledger(home)]


def _machine(home: Path) -> list[Finding]:
    machine = hardware()
    free = shutil.disk_usage(_existing(home)).free / 1e9
    writable = _existing(home).is_dir() and os.access(_existing(home), os.W_OK)
    return [
        Finding(what="python", state="ok", detail=f"{platform.python_version()} on {machine['system']}"),
        Finding(what="processor", state="ok", detail=f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB memory"),
        Finding(
            what="disk", state="ok" if free > 2 else "warning", detail=f"{free:.0f} GB free", hint="" if free > 2 else "free some space"
        ),
        Finding(
            what="home",
            state="ok" if writable else "missing",
            detail=str(home),
            hint="" if writable else "must be a writable folder; use --home",
        ),
    ]


def _extra(name: str, modules: dict[str, str]) -> Finding:
    absent = [library for library, module in modules.items() if find_spec(module) is None]
    if absent:
        return Finding(
            what=f"[{name}]",
            state="missing",
            detail=f"{_PURPOSES[name]}: lacks {', '.join(absent)}",
            hint=f"pip install 'tidemill[{name}]'",
        )
    return Finding(
        what=f"[{name}]", state="ok", detail=f"{_PURPOSES[name]}: " + ", ".join(f"{library} {_release(library)}" for library in modules)
    )


def _runtime() -> Finding:
    import onnxruntime

    return Finding(what="onnxruntime", state="ok", detail=f"{onnxruntime.__version__}: {', '.join(onnxruntime.get_available_providers())}")


def _ledger(home: Path) -> Finding:
    from tidemill.core.errors import TidemillError
    from tidemill.core.ledger import Ledger

    path = home / "ledger.db"
    if not path.exists():
        return Finding(what="ledger", state="ok", detail=f"none yet (SQLite {sqlite3.sqlite_version})")
    try:
        ledger = Ledger(path)
        ledger.verify()
        return Finding(what="ledger", state="ok", detail=f"{len(ledger.history())} events, chain unbroken")
    except TidemillError as error:
        return Finding(what="ledger", state="warning", detail=error.message, hint=error.hint or "")


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _release(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "installed"
