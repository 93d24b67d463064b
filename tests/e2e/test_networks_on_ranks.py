"""Networks on several ranks as users run them: a module of their own through the command, and a job's file by hand under torchrun."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tidemill.core.launcher import Outcome, RankJob, Resources
from tidemill.core.ranks.entry import write_job
from tidemill.core.ranks.process import free_port
from tidemill.models.base import MemoryMatrix
from tidemill.models.networks.mlp import Mlp
from tidemill.train.torch.config import NetworkConfig, Training
from tidemill.train.torch.fit import Trained, fit
from tidemill.train.torch.parallel.layout import ParallelConfig

RANKS_PAGE = Path(__file__).parents[2] / "docs" / "ranks.md"

OWN = """
from torch import nn
from tidemill.models.networks.inputs import Head, Inputs

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())

class Mine(nn.Module):
    tp_plan = {"blocks.*.up": "colwise", "blocks.*.down": "rowwise"}
    split_points = ["blocks.1"]
    def __init__(self, shape):
        super().__init__()
        self.inputs = Inputs(shape, max_embedding=4)
        self.start = nn.Linear(self.inputs.width, 16)
        self.blocks = nn.ModuleList(Block(16) for _ in range(2))
        self.head = Head(16, shape)
    def forward(self, features):
        x = self.start(self.inputs(features))
        for block in self.blocks:
            x = block(x)
        return self.head(x)

def build(shape):
    return Mine(shape)
"""


@pytest.mark.slow
def test_a_module_of_ones_own_divided_twice_is_what_one_rank_trains(project: Any) -> None:
    (project.folder / "own_net.py").write_text(OWN, encoding="utf-8")
    project.write(model='kind = "own_net:build"', train="epochs = 2\nbatch_size = 48\naccumulate = 2\noptimizer = { learning_rate = 0.01 }")
    losses, answers = [], []
    for axes in ((), ("tensor", "pipeline")):
        before = set(project.home.glob("store/small/train-*"))
        project.run("--to", "train", *(part for axis in axes for part in ("--set", f"train.parallel.{axis}=2")))
        [folder] = set(project.home.glob("store/small/train-*")) - before
        losses.append([json.loads(line)["valid_log_loss"] for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()])
        answers.append(pq.read_table(folder / "valid_predictions.parquet")["probability"].to_numpy())
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-4)


class ByHand:
    """Leaves the job's file, and types what the documentation says."""

    def run(self, job: RankJob, ranks: int, resources: Resources) -> Outcome:
        page = RANKS_PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
        [typed] = re.findall(r"^torchrun .*", page, re.MULTILINE)
        here = {"--nnodes 2": "--nnodes 1", "--nproc-per-node 4": f"--nproc-per-node {ranks}", "node-a:29400": f"127.0.0.1:{free_port()}"}
        for words, ours in {**here, "RUN/job.json": str(write_job(job))}.items():
            assert words in typed
            typed = typed.replace(words, ours)
        program, *words = shlex.split(typed)
        command = [str(Path(sys.executable).with_name(program)), "--local-addr", "127.0.0.1", *words]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        ends = [job.folder / "attempt-0" / f"rank-{rank}.end" for rank in range(ranks)]
        return Outcome(ranks=ranks, results=[json.loads(end.read_text(encoding="utf-8"))["result"] for end in ends], failures=[])


def fitted(folder: Path, launcher: str, **parallel: int) -> Trained:
    rng = np.random.default_rng(0)
    x_NF = rng.normal(size=(400, 6))
    matrix, kind = MemoryMatrix(x_NF, (x_NF[:, 0] * x_NF[:, 1] > 0).astype(np.float64)), Mlp()
    config = NetworkConfig(epochs=2, batch_size=64, parallel=ParallelConfig(**parallel))
    params = kind.Params(width=16, depth=2, dropout=0.0)
    training = Training(config=config, folder=folder, launcher=launcher)
    return fit(kind, matrix, None, task="binary", num_classes=None, params=params, seed=3, threads=1, training=training)


@pytest.mark.slow
def test_the_documented_command_trains_by_hand(tmp_path: Path) -> None:
    alone, by_hand = fitted(tmp_path / "alone", "local"), fitted(tmp_path / "by-hand", f"{__name__}:ByHand", data=2)
    assert by_hand.state.keys() == alone.state.keys()
    for name, tensor in alone.state.items():
        np.testing.assert_allclose(by_hand.state[name].numpy(), tensor.numpy(), rtol=1e-3, atol=1e-5, err_msg=name)
