"""Ranks as processes of this machine."""

from __future__ import annotations

import os
from pathlib import Path

from tidemill.core.errors import Unavailable
from tidemill.core.launcher import Outcome, RankJob, Resources
from tidemill.core.ranks.process import LocalProcess, RankProcess, free_port, variables
from tidemill.core.ranks.supervise import supervise

ADDRESS = "127.0.0.1"


class LocalLauncher:
    """Starts each rank as a process here. Ranks may be more than cores; each rank's share of `resources.gpus` must be there."""

    def run(self, job: RankJob, ranks: int, resources: Resources) -> Outcome:
        """The contract of `Launcher.run`."""
        devices = _devices(ranks, resources)

        def start(file: Path, attempt: int, folder: Path, processes: list[RankProcess]) -> None:
            port = free_port(ADDRESS)
            for rank in range(ranks):
                environment = variables(
                    rank=rank, ranks=ranks, local_rank=rank, local_ranks=ranks, address=ADDRESS, port=port, attempt=attempt, threads=resources.threads
                )  # fmt: skip
                processes.append(LocalProcess(file, {**environment, **devices}, folder / f"rank-{rank}.log"))

        return supervise(job, ranks, start)


def _devices(ranks: int, resources: Resources) -> dict[str, str]:
    """A rank takes the GPU of its local rank; without any, it sees none.

    Raises:
        Unavailable: If this machine has fewer GPUs than the ranks ask for.
    """
    if not resources.gpus:
        return {"CUDA_VISIBLE_DEVICES": ""}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = len(list(Path("/dev").glob("nvidia[0-9]*"))) if visible is None else len([one for one in visible.split(",") if one])
    if ranks * resources.gpus > found:
        raise Unavailable(
            f"{ranks} ranks of {resources.gpus:g} GPUs must find as many here, found {found}", hint="fewer ranks, or more machines"
        )
    return {}
