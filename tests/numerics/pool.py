"""Eight processes that train together over gloo, started once and used by many tests.

    results = ranks.run(f"{__file__}:job", ranks=4, size=3)     # job(size=3) on ranks 0 to 3; what each returned, by rank

Each job gets a world of its own: a fresh default process group of just its ranks, torchrun's variables, a fresh seed. Starting
eight Pythons with torch costs half a minute of a small machine, a fresh group some milliseconds. A job that raises on every
rank leaves the processes be; one that hangs, or leaves some ranks waiting for others, ends them all, and the error says what
each rank was doing. The next job starts new ones.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any

RANKS = 8
# Once one rank has failed, its peers wait in vain for it: how long they may still take to fail as well.
GRACE_S = 3.0


class RanksFailed(Exception):
    """A job raised or hung; `failures` says on which ranks, and with what traceback or where they stood."""

    def __init__(self, target: str, failures: dict[int, str]) -> None:
        self.failures = failures
        super().__init__(
            "\n".join([f"{target} failed on ranks {sorted(failures)}", *(f"rank {rank}:\n{failures[rank]}" for rank in sorted(failures))])
        )


class Pool:
    """The processes; started by the first job, ended by `close`."""

    def __init__(self) -> None:
        self._connections: list[Connection] = []
        self._pids: list[int] = []
        self._host: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(self, target: str, *, ranks: int, timeout_s: float = 60.0, group: bool = True, **arguments: Any) -> list[Any]:
        """What `target` ("module:function" or "path.py:function") returned on each rank.

        Args:
            ranks: Processes of the job's world, in 1..8.
            group: Whether the default process group stands when the function is called; else only torchrun's variables do.

        Raises:
            RanksFailed: If it raised anywhere, or took longer than `timeout_s`.
        """
        if not self._connections:
            self._start()
        port = _free_port()
        for rank in range(ranks):
            self._connections[rank].send((target, arguments, rank, ranks, port, group))
        results, failures, deadline = {}, {}, time.monotonic() + timeout_s
        waiting = {self._connections[rank]: rank for rank in range(ranks)}
        while waiting and (ready := wait(list(waiting), max(0.0, deadline - time.monotonic()))):
            for connection in ready:
                rank = waiting.pop(connection)  # type: ignore[call-overload]
                try:
                    failure, result = connection.recv()  # type: ignore[union-attr]
                except EOFError:
                    failure, result = "the process ended", None
                if failure is None:
                    results[rank] = result
                else:
                    failures[rank] = failure
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        if waiting or "the process ended" in failures.values():
            failures |= self._stacks(list(waiting.values()))
            self.close()
        if failures:
            raise RanksFailed(target, failures)
        return [results[rank] for rank in range(ranks)]

    def close(self) -> None:
        """Ends the processes."""
        for connection in self._connections:
            connection.close()
        if self._host is not None:
            self._host.communicate()
        if self._folder is not None:
            self._folder.cleanup()
        self._connections, self._pids, self._host, self._folder = [], [], None, None

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        address = str(Path(self._folder.name) / "socket")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with Listener(address, family="AF_UNIX", backlog=RANKS) as listener:
            self._host = subprocess.Popen([sys.executable, __file__, address], env=environment, stdin=subprocess.PIPE)
            listener._listener._socket.settimeout(120)  # type: ignore[attr-defined] # a host that died says nothing
            met = dict(sorted(_meet(listener) for _ in range(RANKS)))
        self._connections = [connection for connection, _ in met.values()]
        self._pids = [pid for _, pid in met.values()]

    def _stacks(self, ranks: list[int]) -> dict[int, str]:
        """Where these ranks stand, as each writes it on a signal."""
        assert self._folder is not None
        for rank in ranks:
            os.kill(self._pids[rank], signal.SIGUSR1)
        time.sleep(0.5)
        return {rank: "still running:\n" + (Path(self._folder.name) / f"stack-{rank}").read_text() for rank in ranks}


def _meet(listener: Listener) -> tuple[int, tuple[Connection, int]]:
    connection = listener.accept()
    index, pid = connection.recv()
    return index, (connection, pid)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The host: imports torch once, and forks the ranks from there.


def host(address: str) -> None:
    for module in ("torch.distributed.fsdp", "torch.distributed.pipelining", "torch.distributed.tensor.parallel"):
        importlib.import_module(module)
    children = []
    for index in range(RANKS):
        if pid := os.fork():
            children.append(pid)
        else:
            serve(address, index)
            os._exit(0)
    sys.stdin.buffer.read()  # ends when the tests do, however they end
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def serve(address: str, index: int) -> None:
    """One rank: does the jobs that come, until the connection ends."""
    import torch

    torch.set_num_threads(1)
    with (Path(address).parent / f"stack-{index}").open("w") as stack, Client(address, family="AF_UNIX") as connection:
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
        connection.send((index, os.getpid()))
        while True:
            try:
                job = connection.recv()
            except EOFError:
                return
            connection.send(_do(*job))


def _do(target: str, arguments: dict[str, Any], rank: int, ranks: int, port: int, group: bool) -> tuple[str | None, Any]:
    import torch
    import torch.distributed as dist

    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.manual_seed(0)
    try:
        if group:
            dist.init_process_group("gloo")
        return None, _function(target)(**arguments)
    except BaseException:  # noqa: BLE001 # whatever it is, the test is told
        return traceback.format_exc(), None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _function(target: str) -> Callable[..., Any]:
    where, _, name = target.rpartition(":")
    if not where.endswith(".py"):
        return getattr(importlib.import_module(where), name)  # type: ignore[no-any-return]
    known = f"ranks_{Path(where).stem}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, where)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[known] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[known])
    return getattr(sys.modules[known], name)  # type: ignore[no-any-return]


if __name__ == "__main__":
    host(sys.argv[1])
    os._exit(0)  # taking torch's modules down takes longer than all else here
