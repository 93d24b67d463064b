"""What a rank does, from its place among the others to its part of the trained network.

    torchrun --nproc-per-node 4 -m tidemill.core.ranks.entry FOLDER/job.json

runs by hand, on one or many machines, what a launcher runs: `run`, with the arguments of the job's file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tidemill.core.allocator import kept
from tidemill.core.events import Events
from tidemill.core.load import need
from tidemill.core.project import build as build_struct
from tidemill.core.project import to_plain
from tidemill.core.ranks.pulse import pulse
from tidemill.models.kinds import kind_of
from tidemill.train.torch.checkpoint import Checkpoints
from tidemill.train.torch.config import NetworkConfig
from tidemill.train.torch.loader.loader import Loader
from tidemill.train.torch.loop import Loop, OnRound, Progress, num_steps
from tidemill.train.torch.objective import objective
from tidemill.train.torch.parallel.layout import Layout
from tidemill.train.torch.parallel.parallel import parallelize
from tidemill.train.torch.place import group, own_device, place
from tidemill.train.torch.precision import Precision
from tidemill.train.torch.record import Record
from tidemill.train.torch.sources import opened
from tidemill.train.torch.speed import work
from tidemill.train.torch.trace import Trace

WEIGHTS = "weights.safetensors"
MEASURED = "train.measured"

# Micro-batches of an evaluation are larger than those of a step, as nothing is kept for a backward.
EVALUATED_ROWS = 4


@dataclass(frozen=True, kw_only=True)
class Job:
    """One fit. Plain values but for `kind`, `on_round` and arrays in `train` and `valid`, which only a fit in this process has."""

    kind: Any
    """The network's kind, or what `kind_of` finds it by."""
    shape: Any
    params: Any
    config: NetworkConfig
    """Resolved."""
    train: Mapping[str, Any]
    """As `sources.described` has it."""
    valid: Mapping[str, Any] | None
    seed: int
    folder: str | None = None
    """Where checkpoints go and what the run leaves."""
    tensorboard: str | None = None
    profile: str | None = None
    """Where the first rank's trace goes."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a rank is left with."""

    progress: Progress
    state: dict[str, torch.Tensor] | None
    """The whole network's weights; on the first rank alone."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    speed: dict[str, float] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)


def run(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The work of one rank of a launch; the first leaves `weights.safetensors` in the job's folder."""
    kind = kind_of(arguments["kind"])
    job = Job(
        **{
            **arguments,
            "kind": kind,
            "shape": build_struct(_shape_of(kind), arguments["shape"], path="shape"),
            "params": build_struct(kind.Params, arguments["params"], path="model"),
            "config": build_struct(NetworkConfig, arguments["config"], path="train"),
        }
    )
    with group():
        result = train(job, events=pulse().events, on_round=_tell)
        if result.state is not None:
            need("safetensors.torch", "a network").save_file(result.state, Path(arguments["folder"]) / WEIGHTS)
        return {"progress": to_plain(result.progress), "steps": result.steps, "speed": result.speed, "profile": result.profile}


def train(job: Job, *, events: Events, on_round: OnRound | None) -> Result:
    """Train this rank's part to the end. The default process group stands where there is more than one rank."""
    config, kind = job.config, job.kind
    rank, ranks = place()
    layout = Layout.of(config.parallel, ranks=ranks, micro_batches=config.accumulate)
    device = own_device()
    task = {"task": job.shape.task, "scale": getattr(job.shape, "scale", 1.0)}

    def build() -> torch.nn.Module:
        torch.manual_seed(job.seed)
        module: torch.nn.Module = kind.build(job.shape, job.params)
        return module

    precision = Precision(config.precision, device.type)
    parallel = parallelize(build, layout, device=device, precision=precision, compiled=config.compile)
    rows = _loader(job, job.train, layout, rank)
    valid = _loader(job, job.valid, layout, rank, evaluates=True) if job.valid is not None else None
    first = rank == 0
    record = Record(
        epochs=config.epochs or 1,
        steps=num_steps(config, rows),
        events=events if first else Events(),
        work=(lambda step: work(build, step, ranks=ranks, device=device.type, dtype=config.precision)) if first else None,
        board=Path(job.tensorboard) if first and job.tensorboard else None,
    )
    saving = Checkpoints(Path(job.folder) / "checkpoints", config.checkpoint) if job.folder is not None else None
    trace = Trace(Path(job.profile), parallel.parts) if first and job.profile else None
    loop = Loop(
        parallel,
        rows,
        valid,
        config=config,
        objective=objective(**task, label_smoothing=config.label_smoothing),
        judge=objective(**task),
        report=_metric(**task),
        record=record,
        events=events if first else Events(),
        on_round=on_round if first else None,
        saving=saving,
        trace=trace,
        copies=ranks // layout.readers,
    )
    # Ranks that hold parts of the same rows draw the same numbers, others others.
    torch.manual_seed(
        int(np.random.SeedSequence([job.seed, layout.reader(rank), layout.coordinates(rank)["pipeline"]]).generate_state(1)[0])
    )
    try:
        if loop.resume():
            events.emit("train.resumed", f"from step {loop.at.step}", step=loop.at.step)
        with kept():
            progress = loop.run()
    finally:
        if saving is not None:
            saving.close()
        record.close()
        if trace is not None:
            trace.close()
    with pulse().patient("gathering the weights"):
        state = parallel.full_state()
    return Result(progress=progress, state=state, steps=record.lines, speed=record.speed(), profile=trace.report if trace else {})


def _loader(job: Job, rows: Mapping[str, Any], layout: Layout, rank: int, *, evaluates: bool = False) -> Loader:
    config = job.config
    size: dict[str, Any] = {"batch_rows": config.batch_size, "batch_tokens": config.batch_tokens, "accumulate": config.accumulate}
    if evaluates:
        more = EVALUATED_ROWS if layout.config.pipeline == 1 else 1
        size |= {key: value * more for key, value in size.items() if key != "accumulate" and value is not None}
        size["shuffle"] = False
    folder = Path(job.folder) if job.folder is not None else None
    static = layout.config.pipeline > 1 or config.compile
    return Loader(
        opened(rows, seed=job.seed), **size, seed=job.seed, rank=layout.reader(rank), ranks=layout.readers, static=static,
        config=config.loader, folder=folder,
    )  # fmt: skip


def _metric(*, task: str, scale: float) -> Callable[[float], tuple[str, float]]:
    if task == "regression":
        return lambda loss: ("rmse", loss**0.5 * scale)
    return lambda loss: ("log_loss", loss)


def _tell(number: int, measured: Mapping[str, float]) -> bool:
    pulse().events.emit(MEASURED, level="progress", number=number, measured=dict(measured))
    return False


def _shape_of(kind: Any) -> type:
    """The struct of what the data tell, by the annotation of the kind's `shape`."""
    from typing import get_type_hints

    made: type = get_type_hints(kind.shape)["return"]
    return made
