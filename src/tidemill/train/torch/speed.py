"""How much of what a machine can do a training step does: MFU, after Chowdhery et al. 2022, appendix B.

The work of a row is counted on a copy of the network without storage, forward and backward, so that counting takes
milliseconds and is the same under any parallelism. What the machine can do is measured: the best of a few large matrix products.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from tidemill.train.torch.loader.step import Step

# Side of the matrix products that say what a machine can do, and how many.
SIDE = {"cpu": 512, "cuda": 8_192}
TRIES = 5


@dataclass(frozen=True, kw_only=True)
class Work:
    """What rows or tokens cost, and what the ranks together could do."""

    row_flops: float
    """Of one row; 0 where tokens are what counts."""
    token_flops: float
    peak_flops_per_s: float
    """Of all ranks."""

    def share(self, *, rows: int, tokens: int, seconds: float) -> float:
        """Share of the peak that so much work in so much time is."""
        done = self.token_flops * tokens if self.token_flops else self.row_flops * rows
        return done / seconds / self.peak_flops_per_s


def work(build: Callable[[], nn.Module], step: Step, *, ranks: int, device: str, dtype: str) -> Work | None:
    """The work of a step like this one; None where the network cannot be built without storage.

    Args:
        dtype: fp32, bf16 or fp16: what products are computed in.
    """
    micro = step.micro[0]
    flops = _flops(build, {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in micro.inputs.items()})
    if not flops:
        return None
    mask = micro.inputs.get("attention_mask")
    tokens = float(mask.sum()) if mask is not None and step.tokens else 0.0
    row, token = (0.0, flops / tokens) if tokens else (flops / len(micro.rows), 0.0)
    return Work(row_flops=row, token_flops=token, peak_flops_per_s=peak(device, dtype) * ranks)


def _flops(build: Callable[[], nn.Module], inputs: dict[str, tuple[tuple[int, ...], object]]) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            module = build()
            made = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in inputs.items()}
            with FlopCounterMode(display=False) as counter:
                module(**made).sum().backward()
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError):
        return 0.0  # it reads values while it is built or run
    return float(counter.get_total_flops())


@functools.cache
def peak(device: str, dtype: str) -> float:
    """Floating-point operations a second of the best of a few matrix products on one device, with the threads of this process."""
    import torch

    side = SIDE.get(device, SIDE["cuda"])
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    left = torch.ones(side, side, dtype=kind, device=device)
    best = float("inf")
    for _ in range(TRIES):
        _wait(device)
        start = time.perf_counter()
        torch.mm(left, left)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def memory_mb() -> float:
    """Memory that this process holds now, in MB: of the GPU where it has one, at its peak."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 1e6
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
