"""The server alone: what `pip install tidemill[serve]` puts on a machine, and that it serves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

import pytest

from tidemill.core.package import Predictor
from tidemill.testing.packages import EXAMPLE, tiny_package

ROOT = Path(__file__).parents[2]
MAX_PACKAGES = 15
MAX_BYTES = 300 * 10**6

# None of these is needed to answer; each is heavier than the server.
ABSENT = (
    "duckdb",
    "mlflow",
    "narwhals",
    "onnx",
    "optuna",
    "pandas",
    "polars",
    "pyarrow",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
    "xgboost",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a clean environment that holds `tidemill[serve]` as locked and nothing else, not even pip."""
    folder = tmp_path_factory.mktemp("serve-install")
    source = folder / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    wheel = next(folder.glob("tidemill-*.whl"))
    pip("--python", python, "install", "--constraint", ROOT / "locks" / "serve.txt", f"{wheel}[serve]")
    return python


def pip(*arguments: object) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, arguments), "-qq"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(python: Path, program: str) -> str:
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=False, cwd=python.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_few_packages(server_python: Path) -> None:
    listed = run(server_python, "import importlib.metadata as m, json; print(json.dumps(sorted(d.name for d in m.distributions())))")
    packages = json.loads(listed)
    assert len(packages) <= MAX_PACKAGES, packages


def test_it_is_as_locked(server_python: Path) -> None:
    listed = run(
        server_python, "import importlib.metadata as m; print(*(f'{d.name.lower()}=={d.version}' for d in m.distributions()))"
    ).split()
    locked = {line for line in (ROOT / "locks" / "serve.txt").read_text().splitlines() if not line.startswith("#")}
    assert {package.replace("_", "-") for package in listed if not package.startswith("tidemill==")} == locked


def test_it_is_small(server_python: Path) -> None:
    # What Python compiles on first use is counted too: run it before measuring.
    run(server_python, "import numpy, onnxruntime, rich.console, httptools, msgspec, tidemill")
    sizes = {path: path.stat().st_size for path in server_python.parents[1].rglob("*") if path.is_file() and not path.is_symlink()}
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    assert sum(sizes.values()) <= MAX_BYTES, largest


def test_it_lacks_what_serving_does_not_need(server_python: Path) -> None:
    found = run(server_python, f"import importlib.util as u; print(*(name for name in {ABSENT!r} if u.find_spec(name)))").split()
    assert found == []


def test_its_modules_import_there(server_python: Path) -> None:
    names = sorted(
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        for folder in ("core", "serve")
        for path in (ROOT / "src" / "tidemill" / folder).rglob("*.py")
    )
    run(server_python, f"import importlib\nfor name in {names!r}: importlib.import_module(name)")


@pytest.mark.server
def test_it_serves_a_package(server_python: Path, tmp_path: Path, free_port: int) -> None:
    package = tiny_package(tmp_path / "tiny")
    expected = Predictor(package).records([EXAMPLE])
    command = [server_python.with_name("tidemill"), "serve", package.path, "--port", str(free_port)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    try:
        answer = ask(free_port, "/predict", EXAMPLE, server)
    except TimeoutError:
        pytest.fail((tmp_path / "log").read_text())
    finally:
        server.terminate()
        server.wait(timeout=30)
    assert answer["prediction"] == expected.prediction[0].item()


def ask(port: int, path: str, record: dict[str, object], server: subprocess.Popen[bytes]) -> dict[str, object]:
    """The answer, as soon as the server gives one."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(record).encode(), {"Content-Type": "application/json"})
    for _ in range(300):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return dict(json.loads(response.read()))
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise TimeoutError
