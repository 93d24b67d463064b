"""What a rank of a real run holds at most: `measure` is run by every rank under a launcher, `count` in a test's pool.

`resident` is the kernel's own high-water mark of the process (VmHWM, set back before the step), less what it held before the network was
built. With every block of 64 KiB or more mapped by itself (M_MMAP_THRESHOLD), what tensors let go is given back at once, so that the mark
of a fresh process is of tensors and not of an allocator's gaps. `counted` is what PyTorch's allocator told its profiler of the same
step, from before the network was built: of tensors alone, whatever the process did before.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_M_MMAP_THRESHOLD = -3
_MARK = "the step that counts"


def measure(arguments: Mapping[str, Any]) -> dict[str, float]:
    """Peak bytes of one step of a decoder.

    Args:
        arguments: shape (fields of DecoderParams), vocabulary, sequence, layout (fields of ParallelConfig), micro_batch, micro_batches.
    """
    import torch
    import torch.distributed as dist

    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 65536)
    torch.set_num_threads(1)
    owned = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if owned:
        dist.init_process_group("gloo")
    small = {**arguments, "shape": {**arguments["shape"], "width": 64, "hidden": 64}, "vocabulary": 64, "sequence": 8, "micro_batch": 1}
    for _ in range(2):
        _steps(small, 2)
    _settle(libc)
    before = _resident("VmRSS")
    made = _steps(arguments, 2)
    _settle(libc)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    _step(*made)
    peak = _resident("VmHWM") - before
    del made
    _settle(libc)
    counted = count(arguments)
    if owned:
        dist.barrier()
        dist.destroy_process_group()
    return {"resident": peak, "counted": counted}


def _steps(arguments: Mapping[str, Any], num: int) -> tuple[Any, ...]:
    """The network on this rank after some steps: its state is whole then."""
    import torch

    from tidemill.models.networks.base import Shape
    from tidemill.models.networks.decoder import Decoder, DecoderParams
    from tidemill.train.torch.config import OptimizerConfig
    from tidemill.train.torch.loader.step import MicroBatch, Step
    from tidemill.train.torch.objective import objective
    from tidemill.train.torch.optim import optimizer
    from tidemill.train.torch.parallel.layout import Layout, ParallelConfig
    from tidemill.train.torch.parallel.parallel import parallelize

    config = ParallelConfig(**arguments["layout"])
    layout = Layout.of(config, ranks=config.ranks, micro_batches=arguments["micro_batches"])
    words, length, rows = arguments["vocabulary"], arguments["sequence"], arguments["micro_batch"]

    def build() -> torch.nn.Module:
        torch.manual_seed(0)
        return Decoder().build(Shape(task="next_token", num_outputs=words), DecoderParams(**arguments["shape"]))

    parallel = parallelize(build, layout, device=torch.device("cpu"))
    chosen = optimizer(parallel.parts, OptimizerConfig(learning_rate=1e-4, weight_decay=0.01, betas=(0.9, 0.999)))
    ids = torch.randint(0, words, (rows, length))
    micro = MicroBatch(inputs={"input_ids": ids}, target=ids, weight=None, rows=np.arange(rows))
    all_rows = rows * arguments["micro_batches"] * layout.readers
    step = Step(
        micro=[micro] * arguments["micro_batches"],
        total=float(all_rows * length),
        epoch=0,
        number=0,
        rows=all_rows,
        tokens=all_rows * length,
    )
    made = parallel, chosen, step, objective("next_token")
    for _ in range(num):
        _step(*made)
    return made


def _step(parallel: Any, chosen: Any, step: Any, lose: Any) -> None:
    parallel.forward_backward(step, lose)
    parallel.clip(1.0)
    chosen.step()
    chosen.zero_grad(set_to_none=True)


def count(arguments: Mapping[str, Any]) -> int:
    """Most bytes that PyTorch's allocator has given out in one step, counted from before the network is built."""
    from torch.profiler import ProfilerActivity, profile, record_function

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        made = _steps(arguments, 2)
        with record_function(_MARK):
            _step(*made)
    events = found.profiler.kineto_results.events()
    start = next(event.start_ns() for event in events if event.name() == _MARK)
    most = now = 0
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now) if event.start_ns() >= start else most
    return most


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(field)


def _settle(libc: Any) -> None:
    gc.collect()
    libc.malloc_trim(0)
