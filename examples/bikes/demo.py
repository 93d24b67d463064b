"""Bicycle demand with intervals, start to end. Arguments are passed on to `tidemill run`, such as `--set model.num_rounds=50`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from get_data import get_data

FOLDER = Path(__file__).parent
TIDEMILL = shutil.which("tidemill", path=str(Path(sys.executable).parent)) or "tidemill"


def main() -> int:
    get_data()
    tidemill("run", *sys.argv[1:])
    package = json.loads(tidemill("models", "show", "bikes", "--json", quiet=True))
    ask(package["path"])
    coverage, quality = package["evidence"]["interval"], package["evidence"]["quality"]
    print()
    print(f"error     RMSE {quality['value']:.1f} bicycles an hour, 95 % interval {quality['low']:.1f} to {quality['high']:.1f}")
    print(
        f"interval  made to hold {coverage['level']:.0%} of the hours, held {coverage['coverage']:.1%} of {coverage['rows']} on unseen days"
    )
    return 0


def ask(package: str) -> None:
    """The same hour of the same day in three kinds of weather, through the package that a server would hold."""
    from tidemill.core.package import Package, Predictor

    predictor = Predictor(Package.open(package))
    record = dict(predictor.package.example) | {"mnth": "June", "hr": 17, "weekday": 3, "holiday": 0, "workingday": 1}
    print("\na Wednesday in June, 5 in the afternoon:")
    for sky, temp in (("clear", 0.7), ("cloudy/misty", 0.6), ("light rain/snow", 0.5)):
        answer = predictor.records([record | {"weathersit": sky, "temp": temp, "atemp": temp - 0.05, "hum": 0.6}])
        (low, high), number = answer.interval[0], answer.prediction[0]
        print(f"  {sky:16} {number:4.0f} bicycles, {low:4.0f} to {high:4.0f}")


def tidemill(*arguments: str, quiet: bool = False) -> str:
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    if not quiet:
        print(f"\n{bold}$ {shlex.join(['tidemill', *arguments])}{plain}", flush=True)
    done = subprocess.run([TIDEMILL, *arguments], cwd=FOLDER, check=False, text=True, stdout=subprocess.PIPE if quiet else None)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""


if __name__ == "__main__":
    sys.exit(main())
