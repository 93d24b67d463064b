"""Training steps of the decoder on a GPU: tokens/s, MFU, and the share of what matrix products reach in the same run.

    python benchmarks/gpu/run.py                               # fp32 and bf16 on the GPU, as PyTorch runs it and compiled
    python benchmarks/gpu/run.py --width 2048 --depth 24 --batch 16
    python benchmarks/gpu/run.py --device cpu --width 256 --depth 4 --length 128 --batch 8 --steps 6    # bf16 on a processor

A step is forward, backward, clipping and AdamW, as the training loop takes it, on rows that the loader gives; the ways take turns,
the order turned round every other time. Work is counted by PyTorch on the module as it stands, forward and backward; the ceiling is
the best of a few large products of square matrices in the same precision, taken before each repeat. `--peak` takes a data sheet's
FLOP/s, for MFU as the papers have it. Without a GPU, and without `--device cpu`, it says so and ends with 2.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tidemill.models.networks.base import Shape
from tidemill.models.networks.decoder import Decoder, DecoderParams
from tidemill.train.torch.config import NetworkConfig, resolve
from tidemill.train.torch.loader.loader import Loader
from tidemill.train.torch.loader.step import Step
from tidemill.train.torch.loader.tokens import TokenSource
from tidemill.train.torch.objective import objective
from tidemill.train.torch.optim import optimizer
from tidemill.train.torch.parallel.layout import Layout, ParallelConfig
from tidemill.train.torch.parallel.parallel import parallelize
from tidemill.train.torch.precision import Precision
from tidemill.train.torch.speed import peak, work

HERE = Path(__file__).parent
VOCABULARY = 32_000
WARM = 3


def main(arguments: list[str]) -> int:
    asked = parsed(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU that PyTorch can use: nothing was measured; --device cpu measures the processor", file=sys.stderr)
        return 2
    if asked.threads:
        torch.set_num_threads(asked.threads)
    ways = [(precision, compiled) for precision in asked.precision for compiled in ((False, True) if asked.compile else (False,))]
    runs = {way: Run(asked, *way) for way in ways}
    taken: list[dict[str, Any]] = []
    for repeat in range(asked.repeats):
        for way in ways if repeat % 2 == 0 else reversed(ways):
            taken.append({"repeat": repeat, "precision": way[0], "compiled": way[1], **runs[way].measure(asked.steps)})
            print(said(taken[-1]), flush=True)
    found = {"at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "machine": machine(asked.device), "asked": vars(asked)}
    found |= {"ways": [summary(taken, *way) for way in ways], "taken": taken}
    for way in found["ways"]:
        print(f"median  {said(way)}")
    if {"fp32", "bf16"} <= set(asked.precision):
        ratio = statistics.median(
            one["tokens_per_s"] / other["tokens_per_s"]
            for one in taken
            for other in taken
            if (one["precision"], other["precision"]) == ("bf16", "fp32") and all(one[key] == other[key] for key in ("repeat", "compiled"))
        )
        found["bf16_to_fp32"] = round(ratio, 3)
        print(f"bf16 to fp32: {ratio:.2f} x, on {found['machine']['name']} ({found['machine']['bf16']})")
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
    return 0


class Run:
    """One way of training: its module, its rows, its optimizer."""

    def __init__(self, asked: argparse.Namespace, precision: str, compiled: bool) -> None:
        self._device = torch.device(asked.device)
        self._precision, self._length, self._peak = precision, asked.length, asked.peak
        kind, shape = Decoder(), Shape(task="next_token", num_outputs=VOCABULARY)
        params = DecoderParams(width=asked.width, depth=asked.depth, heads=asked.heads, hidden=asked.hidden or feed(asked.width))

        def build() -> torch.nn.Module:
            torch.manual_seed(0)
            return kind.build(shape, params)

        self._build = build
        how = Precision(precision, self._device.type)  # type: ignore[arg-type]
        layout = Layout.of(ParallelConfig(recompute=asked.recompute), ranks=1, micro_batches=1)
        self._parallel = parallelize(build, layout, device=self._device, precision=how, compiled=compiled)
        for part in self._parallel.parts:
            part.train()
        self._config = resolve(NetworkConfig(batch_size=asked.batch), kind.defaults)
        self._optimizer = optimizer(self._parallel.parts, self._config.optimizer)
        self._objective = objective("next_token")
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, 64 * asked.batch * asked.length + 1).astype(np.uint16)
        self._rows = Loader(TokenSource(tokens, length=asked.length), batch_rows=asked.batch, seed=0)
        self._steps = self._endless()
        self.parameters = sum(weight.numel() for part in self._parallel.parts for weight in part.parameters())
        for _ in range(WARM):
            self._train(next(self._steps))

    def measure(self, steps: int) -> dict[str, Any]:
        """The speed of some steps."""
        peak.cache_clear()
        rows = next(self._steps)
        done = work(self._build, rows, ranks=1, device=self._device.type, dtype=self._precision)
        assert done is not None
        times = []
        for _ in range(steps):
            self._wait()
            start = time.perf_counter()
            step = next(self._steps)
            loss = self._train(step)
            self._wait()
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times)
        flops = done.row_flops * step.rows / seconds
        return {
            "tokens_per_s": step.rows * self._length / seconds,
            "step_s": seconds,
            "step_s_least_to_most": [min(times), max(times)],
            "tflops": flops / 1e12,
            "ceiling_tflops": done.peak_flops_per_s / 1e12,
            "of_ceiling": flops / done.peak_flops_per_s,
            "mfu": flops / self._peak if self._peak else None,
            "parameters": self.parameters,
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if self._device.type == "cuda" else None,
            "loss": loss,
        }

    def _train(self, step: Step) -> float:
        loss = self._parallel.forward_backward(step, self._objective)
        self._parallel.clip(self._config.clip or 0.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def _endless(self) -> Any:
        epoch = 0
        while True:
            yield from self._rows.steps(epoch)
            epoch += 1

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def feed(width: int) -> int:
    """Units of a gated feed-forward part that has as many weights as a plain one of four times the width, in whole tiles."""
    return -(-8 * width // 3 // 64) * 64


def summary(taken: list[dict[str, Any]], precision: str, compiled: bool) -> dict[str, Any]:
    """The medians of a way's repeats."""
    own = [one for one in taken if (one["precision"], one["compiled"]) == (precision, compiled)]
    medians = {
        key: statistics.median(one[key] for one in own) if isinstance(value, float) else value
        for key, value in own[0].items()
        if key not in ("repeat", "step_s_least_to_most")
    }
    times = [second for one in own for second in one["step_s_least_to_most"]]
    return {**medians, "step_s_least_to_most": [min(times), max(times)]}


def said(one: dict[str, Any]) -> str:
    way = f"{one['precision']}{', compiled' if one['compiled'] else ''}"
    least, most = one["step_s_least_to_most"]
    mfu = f", MFU {one['mfu']:.1%}" if one["mfu"] is not None else ""
    memory = f", {one['memory_gib']:.1f} GiB" if one["memory_gib"] is not None else ""
    return (
        f"{way:15s} {one['tokens_per_s']:,.0f} tokens/s, {1000 * one['step_s']:.1f} ms a step ({1000 * least:.1f} to {1000 * most:.1f}), "
        f"{one['tflops']:.2f} TFLOP/s, {one['of_ceiling']:.1%} of the {one['ceiling_tflops']:.2f} of matrix products{mfu}{memory}"
    )


def machine(device: str) -> dict[str, str]:
    """What it ran on, and how it takes bfloat16."""
    if device == "cuda":
        return {"name": torch.cuda.get_device_name(), "torch": torch.__version__, "bf16": "tensor cores"}
    told = Path("/proc/cpuinfo").read_text(encoding="ascii") if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split("\t: ", 1) for line in told.replace("\t\t", "\t").split("\n\n")[0].splitlines() if "\t: " in line)
    flags = fields.get("flags", "").split()
    how = next((name for name in ("amx_bf16", "avx512_bf16", "avx512f") if name in flags), "no instructions for it known")
    return {"name": fields.get("model name", platform.machine()), "torch": torch.__version__, "bf16": how}


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16", "fp16"), default=["fp32", "bf16"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="compiled too (default: on a GPU)")
    parser.add_argument("--recompute", action="store_true", help="compute activations again in the backward pass")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=0, help="units of a feed-forward part (default: 8/3 of the width, in tiles of 64)")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--batch", type=int, default=16, help="rows of a step")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of the processor (default: PyTorch's)")
    parser.add_argument("--peak", type=float, default=0.0, help="FLOP/s of the device by its data sheet, for MFU")
    parser.add_argument("--out", type=Path, help="file for the result")
    asked = parser.parse_args(arguments)
    asked.compile = asked.device == "cuda" if asked.compile is None else asked.compile
    return asked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
