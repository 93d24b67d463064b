"""Claim: `import tidemill` takes under 0.2 s and `tidemill --help` under 0.5 s on an idle machine.

Times whole processes, in turn with `python -c pass`, whose median is what the interpreter takes by itself.
Usage: run.py [repeats]
"""

from __future__ import annotations

import datetime as dt
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tidemill.pipeline import environment

HERE = Path(__file__).parent
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import": [sys.executable, "-c", "import tidemill"],
    "import and fit's home": [sys.executable, "-c", "import tidemill; tidemill.fit"],
    "--help": [str(Path(sys.executable).parent / "tidemill"), "--help"],
}


def main(repeats: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repeat in range(repeats + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    summary = {
        name: {"median_s": round(statistics.median(values), 3), "min_s": round(min(values), 3), "max_s": round(max(values), 3)}
        for name, values in seconds.items()
    }
    result = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "repeats": repeats,
        "summary": summary,
        "environment": environment(),
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{result['at'][:10]}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
