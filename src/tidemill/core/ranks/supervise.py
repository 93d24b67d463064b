"""Watching the ranks of a job from its start to its end: the same for every launcher, which says how a rank is started."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill.core import errors
from tidemill.core.errors import ConfigError, TidemillError, Unavailable
from tidemill.core.launcher import Cause, Failure, Outcome, RankJob, RanksFailed
from tidemill.core.ranks.entry import attempt_folder, write_job
from tidemill.core.ranks.process import RankProcess, stopped_in_the_end
from tidemill.core.ranks.watch import Watch

# Start(job's file, attempt, folder of the attempt, list to put each process in as it starts).
Start = Callable[[Path, int, Path, list[RankProcess]], None]

_POLL_S = 0.05
# The ranks that wait for a dead one fail within this time of it: which one was first is told from all of them.
_ALIKE_S = 0.5
# What ranks are asked to print before they are stopped takes so long.
_PRINT_S = 0.3
# A rank that has finished may take so long to go.
_LEAVE_S = 30.0


def supervise(job: RankJob, ranks: int, start: Start) -> Outcome:
    """Run attempts until one ends well; the contract of `Launcher.run`."""
    if ranks < 1:
        raise ConfigError(f"a job must have at least 1 rank, got {ranks}")
    file = write_job(job)
    first = 1 + max((int(folder.name.removeprefix("attempt-")) for folder in job.folder.glob("attempt-*")), default=-1)
    failures: list[Failure] = []
    while True:
        attempt = first + len(failures)
        folder = attempt_folder(job.folder, attempt)
        folder.mkdir(parents=True)
        processes: list[RankProcess] = []
        with stopped_in_the_end(processes):
            start(file, attempt, folder, processes)
            watched = _Attempt(job, attempt, folder, processes)
            failure = watched.wait()
        watched.tell()
        if failure is None:
            return Outcome(ranks=ranks, results=[_end(folder, rank).get("result") for rank in range(ranks)], failures=failures)
        failures.append(failure)
        job.events.warn(
            "ranks.failed", str(failure), rank=failure.rank, host=failure.host, step=failure.step, cause=failure.cause, attempt=attempt
        )
        told = _end(folder, failure.rank).get("error", {})
        if told.get("ours"):
            raise _error(told)
        if len(failures) > job.restarts:
            raise RanksFailed(failures)
        job.events.emit("ranks.restarted", f"all {ranks} ranks start again, {len(failures)} of {job.restarts}", attempt=attempt + 1)


@dataclass
class _Ended:
    code: int
    at: float


class _Attempt:
    """The ranks of one attempt."""

    def __init__(self, job: RankJob, attempt: int, folder: Path, processes: Sequence[RankProcess]) -> None:
        self._job, self._attempt, self._folder, self._processes = job, attempt, folder, processes
        self._watch = Watch(folder, len(processes), job.hang_s)
        self._ended: dict[int, _Ended] = {}
        self._read = [0] * len(processes)

    def wait(self) -> Failure | None:
        """None when all have finished; else who failed first."""
        looked = 0.0
        while True:
            self._poll()
            finished = [rank for rank, ended in self._ended.items() if ended.code == 0 and "result" in _end(self._folder, rank)]
            bad = [rank for rank in self._ended if rank not in finished]
            if bad:
                time.sleep(_ALIKE_S)
                self._poll()
                self._watch.look()
                return self._first([rank for rank in self._ended if rank not in finished])
            if len(finished) == len(self._processes):
                return None
            if time.monotonic() - looked > min(0.25, self._job.hang_s / 20):
                looked = time.monotonic()
                self.tell()
                hung = self._watch.hung(self._ended)
                if hung is not None and not self._leaving(hung.rank):
                    for process in self._processes:
                        process.dump()
                    time.sleep(_PRINT_S)
                    return self._failure(hung.rank, "hung", f"for {hung.idle_s:.0f} s, at {hung.beat.line if hung.beat else 'its start'}")
            time.sleep(_POLL_S)

    def tell(self) -> None:
        """Pass on what ranks have told since the last time; whole lines only."""
        for rank in range(len(self._processes)):
            file = self._folder / f"rank-{rank}.events"
            try:
                with file.open("rb") as content:
                    content.seek(self._read[rank])
                    said = content.read()
            except OSError:
                continue
            whole = said[: said.rfind(b"\n") + 1]
            self._read[rank] += len(whole)
            for line in whole.splitlines():
                event = json.loads(line)
                self._job.events.emit(event["kind"], event["message"], level=event["level"], **{**event["fields"], "rank": rank})

    def _poll(self) -> None:
        now = time.monotonic()
        for rank, process in enumerate(self._processes):
            if rank not in self._ended and (code := process.poll()) is not None:
                self._ended[rank] = _Ended(code, now)

    def _leaving(self, rank: int) -> bool:
        """Whether a rank has finished and takes its time to go; one that takes too long is ended."""
        if "result" not in _end(self._folder, rank):
            return False
        if self._watch.idle_s(rank) > self._job.hang_s + _LEAVE_S:
            self._processes[rank].ask_to_end()
            self._processes[rank].stop()
            self._ended[rank] = _Ended(0, time.monotonic())
        return True

    def _first(self, bad: Sequence[int]) -> Failure:
        """Of the ranks that ended badly at about the same time, the one that made the others do so."""

        def order(rank: int) -> tuple[int, float, int]:
            code, end = self._ended[rank].code, _end(self._folder, rank)
            if "error" in end:
                return 1, float(end["at"]), rank
            # Who went without a word went first, but for libraries that abort when a peer is gone.
            return (2 if -code == signal.SIGABRT else 0), self._ended[rank].at, rank

        rank = min(bad, key=order)
        code, error = self._ended[rank].code, _end(self._folder, rank).get("error")
        if error is not None:
            return self._failure(rank, "error", f"{error['type']}: {error['message'].splitlines()[0]}")
        if code < 0:
            return self._failure(rank, "killed", signal.Signals(-code).name)
        return self._failure(rank, "ended", f"{code} before its function returned" if code == 0 else str(code))

    def _failure(self, rank: int, cause: Cause, detail: str) -> Failure:
        beat = self._watch.last(rank)
        return Failure(
            rank=rank,
            host=beat.host if beat is not None else self._processes[rank].host,
            attempt=self._attempt,
            cause=cause,
            detail=detail,
            step=beat.step if beat is not None else None,
            collective=_said(beat.collective, beat.waiting) if beat is not None and beat.collective else None,
            doing=beat.doing if beat is not None else "starting",
            after_s=self._watch.idle_s(rank),
            log=self._folder / f"rank-{rank}.log",
        )


def _said(collective: str, waiting: bool) -> str:
    return f"{collective}, in which it waits" if waiting else collective


def _end(folder: Path, rank: int) -> dict[str, Any]:
    """What a rank left behind; empty as long as it runs, or where it was killed."""
    try:
        told: dict[str, Any] = json.loads((folder / f"rank-{rank}.end").read_text(encoding="utf-8"))
        return told
    except (OSError, ValueError):
        return {}


def _error(told: dict[str, Any]) -> TidemillError:
    """What the rank raised, as its own type where that takes a message."""
    kind = getattr(errors, told["type"], Unavailable)
    try:
        made: TidemillError = kind(told["message"], hint=told.get("hint"))
        return made
    except TypeError:  # one whose arguments are its own; the message says it all
        return Unavailable(told["message"], hint=told.get("hint"))
