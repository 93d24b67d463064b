"""Claim: a rank holds its rows of two windows, what is prefetched and what workers decode, and no more for more rows.

The peak of resident memory of a process that runs through an epoch of clicks, 39 features that are made anew, beside what the process takes
before the first row is read, for several sizes of the window and numbers of rows and ranks. Usage: memory.py
"""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
WAYS = [(1_000_000, 16, 1), (1_000_000, 64, 1), (2_000_000, 16, 1), (2_000_000, 64, 1), (2_000_000, 64, 4)]


def main() -> None:
    found = []
    for rows, shuffle_mib, ranks in WAYS:
        made = subprocess.run([sys.executable, __file__, str(rows), str(shuffle_mib), str(ranks)], check=True, stdout=subprocess.PIPE)
        found.append(json.loads(made.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{at[:10]}-memory.json").write_text(json.dumps({"at": at, "ways": found}, indent=1) + "\n", encoding="utf-8")


def measure(rows: int, shuffle_mib: int, ranks: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    from artifacts import clicks

    from tidemill.core.allocator import lean
    from tidemill.train.torch.loader.config import LoaderConfig
    from tidemill.train.torch.loader.loader import Loader
    from tidemill.train.torch.loader.table import TableSource

    data, features = clicks(rows)
    source = TableSource(data, features, "train")
    lean(512 << 20)
    loader = Loader(source, batch_rows=1024, ranks=ranks, config=LoaderConfig(workers=2, shuffle_mib=shuffle_mib, cache_mib=0))
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here on
    steps = sum(1 for _ in loader.steps(0))
    print(
        json.dumps({
            "rows": rows, "features_mib": sum(source.sizes_bytes) >> 20, "row_group_mib": max(source.sizes_bytes) >> 20,
            "shuffle_mib": shuffle_mib, "ranks": ranks, "steps": steps, "beside_mib": (status("VmHWM") - before) >> 10,
        })
    )  # fmt: skip


def status(name: str) -> int:
    """A line of this process's status, KiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if line.startswith(name))
    return int(line.split()[1])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(*map(int, sys.argv[1:]))
    else:
        main()
