"""Ranks on a Ray cluster: an actor for each, which starts the rank's process on its machine and ends with it.

The project's folder, the data and the job's folder must be at the same paths on every machine. Where no cluster is named,
neither by `address` nor by RAY_ADDRESS, Ray starts one on this machine, with room for all ranks, and ends it with the job.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tidemill.core.errors import Unavailable
from tidemill.core.launcher import Outcome, RankJob, Resources
from tidemill.core.load import need
from tidemill.core.ranks.process import LocalProcess, RankProcess, free_port, variables
from tidemill.core.ranks.supervise import supervise

# Exit code that stands for an actor whose machine or keeper is gone.
_LOST = -9
_CALL_S = 60.0


class RayLauncher:
    """Starts ranks on the machines of a cluster, as many on one as it has CPUs and GPUs for.

    Args:
        address: The cluster's; that of RAY_ADDRESS, or a cluster of this machine, where None.
        place_s: Seconds that the cluster may take to find room for all ranks.
    """

    def __init__(self, address: str | None = None, *, place_s: float = 300.0) -> None:
        self._address = address
        self._place_s = place_s

    def run(self, job: RankJob, ranks: int, resources: Resources) -> Outcome:
        """The contract of `Launcher.run`."""
        ray: Any = need("ray", 'engine.train = "ray"')
        with self._connected(ray, ranks, resources):

            def start(file: Path, attempt: int, folder: Path, processes: list[RankProcess]) -> None:
                keepers = self._keepers(ray, ranks, resources)
                try:
                    hosts, port = ray.get([keeper.host.remote() for keeper in keepers]), ray.get(keepers[0].port.remote())
                    for rank, keeper in enumerate(keepers):
                        here = [other for other, host in enumerate(hosts) if host == hosts[rank]]
                        environment = variables(
                            rank=rank, ranks=ranks, local_rank=here.index(rank), local_ranks=len(here), address=hosts[0], port=port,
                            attempt=attempt, threads=resources.threads,
                        )  # fmt: skip
                        ray.get(keeper.start.remote(str(file), environment, str(folder / f"rank-{rank}.log")))
                        processes.append(_Remote(ray, keeper, hosts[rank]))
                except BaseException:
                    for keeper in keepers:
                        ray.kill(keeper)
                    raise

            return supervise(job, ranks, start)

    def _keepers(self, ray: Any, ranks: int, resources: Resources) -> list[Any]:
        """An actor for each rank, all of them in place."""
        actor = ray.remote(num_cpus=resources.threads, num_gpus=resources.gpus, max_restarts=0, max_concurrency=4)(_Keeper)
        keepers = [actor.remote(list(sys.path)) for _ in range(ranks)]
        try:
            ray.get([keeper.host.remote() for keeper in keepers], timeout=self._place_s)
        except ray.exceptions.GetTimeoutError:
            for keeper in keepers:
                ray.kill(keeper)
            have = ray.cluster_resources()
            raise Unavailable(
                f"Ray must have room for {ranks} ranks of {resources.threads} CPUs and {resources.gpus:g} GPUs, "
                f"has {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs in all, not all of them free",
                hint="fewer ranks, or wait for others to end",
            ) from None
        return keepers

    @contextmanager
    def _connected(self, ray: Any, ranks: int, resources: Resources) -> Iterator[None]:
        if ray.is_initialized():
            yield
            return
        alone = self._address is None and "RAY_ADDRESS" not in os.environ
        room = {"num_cpus": max(os.cpu_count() or 1, ranks * resources.threads), "include_dashboard": False} if alone else {}
        try:
            ray.init(self._address, **room, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError) as error:
            raise Unavailable(f"Ray must be reachable at {self._address or 'RAY_ADDRESS'}: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()


class _Keeper:
    """The actor: keeps one rank's process on its machine. When it ends, the process does."""

    def __init__(self, paths: list[str]) -> None:
        sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
        self._process: LocalProcess | None = None

    def host(self) -> str:
        return str(need("ray", 'engine.train = "ray"').util.get_node_ip_address())

    def port(self) -> int:
        return free_port(self.host())

    def start(self, job: str, environment: dict[str, str], log: str) -> None:
        self._process = LocalProcess(Path(job), environment, Path(log))

    def poll(self) -> int | None:
        return self._kept.poll()

    def dump(self) -> None:
        self._kept.dump()

    def ask_to_end(self) -> None:
        self._kept.ask_to_end()

    def stop(self) -> None:
        self._kept.stop()

    @property
    def _kept(self) -> LocalProcess:
        if self._process is None:
            raise RuntimeError("no rank was started yet")
        return self._process


class _Remote:
    """A rank's process through its keeper."""

    def __init__(self, ray: Any, keeper: Any, host: str) -> None:
        self._ray, self._keeper, self.host = ray, keeper, host
        self._asked: Any = None
        self._code: int | None = None

    def poll(self) -> int | None:
        """Asks, and answers what the last question found: a machine that answers slowly holds up nobody."""
        if self._code is not None:
            return self._code
        if self._asked is None:
            self._asked = self._keeper.poll.remote()
        ready, _ = self._ray.wait([self._asked], timeout=0)
        if ready:
            self._asked = None
            try:
                self._code = self._ray.get(ready[0])
            except self._ray.exceptions.RayError:
                self._code = _LOST
        return self._code

    def dump(self) -> None:
        self._call("dump")

    def ask_to_end(self) -> None:
        self._call("ask_to_end")

    def stop(self) -> None:
        self._call("stop")
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._keeper)

    def _call(self, name: str) -> None:
        with suppress(self._ray.exceptions.RayError, self._ray.exceptions.GetTimeoutError):
            self._ray.get(getattr(self._keeper, name).remote(), timeout=_CALL_S)
