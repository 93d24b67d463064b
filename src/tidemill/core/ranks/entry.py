"""What a rank's process runs: `python -m tidemill.core.ranks.entry JOB.json`, by a launcher or under torchrun.

torchrun's variables say which rank it is. Beside the job's file it leaves `attempt-<n>/rank-<r>.beat` while it runs, and
`rank-<r>.end` with what the function returned or raised.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tidemill.core.artifact import write_json
from tidemill.core.errors import TidemillError
from tidemill.core.launcher import RankJob
from tidemill.core.load import load
from tidemill.core.project import to_plain
from tidemill.core.ranks.pulse import Pulse, begin
from tidemill.core.ranks.watch import Watch, beat_every_s

# Told by a launcher: end with the process that holds the other end of stdin.
LEASHED = "--leashed"


def write_job(job: RankJob) -> Path:
    """The job's file in its folder, for ranks to read; a run by hand takes the same one."""
    job.folder.mkdir(parents=True, exist_ok=True)
    told = {"target": job.target, "arguments": to_plain(job.arguments), "paths": list(job.paths), "hang_s": job.hang_s}
    write_json(job.folder / "job.json", told)
    return job.folder / "job.json"


def attempt_folder(folder: Path, attempt: int) -> Path:
    return folder / f"attempt-{attempt}"


def main(arguments: list[str]) -> int:
    """Run this process's rank of the job; the process's exit code."""
    if LEASHED in arguments:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    file = Path(arguments[0])
    job = json.loads(file.read_text(encoding="utf-8"))
    rank, ranks, attempt = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    folder = attempt_folder(file.parent, attempt)
    folder.mkdir(parents=True, exist_ok=True)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    mine = begin(Pulse(folder / f"rank-{rank}.beat", rank=rank, every_s=beat_every_s(job["hang_s"])))
    if LEASHED not in arguments:
        threading.Thread(target=_watch_each_other, args=(Watch(folder, ranks, job["hang_s"]),), daemon=True).start()
    sys.path[:0] = job["paths"]
    end = _run(job["target"], job["arguments"])
    mine.stop()
    write_json(folder / f"rank-{rank}.end", {**end, "host": os.uname().nodename, "at": time.time()})
    if "error" in end:
        _leave(1)  # what waits for other ranks in a destructor would wait for ever
    return 0


def _run(target: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"result": to_plain(load("rank", target)(arguments))}
    except TidemillError as error:
        traceback.print_exc()
        return {"error": {"type": type(error).__name__, "message": error.message, "hint": error.hint, "ours": True}}
    except BaseException as error:  # noqa: BLE001 - the edge of the process; the launcher names it
        traceback.print_exc()
        return {"error": {"type": type(error).__name__, "message": str(error).strip() or type(error).__name__, "ours": False}}


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_parent() -> None:
    """The other end of stdin is closed when the process that started this one ends; what this one started ends too."""
    while os.read(0, 1):
        continue
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _watch_each_other(watch: Watch) -> None:
    """Without a launcher over them, ranks watch each other's heartbeats: one that sees a hung rank says so and ends, which torchrun sees."""
    while True:
        time.sleep(beat_every_s(watch.hang_s))
        found = watch.hung()
        if found is not None:
            print(f"tidemill: {found.said}", file=sys.stderr, flush=True)  # noqa: T201 - goes to torchrun's log
            faulthandler.dump_traceback(all_threads=True)
            _leave(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
