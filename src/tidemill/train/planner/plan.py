"""Every layout of a number of ranks, planned: the best first, and why the others fall out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tidemill.core.errors import ConfigError, NotFound
from tidemill.train.planner.collectives import Measured
from tidemill.train.planner.constants import CALIBRATED, Constants
from tidemill.train.planner.devices import GIB, Device
from tidemill.train.planner.layout import Impossible, Layout, layouts
from tidemill.train.planner.memory import PRECISIONS, Memory, Precision, rank_memory
from tidemill.train.planner.network import Network
from tidemill.train.planner.timing import Running, StepTime, step_time

# Left to the allocator's gaps, the context of the device and the libraries.
RESERVE = 0.06


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A layout that fits, with what it takes."""

    layout: Layout
    memory: Memory
    time: StepTime
    units_per_s: float
    """Tokens a second over all ranks, or rows where the network takes rows."""
    mfu: float
    """FLOP of the model over those that the devices could do at the data sheet's peak."""
    dear: str
    """Where most of the time goes that is no computing, in words."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A layout that falls out, and why."""

    layout: Layout
    why: str
    need_bytes: float | None = None
    """What its fullest rank would hold, where that is too much; its least micro-batch, recomputed or not."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked, and the answer."""

    network: Network
    device: Device
    ranks: int
    batch: int
    precision: Precision
    measured: bool
    choices: Sequence[Choice] = field(default=())
    refused: Sequence[Refusal] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return {
            "model": {"kind": self.network.kind, "parameters": self.network.parameters},
            "device": {"name": self.device.name, "memory_gib": self.device.memory_bytes / GIB, "source": self.device.source},
            "ranks": self.ranks,
            "batch": self.batch,
            "precision": self.precision.name,
            "collectives": "measured" if self.measured else "data sheet",
            "choices": [_choice_json(choice, self.network.unit) for choice in self.choices],
            "refused": [{"layout": _axes(refusal.layout), "why": refusal.why} for refusal in self.refused],
        }


def plan(
    network: Network,
    device: Device,
    *,
    ranks: int,
    batch: int,
    precision: str | Precision = "bf16",
    running: Running | None = None,
    constants: Constants = CALIBRATED,
    measured: Measured | None = None,
) -> Plan:
    """Plan a step of `batch` rows on so many ranks.

    Of each product of axes the micro-batch and recomputation that take least time of those that fit.

    Raises:
        ConfigError: If the number of ranks or the batch is below 1.
        NotFound: If the device does not compute in that precision.
    """
    for name, value in (("ranks", ranks), ("batch", batch)):
        if value < 1:
            raise ConfigError(f"{name}: must be at least 1, got {value}")
    if isinstance(precision, str):
        if precision not in PRECISIONS:
            raise NotFound("precision", precision, PRECISIONS)
        precision = PRECISIONS[precision]
    room = device.memory_bytes * (1 - RESERVE) / (ranks if device.generation == "cpu" else 1)
    best: dict[tuple[int, int, int, int, int], Choice] = {}
    smallest: dict[tuple[int, int, int, int, int], tuple[float, Layout]] = {}
    refused: list[Refusal] = []
    for found in layouts(network, ranks=ranks, batch=batch, node_size=device.node_size):
        if isinstance(found, Impossible):
            refused.append(Refusal(layout=found.layout, why=found.why))
            continue
        key = (found.data, found.shard, found.stage, found.tensor, found.pipeline)
        memory = rank_memory(network, found, precision)
        if memory.total > room:
            if key not in smallest or memory.total < smallest[key][0]:
                smallest[key] = memory.total, found
            continue
        time = step_time(network, found, device, precision=precision, running=running, constants=constants, measured=measured)
        if key not in best or time.total_s < best[key].time.total_s:
            best[key] = _choice(network, found, device, precision, memory, time)
    for key, (need, layout) in smallest.items():
        if key not in best:
            refused.append(Refusal(layout=layout, why=f"needs {need / GIB:,.1f} GiB of {room / GIB:,.1f}", need_bytes=need))
    ranked = sorted(best.values(), key=lambda choice: (choice.time.total_s, choice.memory.total))
    return Plan(
        network=network,
        device=device,
        ranks=ranks,
        batch=batch,
        precision=precision,
        measured=measured is not None,
        choices=ranked,
        refused=sorted(refused, key=lambda refusal: (refusal.layout.tensor, refusal.layout.pipeline, refusal.layout.shard)),
    )


def _choice(network: Network, layout: Layout, device: Device, precision: Precision, memory: Memory, time: StepTime) -> Choice:
    peak = device.flops[precision.name] * layout.ranks
    return Choice(
        layout=layout,
        memory=memory,
        time=time,
        units_per_s=layout.batch * network.units_a_row / time.total_s,
        mfu=layout.batch * network.model_flops() / time.total_s / peak,
        dear=_dear(layout, time),
    )


def _dear(layout: Layout, time: StepTime) -> str:
    parts = {
        "tensor collectives": time.tensor_s,
        "pipeline bubble": time.bubble_s,
        "gradients and gathered weights": time.data_s,
        "sending between stages": time.pipeline_s,
        "optimizer": time.optimizer_s,
        "computing again": time.compute_s / 4 if layout.recompute else 0.0,
    }
    name = max(parts, key=lambda part: parts[part])
    share = parts[name] / time.total_s
    return f"{name} {share:.0%}".replace("%", "\u00a0%") if share >= 0.02 else ""


def _axes(layout: Layout) -> dict[str, Any]:
    return {
        "data": layout.data,
        "shard": layout.shard,
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "shard_stage": layout.stage,
    }


def _choice_json(choice: Choice, unit: str) -> dict[str, Any]:
    layout, memory, time = choice.layout, choice.memory, choice.time
    return {
        "layout": {**_axes(layout), "recompute": layout.recompute, "schedule": layout.schedule},
        "micro_batch": layout.micro_batch,
        "micro_batches": layout.micro_batches,
        "memory": {
            "parameters": memory.parameters,
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "activations": memory.activations,
            "buffers": memory.buffers,
            "total": memory.total,
        },
        "seconds": {
            "compute": time.compute_s,
            "tensor": time.tensor_s,
            "pipeline": time.pipeline_s,
            "bubble": time.bubble_s,
            "data": time.data_s,
            "optimizer": time.optimizer_s,
            "total": time.total_s,
        },
        "bytes_sent": dict(time.bytes_sent),
        f"{unit}_per_s": choice.units_per_s,
        "mfu": choice.mfu,
    }
