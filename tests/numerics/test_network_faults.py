"""Fits of networks whose ranks are killed: they end where the undisturbed fit does."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tidemill.core.events import Event, Events
from tidemill.core.ranks.pulse import read_beat
from tidemill.models.base import MemoryMatrix
from tidemill.train.torch.checkpoint import CheckpointConfig
from tidemill.train.torch.config import NetworkConfig, Training
from tidemill.train.torch.fit import Trained, fit
from tidemill.train.torch.parallel.layout import ParallelConfig
from tidemill.train.torch.watch import FaultConfig

pytest.importorskip("torch")

RANKS = 2


def trained(folder: Path, heard: list[Event], **parallel: int) -> Trained:
    from tidemill.models.networks.mlp import Mlp

    rng = np.random.default_rng(0)
    x_NF = rng.normal(size=(2048, 8))
    y_N = (x_NF[:, 0] + x_NF[:, 1] ** 2 + 0.3 * rng.normal(size=2048) > 1).astype(np.float64)
    config = NetworkConfig(
        epochs=3, batch_size=64, evaluate_every=10, ema=0.9, parallel=ParallelConfig(**parallel),
        checkpoint=CheckpointConfig(every_steps=3, every_s=0.0), fault=FaultConfig(restarts=2, hang_s=120.0),
    )  # fmt: skip
    kind = Mlp()
    return fit(
        kind, MemoryMatrix(x_NF[:1536], y_N[:1536]), MemoryMatrix(x_NF[1536:], y_N[1536:]), task="binary", num_classes=None, params=kind.Params(), seed=3,
        threads=2, training=Training(config=config, folder=folder, events=Events(heard.append)),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [pytest.param({"data": 2}, marks=pytest.mark.long, id="data"), pytest.param({"shard": 2}, id="shard")])
def test_a_fit_whose_rank_is_killed_is_the_undisturbed_one(tmp_path: Path, parallel: dict[str, int]) -> None:
    undisturbed = trained(tmp_path / "undisturbed", [], **parallel)
    heard: list[Event] = []
    folder, killed = tmp_path / "disturbed", threading.Event()
    killer = threading.Thread(target=_kill, args=(folder, random.Random(len(parallel)), killed))
    killer.start()
    try:
        disturbed = trained(folder, heard, **parallel)
    finally:
        killer.join(120)
    assert killed.is_set()
    assert [event.kind for event in heard].count("ranks.failed") == 1, [event.message for event in heard if event.level == "warning"]
    assert any(event.kind == "train.resumed" and event.fields["step"] > 0 for event in heard), "from a checkpoint, not from the start"
    assert disturbed.best_round == undisturbed.best_round
    assert disturbed.state.keys() == undisturbed.state.keys()
    for name, tensor in undisturbed.state.items():
        assert (tensor == disturbed.state[name]).all(), name


def _kill(folder: Path, chance: random.Random, killed: threading.Event) -> None:
    """Kill a random rank some time after the second checkpoint."""
    rank, limit = chance.randrange(RANKS), time.monotonic() + 240
    while time.monotonic() < limit:
        beat = read_beat(folder / "attempt-0" / f"rank-{rank}.beat")
        if beat is not None and len(list(folder.glob("checkpoints/step-*"))) >= 2:
            time.sleep(chance.random() * 0.1)
            os.kill(beat.pid, signal.SIGKILL)
            killed.set()
            return
        time.sleep(0.001)
