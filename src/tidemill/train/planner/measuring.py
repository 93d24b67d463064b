"""Latency and bandwidth of the collectives at hand, measured with real processes: gloo here, NCCL where there are GPUs."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.core.events import Events
from tidemill.core.launcher import RankJob, Resources
from tidemill.core.load import load, need
from tidemill.train.planner.collectives import NAMES, Line, Measured, steps, volume

if TYPE_CHECKING:
    import torch

# Bytes of the whole tensor, from one packet to beyond every cache.
SIZES = (1 << 10, 1 << 14, 1 << 18, 1 << 22, 1 << 25)
# Time of one size of one collective: at least so many calls, and no more once it is over.
CALLS = 5
BUDGET_S = 0.25
# Messages one after the other in a call, where they are more than one.
MESSAGES = {"send_recv": 2}
_PURPOSE = "tidemill doctor --collectives"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One collective at one size."""

    name: str
    num_bytes: int
    seconds: float
    """Median of the calls, each as long as its slowest rank."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All points, and the line through those of each collective."""

    measured: Measured
    points: Sequence[Point]

    def to_json(self) -> dict[str, Any]:
        points = [{"name": point.name, "bytes": point.num_bytes, "seconds": point.seconds} for point in self.points]
        return {**self.measured.to_json(), "points": points}


def survey(ranks: int, *, sizes: Sequence[int] = SIZES, launcher: str = "local", events: Events | None = None) -> Survey:
    """Start so many ranks, time every collective between them, and end them.

    Raises:
        ConfigError: If there are fewer than 2 ranks, or more than GPUs where there are any.
        MissingDependency: If PyTorch is not installed.
        RanksFailed: If a rank fails or hangs.
    """
    if ranks < 2:
        raise ConfigError(f"--ranks: must be at least 2, got {ranks}", hint="one rank has nobody to talk to")
    there = gpus()
    if there and ranks > there:
        raise ConfigError(f"--ranks: must be at most the {there} GPUs that are here, got {ranks}")
    with tempfile.TemporaryDirectory(prefix="collectives-") as folder:
        job = RankJob(
            target=f"{__name__}:rank", arguments={"sizes": list(sizes)}, folder=Path(folder), hang_s=30.0, events=events or Events()
        )
        outcome = load("launcher", launcher)().run(job, ranks, Resources(threads=1, gpus=1.0 if there else 0.0))
    found = outcome.results[0]
    points = [Point(**point) for point in found["points"]]
    lines = {name: fitted(name, ranks, [point for point in points if point.name == name]) for name in NAMES}
    return Survey(measured=Measured(ranks=ranks, backend=found["backend"], lines=lines), points=points)


def gpus() -> int:
    """GPUs that PyTorch sees here.

    Raises:
        MissingDependency: If it is not installed.
    """
    return int(need("torch", _PURPOSE).cuda.device_count())


def fitted(name: str, ranks: int, points: Sequence[Point]) -> Line:
    """The latency and bandwidth that come closest to the points, errors relative to each.

    Least squares of seconds = alpha x steps + bytes x volume / bandwidth, both divided by the seconds, neither below zero.
    """
    seconds = np.array([point.seconds for point in points])
    terms = np.array([[steps(name, ranks), point.num_bytes * volume(name, ranks)] for point in points]) / seconds[:, None]
    alpha, inverse = np.linalg.lstsq(terms, np.ones(len(points)), rcond=None)[0]
    if alpha < 0 or inverse <= 0:  # one of the two is lost in the noise: the other alone
        alpha = max(0.0, float(terms[:, 0].sum() / (terms[:, 0] ** 2).sum())) if inverse <= 0 else 0.0
        inverse = float(terms[:, 1].sum() / (terms[:, 1] ** 2).sum())
    return Line(alpha_s=float(alpha), bandwidth=1 / float(inverse))


def rank(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What each rank runs: every collective at every size, timed together."""
    import torch
    import torch.distributed as dist

    from tidemill.core.ranks.pulse import pulse

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend)
    points = []
    try:
        for name in NAMES:
            for num_bytes in arguments["sizes"]:
                pulse().doing(f"{name} of {num_bytes} bytes")
                took = _timed(_call(name, num_bytes, device), device) / MESSAGES.get(name, 1)
                points.append({"name": name, "num_bytes": num_bytes, "seconds": took})
        dist.barrier()
    finally:
        dist.destroy_process_group()
    return {"backend": backend, "points": points}


def _call(name: str, num_bytes: int, device: torch.device) -> Callable[[], Any]:
    """One call of a collective on a tensor of so many bytes in all, float32."""
    import torch
    import torch.distributed as dist

    ranks, mine = dist.get_world_size(), dist.get_rank()
    part = max(1, num_bytes // 4 // ranks)
    whole, piece, other = (
        torch.zeros(part * ranks, device=device),
        torch.zeros(part, device=device),
        torch.zeros(part * ranks, device=device),
    )

    def send_and_receive() -> None:
        """Along the ranks in pairs: even ones send to the next, and have it back."""
        peer = mine ^ 1
        if peer < ranks and mine < peer:
            dist.send(whole, peer)
            dist.recv(whole, peer)
        elif peer < ranks:
            dist.recv(whole, peer)
            dist.send(whole, peer)

    calls: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, piece),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(piece, whole),
        "all_to_all": lambda: dist.all_to_all_single(other, whole),
        "broadcast": lambda: dist.broadcast(whole, 0),
        "send_recv": send_and_receive,
    }
    return calls[name]


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    """Median seconds of a call, the slowest rank's."""
    import torch
    import torch.distributed as dist

    call()
    took: list[float] = []
    start = time.perf_counter()
    stop = torch.zeros(1, device=device)
    while True:
        dist.barrier()
        before = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - before)
        stop[0] = float(len(took) >= CALLS and time.perf_counter() - start > BUDGET_S)
        dist.broadcast(stop, 0)  # all ranks call as often as the first one
        if stop.item():
            break
    slowest = torch.tensor(took, device=device, dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return float(slowest.median())
