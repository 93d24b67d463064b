"""The peers' own Python environments: installed once, at the versions of `peers/requirements/`, below `.cache/benchmarks`."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "peers" / "requirements"
CACHE = HERE.parents[1] / ".cache" / "benchmarks" / "serving"
NAMES = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt") if path.stem != "common"))


def environment(name: str) -> Path:
    """The folder of a peer's environment, installed where it is not there yet or was of other versions.

    Raises:
        subprocess.CalledProcessError: If pip fails; what it said is printed.
    """
    folder = CACHE / "environments" / name
    stamp = hashlib.sha256((REQUIREMENTS / f"{name}.txt").read_bytes() + (REQUIREMENTS / "common.txt").read_bytes()).hexdigest()
    done = folder / "installed"
    if done.exists() and done.read_text(encoding="ascii") == stamp:
        return folder
    print(f"installing {name} into {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True, symlinks=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-cache-dir"]
    subprocess.run([*pip, "-r", str(REQUIREMENTS / f"{name}.txt")], check=True)
    done.write_text(stamp, encoding="ascii")
    return folder


def versions(name: str) -> dict[str, str]:
    """What is installed in an environment, by the distributions that its requirements name."""
    program = "import json, importlib.metadata as m; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
    said = subprocess.run([str(environment(name) / "bin" / "python"), "-c", program], check=True, capture_output=True, text=True).stdout
    import json

    found = json.loads(said)
    named = [
        line.split("==")[0].split("[")[0]
        for line in (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    ]
    return {one: found[one] for one in named}


def variables(name: str) -> dict[str, str]:
    """What a program of an environment is started with."""
    path = f"{environment(name) / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path} | ({"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")} if name == "pytriton" else {})


if __name__ == "__main__":
    for chosen in sys.argv[1:] or NAMES:
        environment(chosen)
