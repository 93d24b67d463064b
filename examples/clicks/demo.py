"""Clicks by the million in bounded memory, start to end. Usage: demo.py [--rows N], and what `tidemill run` takes."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from get_data import ROWS, get_data
from made_clicks import chances

from tidemill.core.metrics import evaluate
from tidemill.testing.memory import peak_pss

FOLDER = Path(__file__).parent
TIDEMILL = shutil.which("tidemill", path=str(Path(sys.executable).parent)) or "tidemill"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=ROWS)
    given, rest = parser.parse_known_args()
    data = get_data(given.rows)
    command = ["run", *([] if given.rows == ROWS else ["--set", f"data.source={data.relative_to(FOLDER)}/*.parquet"]), *rest]
    say(shlex.join(["tidemill", *command]))
    took = peak_pss([TIDEMILL, *command], cwd=FOLDER, interval_s=0.2)
    print(took.output, end="")
    if took.code:
        return took.code
    version = read("models", "list")[-1]["version"]  # the one just made, which need not be champion
    quality = read("models", "show", f"clicks@{version}")["evidence"]["quality"]
    print()
    print(
        f"quality   {quality['metric']} {quality['value']:.4f} on {quality['rows']:,} rows; no model can be better than {ceiling(data):.4f}"
    )
    print(f"took      {took.seconds:.0f} s, {took.bytes / 2**30:.2f} GiB of memory at most, for {given.rows:,} rows")
    return 0


def read(*command: str) -> Any:
    """What a command says as JSON."""
    said = subprocess.run([TIDEMILL, *command, "--json"], cwd=FOLDER, check=True, capture_output=True, text=True)
    return json.loads(said.stdout)


def ceiling(data: Path) -> float:
    """The area under the curve of the true chances, over the first rows."""
    rows = pq.read_table(sorted(data.glob("*.parquet"))[0])
    return evaluate("binary", np.asarray(rows["click"]), chances(rows), metrics=["roc_auc"])["roc_auc"]


def say(command: str) -> None:
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"\n{bold}$ {command}{plain}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
