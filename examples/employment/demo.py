"""A model of 2015 meets 2016, 2017 and 2018. Arguments are passed on to `tidemill run`, such as `--sample 0.2`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from get_data import YEARS, get_data

FOLDER = Path(__file__).parent
TIDEMILL = shutil.which("tidemill", path=str(Path(sys.executable).parent)) or "tidemill"


def main() -> int:
    get_data()
    tidemill("run", *sys.argv[1:])
    found = {}
    for year in YEARS[1:]:
        rows = f"data/{year}.parquet"
        told = tidemill("monitor", "report", "employment", "--data", rows, "--labels", rows, "--output", f".tidemill/{year}.html", "--json")
        found[year] = json.loads(told)
        print(found[year]["verdict"]["text"])
    print("\nhow far each year is from 2015: distance of the distributions (PSI), and the least p-value of all columns")
    for year, report in found.items():
        print(f"  {year}  {distances(report)}")
    return 0


def distances(report: dict[str, Any], most: int = 4) -> str:
    columns = sorted(report["columns"], key=lambda column: -column["psi"])
    parts = [f"{column['name']} {column['psi']:.3f}" for column in columns[:most]]
    return f"{', '.join(parts)}, predictions {report['prediction']['psi']:.4f}; p = {min(column['p_value'] for column in columns):.0e}"


def tidemill(*arguments: str) -> str:
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"\n{bold}$ {shlex.join(['tidemill', *arguments])}{plain}", flush=True)
    read = "--json" in arguments
    done = subprocess.run([TIDEMILL, *arguments], cwd=FOLDER, check=False, text=True, stdout=subprocess.PIPE if read else None)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""


if __name__ == "__main__":
    sys.exit(main())
