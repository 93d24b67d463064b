"""One rank's process on this machine. A launcher for other machines starts it there, through whatever it has."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from tidemill.core.ranks.entry import LEASHED

# Between asking a process to end and ending it.
_GRACE_S = 3.0


class RankProcess(Protocol):
    """A rank that was started. All its processes end with `stop`, and with whoever holds this."""

    @property
    def host(self) -> str: ...
    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def dump(self) -> None:
        """Have it print where each of its threads is."""

    def ask_to_end(self) -> None: ...
    def stop(self) -> None:
        """End it and what it started; returns when it is gone."""


class LocalProcess:
    """A rank in a process group of its own, its output in a file.

    Args:
        job: The job's file.
        environment: Set over this process's own.
        log: Where it prints.
    """

    def __init__(self, job: Path, environment: Mapping[str, str], log: Path) -> None:
        self.host = socket.gethostname()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "tidemill.core.ranks.entry", str(job), LEASHED],
                stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment}, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def dump(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)

    def ask_to_end(self) -> None:
        self._signal_all(signal.SIGTERM)

    def stop(self) -> None:
        limit = time.monotonic() + _GRACE_S
        while self._process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        self._signal_all(signal.SIGKILL)  # also what the rank left in its group
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _signal_all(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def variables(
    *, rank: int, ranks: int, local_rank: int, local_ranks: int, address: str, port: int, attempt: int, threads: int
) -> dict[str, str]:
    """torchrun's variables, and the threads of a rank."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(local_ranks),
        "MASTER_ADDR": address, "MASTER_PORT": str(port), "TORCHELASTIC_RESTART_COUNT": str(attempt), "OMP_NUM_THREADS": str(threads),
    }  # fmt: skip


def free_port(address: str = "127.0.0.1") -> int:
    """A port that is free now, below those that outgoing connections take, so that it stays free until a rank listens there."""
    start = 20_000 + (os.getpid() * 7919 + time.monotonic_ns() // 1000) % 12_000
    for port in range(start, start + 500):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((address, port))
            return port
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@contextmanager
def stopped_in_the_end(processes: list[RankProcess]) -> Iterator[None]:
    """No process in the list, which may grow inside the block, outlives it."""
    try:
        yield
    finally:
        for process in processes:
            process.ask_to_end()
        for process in processes:
            process.stop()
