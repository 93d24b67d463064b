"""Time of a step: products and memory traffic of each stage, what communication does not hide behind them, and the pipeline's bubble."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tidemill.train.planner.collectives import Line, Measured, seconds, steps, volume
from tidemill.train.planner.constants import CALIBRATED, Constants
from tidemill.train.planner.devices import Device
from tidemill.train.planner.layout import Layout
from tidemill.train.planner.memory import Precision
from tidemill.train.planner.network import Block, Network
from tidemill.train.planner.stages import Stage, stages


@dataclass(frozen=True, kw_only=True)
class Running:
    """How a framework runs a layout: what it fuses and what it does at the same time."""

    fused: bool = True
    """Whether element-wise work is fused (`train.compile`, or kernels written so)."""
    overlap_data: bool = True
    """Whether gradients and gathered parameters move while other layers compute."""
    overlap_tensor: bool = False
    """Whether tensor collectives are cut up and run beside their products."""
    overlap_pipeline: bool = False
    """Whether activations travel between stages while others are computed."""
    split_hops: bool = False
    """Whether each tensor rank sends its part of an activation alone to the next stage."""
    recomputed: float = 1.0
    """Share of a layer's forward pass that is computed again where the layout recomputes."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step and where they go; the parts sum up to `total_s`."""

    compute_s: float
    tensor_s: float
    pipeline_s: float
    bubble_s: float
    data_s: float
    optimizer_s: float
    bytes_sent: Mapping[str, float]
    """Bytes that one rank sends in a step, by axis, hidden or not."""

    @property
    def total_s(self) -> float:
        return self.compute_s + self.tensor_s + self.pipeline_s + self.bubble_s + self.data_s + self.optimizer_s


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """One micro-batch through one part on one rank: seconds of computing, and of tensor collectives that nothing hides."""

    compute_s: float = 0.0
    tensor_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.compute_s + self.tensor_s


def step_time(
    network: Network,
    layout: Layout,
    device: Device,
    *,
    precision: Precision,
    running: Running | None = None,
    constants: Constants = CALIBRATED,
    measured: Measured | None = None,
) -> StepTime:
    """Time of one step, everything on the slowest rank's path."""
    clock = _Clock(network, layout, device, precision, running or Running(), constants, measured)
    return clock.step()


class _Clock:
    def __init__(
        self,
        network: Network,
        layout: Layout,
        device: Device,
        precision: Precision,
        running: Running,
        constants: Constants,
        measured: Measured | None,
    ) -> None:
        self.layout, self.device, self.precision = layout, device, precision
        self.running, self.constants, self.measured = running, constants, measured
        self.stages = stages(network, tensor=layout.tensor, pipeline=layout.pipeline)
        self.width = precision.compute
        self.flops = device.flops[precision.name] * device.clock_share * constants.product_share[device.generation]
        self.memory = device.memory_bandwidth * constants.memory_share

    def step(self) -> StepTime:
        passes = [self._pass(stage) for stage in self.stages]
        slowest = max((one for one, _ in passes), key=lambda one: one.total_s)
        all_s = sum(stage.alike * one.total_s for stage, (one, _) in zip(self.stages, passes, strict=True))
        m, v, p = self.layout.micro_batches, self.layout.interleave, self.layout.pipeline
        hop, hop_bytes = self._hop()
        data_s, data_bytes = max((self._data(stage, *one) for stage, one in zip(self.stages, passes, strict=True)), key=lambda one: one[0])
        tensor_bytes = m * max(sum(count * self._tensor_bytes(block) for block, count in stage) for stage in self.stages)
        held = max(stage.held(self.layout.tensor) for stage in self.stages) / self.layout.shard
        return StepTime(
            compute_s=m * slowest.compute_s,
            tensor_s=m * slowest.tensor_s,
            pipeline_s=0.0 if self.running.overlap_pipeline else 2 * m * v * hop,
            bubble_s=(all_s - slowest.total_s) / v + 2 * hop * (p - 1),
            data_s=data_s,
            optimizer_s=held * 2 * (self.precision.optimizer + self.precision.gradient) / self.memory,
            bytes_sent={"data": data_bytes, "tensor": tensor_bytes, "pipeline": 2 * m * v * hop_bytes},
        )

    def _pass(self, stage: Stage) -> tuple[_Pass, float]:
        """One micro-batch through a stage and back, and the seconds of its way forward."""
        compute = tensor = forward = 0.0
        for block, count in stage:
            there, back = self._forward(block), self._backward(block)
            compute += count * (there.compute_s + back.compute_s)
            tensor += count * (there.tensor_s + back.tensor_s)
            forward += count * there.total_s
        return _Pass(compute_s=compute, tensor_s=tensor), forward

    def _forward(self, block: Block) -> _Pass:
        return _Pass(compute_s=self._compute(block), tensor_s=self._tensor(block))

    def _backward(self, block: Block) -> _Pass:
        again = self.running.recomputed if self.layout.recompute and block.name == "layer" else 0.0
        compute = again * self._compute(block) + 2 * self._compute(block, attention=1.25)
        return _Pass(compute_s=compute, tensor_s=(again + 1) * self._tensor(block))

    def _compute(self, block: Block, *, attention: float = 1.0) -> float:
        """Seconds of a forward pass. The backward one has two products for each, and recomputes scores in a fused kernel (2.5 times)."""
        n, c = self.layout.micro_batch, self.constants
        products = sum(n * product.flops for product in block.products) / self.flops
        operands = sum(n * product.rows * (product.inner + product.outer) + product.inner * product.outer for product in block.products)
        scores = attention * n * block.attention_flops / self.flops / (c.attention_share if block.attention_flops else 1.0)
        whole = block.whole_traffic / (self.layout.tensor if self.layout.sequence_parallel else 1)
        traffic = n * (whole + block.split_traffic) * (1.0 if self.running.fused else c.unfused)
        return products + scores + (operands + traffic) * self.width / self.memory

    def _tensor(self, block: Block) -> float:
        """Seconds that the sums over the tensor axis add to a pass; cut up, a share of them is hidden behind products."""
        if self.layout.tensor == 1 or not block.reduced:
            return 0.0
        line = self._line("all_reduce", self.layout.tensor, 1)
        took = seconds("all_reduce", self._reduced_bytes(block), self.layout.tensor, line)
        if not self.running.overlap_tensor:
            return took
        return max(0.0, took - self._compute(block))

    def _reduced_bytes(self, block: Block) -> float:
        return self.layout.micro_batch * block.reduced * self.width

    def _tensor_bytes(self, block: Block) -> float:
        """Bytes that a rank sends for one micro-batch: forward, backward, and again where the layer is recomputed."""
        times = 3 if self.layout.recompute and block.name == "layer" else 2
        return times * volume("all_reduce", self.layout.tensor) * self._reduced_bytes(block)

    def _hop(self) -> tuple[float, float]:
        """Seconds and bytes from one stage to the next."""
        if self.layout.pipeline == 1:
            return 0.0, 0.0
        layer = next(block for block, _ in self.stages[0] if block.name == "layer")
        parts = self.layout.tensor if self.layout.sequence_parallel or self.running.split_hops else 1
        num_bytes = self.layout.micro_batch * layer.input * self.width / parts
        line = self._line("send_recv", 2, self.layout.tensor * self.layout.replicas)
        return seconds("send_recv", num_bytes, 2, line), num_bytes

    def _data(self, stage: Stage, one: _Pass, forward: float) -> tuple[float, float]:
        """Seconds that gradients and gathered parameters add to a step on one stage, and the bytes that a rank sends for them.

        A collective hides behind the computing of the micro-batches that are under way with it. Where stages are interleaved, whole groups of
        `pipeline` micro-batches pass one part before the next: the other parts' collectives have all of that time.
        """
        layout, p, v = self.layout, self.layout.pipeline, self.layout.interleave
        held = stage.held(layout.tensor)
        window = 1.0 if v == 1 else max(1.0, min(p, layout.micro_batches) * (1 - 1 / v))
        forward_s, backward_s = window * forward, window * (one.total_s - forward)
        gather = self._group("all_gather", held * self.precision.compute, layout.shard, layout.tensor)
        scatter = self._group("reduce_scatter", held * self.precision.reduce, layout.shard, layout.tensor)
        summed = self._group("all_reduce", held * self.precision.reduce / layout.shard, layout.data, layout.tensor * layout.shard)
        # Each micro-batch gathers and scatters, but for a pipeline's, which keep what is gathered until the step's end.
        times = layout.micro_batches if p == 1 else 1
        gathers = times if layout.stage == 3 else 1
        scatters = 1 if layout.stage == 1 else times
        again = gather if layout.stage == 3 and p == 1 else (0.0, 0.0)
        exposed = gathers * self._exposed(gather[0], forward_s)
        exposed += (scatters - 1) * self._exposed(again[0] + scatter[0], backward_s)
        exposed += self._exposed(again[0] + scatter[0] + summed[0], backward_s)
        sent = gathers * (gather[1] + again[1]) + scatters * scatter[1] + summed[1]
        return exposed, sent

    def _exposed(self, took: float, computing: float) -> float:
        """What is left of a collective beside so many seconds of computing."""
        return max(0.0, took - computing) if self.running.overlap_data else took

    def _group(self, name: str, num_bytes: float, ranks: int, stride: int) -> tuple[float, float]:
        if ranks == 1:
            return 0.0, 0.0
        line = self._line(name, ranks, stride)
        return seconds(name, num_bytes, ranks, line), num_bytes * volume(name, ranks)

    def _line(self, name: str, ranks: int, stride: int) -> Line:
        """The line of a group of ranks that lie `stride` apart; between nodes its members on one node share their adapters."""
        if self.measured is not None:
            return self.measured.lines[name]
        c, node = self.constants, self.device.node_size
        if stride * (ranks - 1) < node:
            return Line(alpha_s=c.link_alpha_s, bandwidth=self.device.link_bandwidth * c.link_share)
        members = max(1, min(ranks, node // stride))
        bandwidth = min(self.device.link_bandwidth * c.link_share, members * self.device.node_bandwidth * c.node_share)
        # A library takes a tree where a ring has too many steps: latency then grows with the logarithm.
        depth = 2 * (ranks - 1).bit_length()
        return Line(alpha_s=c.node_alpha_s * min(1.0, depth / steps(name, ranks)), bandwidth=bandwidth)
