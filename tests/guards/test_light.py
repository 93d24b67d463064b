"""What stays out of a process that only serves, or that only asks for help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"

HEAVY = (
    "PIL", "duckdb", "joblib", "mlflow", "narwhals", "onnx", "onnxmltools", "openvino", "optuna", "pandas", "polars", "pyarrow", "scipy", "skl2onnx", "sklearn",
    "skops", "tokenizers", "torch", "transformers", "xgboost",
)  # fmt: skip
# The front door takes nothing at all; these come with the first prediction.
BASE = ("numpy", "onnxruntime", "rich", "httptools", "msgspec")


def modules(folder: str) -> list[str]:
    return sorted(
        ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
        for path in (SRC / "tidemill" / folder).rglob("*.py")
    )


def test_import_tidemill_loads_no_library() -> None:
    assert loaded(["tidemill"], HEAVY + BASE) == []


@pytest.mark.parametrize("folder", ["core", "serve"])
def test_the_serving_path_loads_no_heavy_library(folder: str) -> None:
    if not modules(folder):
        pytest.skip(f"no module in {folder}")
    assert loaded(modules(folder), HEAVY) == []


@pytest.mark.parametrize("module", ["cli", "client"])
def test_the_command_line_and_the_client_start_light(module: str) -> None:
    assert loaded([f"tidemill.{module}"], (*HEAVY, "onnxruntime")) == []


def test_every_name_of_the_front_door_opens() -> None:
    import tidemill

    missing = [name for name in tidemill.__all__ if not hasattr(tidemill, name)]
    assert missing == []


def test_a_heavy_library_is_seen(tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text("import pyarrow.compute")
    assert loaded(["sample"], HEAVY, path=tmp_path) == ["pyarrow"]


def loaded(names: list[str], watched: tuple[str, ...], path: Path | None = None) -> list[str]:
    """Which of `watched` a fresh interpreter holds after importing `names`."""
    program = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(json.dumps(sorted(set(sys.modules) & set({watched!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=path)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))
