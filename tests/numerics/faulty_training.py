"""What ranks of the tests of faults run: thirty lines of training over checkpoints and heartbeats, on any number of ranks."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STEPS = 24


def train(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Losses of all steps and a digest of the weights, of STEPS steps; goes on from the newest checkpoint in `arguments["folder"]`."""
    import torch
    from torch import distributed
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    from tidemill.core.ranks.pulse import pulse
    from tidemill.train.torch.checkpoint import CheckpointConfig, Checkpoints, random_state, set_random_state
    from tidemill.train.torch.watch import watch_collectives

    rank, ranks, width = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), arguments.get("width", 32)
    torch.set_num_threads(1)
    watch_collectives()
    if ranks > 1:
        distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model: Any = torch.nn.Sequential(torch.nn.Linear(16, width), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(width, 1))
    if ranks > 1:
        model = fully_shard(model) if arguments.get("sharded") else DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    saving = Checkpoints(Path(arguments["folder"]) / "checkpoints", CheckpointConfig(every_steps=arguments.get("every", 2), every_s=0))

    torch.manual_seed(100 + rank)  # dropout differs by rank
    weights, moments = get_state_dict(model, optimizer)
    state = {"weights": weights, "moments": moments, "losses": []}
    restored = saving.restore(state)
    losses: list[float] = []
    if restored is not None:
        set_state_dict(model, optimizer, model_state_dict=state["weights"], optim_state_dict=restored.state["moments"])
        losses = restored.state["losses"]
        if restored.own is not None:
            set_random_state(restored.own["random"])
    for step in range(len(losses), arguments.get("steps", STEPS)):
        pulse().step(step)
        _misbehave(arguments, step, rank)
        rows = torch.Generator().manual_seed(step)
        x_NF = torch.randn(32, 16, generator=rows)[rank * 32 // ranks : (rank + 1) * 32 // ranks]
        loss = (model(x_NF)[:, 0] - x_NF.sum(dim=1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        told = loss.detach().clone()
        if ranks > 1:
            distributed.all_reduce(told)
        losses = [*losses, float(told) / ranks]
        if saving.due(step + 1):
            weights, moments = get_state_dict(model, optimizer)
            saving.save(step + 1, {"weights": weights, "moments": moments, "losses": losses}, {"random": random_state()})
    saving.close()
    weights, _ = get_state_dict(model, optimizer)
    whole = {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in sorted(weights.items())}
    digest = hashlib.sha256(b"".join(value.detach().numpy().tobytes() for value in whole.values())).hexdigest()
    if ranks > 1:
        distributed.destroy_process_group()
    first = 0 if restored is None else restored.step
    return {
        "losses": losses,
        "digest": digest,
        "first": first,
        "norm": float(sum(value.double().square().sum() for value in whole.values())),
    }


def _misbehave(arguments: Mapping[str, Any], step: int, rank: int) -> None:
    told = arguments.get("hang")
    if told is not None and (step, rank) == tuple(told):
        time.sleep(600)
    told = arguments.get("die")
    died = Path(arguments["folder"]) / "died"
    if told is not None and (step, rank) == tuple(told) and not died.exists():
        died.touch()
        os._exit(3)
