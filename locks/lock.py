"""Writes the lock files beside it: exact pins that resolve together, one file a use.

Pip resolves (uv does not read pip's `find-links`, where a CPU build of torch may lie) and downloads nothing but
metadata. The widest set is resolved first and constrains the others, so that a package has one version everywhere.

Usage: python locks/lock.py [--keep]      --keep moves only what pyproject.toml forces to move
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent

# The release that the tests run on. Newer ones bring gigabytes of CUDA packages where no CPU build is offered.
TORCH = "torch==2.13.0"

LOCKS = {
    "dev": ("all,dev", "everything that the tests, checks and benchmarks need"),
    "serve": ("serve", "the server alone"),
    "train": ("train", "the pipeline: data, features, training, tuning, packaging"),
    "torch": ("torch", "Hugging Face folders and torch modules; point pip (find-links) at a CPU build of torch to stay without CUDA"),
    "mlflow": ("mlflow", "the MLflow mirror"),
}
BUILD = ("pip", "setuptools")


def main() -> None:
    """Resolves every lock and writes it."""
    keep = "--keep" in sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        kept = _pins(FOLDER / "dev.txt") if keep else {}
        constraints.write_text("\n".join([TORCH, *(f"{name}=={version}" for name, version in kept.items() if name != "torch")]))
        for lock, (extras, purpose) in LOCKS.items():
            pins = _resolve([f"{ROOT}[{extras}]"], constraints)
            if lock == "dev":
                constraints.write_text("\n".join(f"{name}=={version}" for name, version in pins.items()))
            _write(lock, purpose, pins)
        _write("build", "what installs the others", _resolve(list(BUILD), constraints))


def _resolve(requirements: list[str], constraints: Path) -> dict[str, str]:
    """Name to version of everything that `requirements` would install into an empty environment."""
    report = constraints.with_name("report.json")
    command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed", "--report", str(report)]
    subprocess.run([*command, "--constraint", str(constraints), *requirements], check=True)
    installed = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    pins = {re.sub(r"[-_.]+", "-", item["name"]).lower(): item["version"].partition("+")[0] for item in installed}
    pins.pop("tidemill", None)
    return dict(sorted(pins.items()))


def _pins(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def _write(lock: str, purpose: str, pins: dict[str, str]) -> None:
    header = [
        f"# {purpose[0].upper()}{purpose[1:]}.",
        "# Exact pins for Linux and CPython 3.11, made by `make lock`; install with --no-deps.",
    ]
    (FOLDER / f"{lock}.txt").write_text("\n".join([*header, *(f"{name}=={version}" for name, version in pins.items())]) + "\n")
    print(f"locks/{lock}.txt: {len(pins)} packages")


if __name__ == "__main__":
    main()
