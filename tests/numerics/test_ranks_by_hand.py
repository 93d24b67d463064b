"""Ranks started by hand on two "machines" of the loopback address, by torchrun itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tidemill.core.launcher import RankJob
from tidemill.core.ranks.entry import write_job

pytest.importorskip("torch")

NODES, EACH = 2, 1


def torchrun(folder: Path, port: int, job: RankJob) -> list[subprocess.Popen[bytes]]:
    """What a person types on each machine."""
    file = write_job(job)
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nnodes={NODES}", f"--nproc-per-node={EACH}", "--rdzv-backend=c10d", "--rdzv-id=tidemill",
        f"--rdzv-endpoint=127.0.0.1:{port}", "--max-restarts=0", "--local-addr=127.0.0.1", "-m", "tidemill.core.ranks.entry", str(file),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = []
    for node in range(NODES):
        with (folder / f"node-{node}.log").open("wb") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
    return started


def ended(nodes: list[subprocess.Popen[bytes]], limit_s: float = 240) -> list[int]:
    limit = time.monotonic() + limit_s
    try:
        return [node.wait(max(1.0, limit - time.monotonic())) for node in nodes]
    finally:
        for node in nodes:
            node.terminate()  # torchrun ends its ranks
        for node in nodes:
            node.wait(60)


def results(folder: Path) -> list[Any]:
    return [json.loads((folder / "attempt-0" / f"rank-{rank}.end").read_text())["result"] for rank in range(NODES * EACH)]


@pytest.mark.slow
def test_two_machines_train_together_and_started_again_go_on_after_a_failure(tmp_path: Path, free_port: int) -> None:
    arguments = {"folder": str(tmp_path), "steps": 6, "sharded": True, "die": [4, 1]}
    job = RankJob(target="faulty_training:train", arguments=arguments, folder=tmp_path, paths=[str(Path(__file__).parent)], hang_s=120)
    first = ended(torchrun(tmp_path, free_port, job))
    assert all(code != 0 for code in first), "a failure on one machine ends the ranks of both"
    second = ended(torchrun(tmp_path, free_port, job))
    logs = "".join((tmp_path / f"node-{node}.log").read_text() for node in range(NODES))
    assert second == [0, 0], logs
    found = results(tmp_path)
    assert len({result["digest"] for result in found}) == 1
    assert {result["first"] for result in found} <= {2, 4}, "from the last checkpoint that was finished"
    assert len(found[0]["losses"]) == 6


@pytest.mark.slow
def test_without_a_launcher_ranks_name_the_one_that_hangs(tmp_path: Path, free_port: int) -> None:
    arguments = {"folder": str(tmp_path), "steps": 6, "hang": [3, 1]}
    job = RankJob(target="faulty_training:train", arguments=arguments, folder=tmp_path, paths=[str(Path(__file__).parent)], hang_s=8)
    codes = ended(torchrun(tmp_path, free_port, job))
    logs = "".join((tmp_path / f"node-{node}.log").read_text() for node in range(NODES))
    assert all(code != 0 for code in codes), logs
    assert "tidemill: rank 1 on " in logs
    assert "(last step: 3, training" in logs
