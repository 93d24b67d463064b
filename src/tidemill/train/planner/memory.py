"""Memory of a rank by part: the state as ZeRO shares it, activations after Korthikanti et al. 2022, and buffers of communication."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tidemill.train.planner.layout import Layout
from tidemill.train.planner.network import Block, Network
from tidemill.train.planner.stages import Stage, stages


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Bytes of each number of the state, and of what is computed with."""

    name: str
    parameter: float
    gradient: float
    optimizer: float
    """Moments, and a master copy where parameters are shorter."""
    compute: float
    """Bytes of activations and of gathered parameters."""
    reduce: float
    """Bytes of a gradient on its way."""


# As `[train] precision` does it: weights and moments in float32, products and what they read in less.
PRECISIONS = {
    "fp32": Precision(name="fp32", parameter=4, gradient=4, optimizer=8, compute=4, reduce=4),
    "bf16": Precision(name="bf16", parameter=4, gradient=4, optimizer=8, compute=2, reduce=4),
    "fp16": Precision(name="fp16", parameter=4, gradient=4, optimizer=8, compute=2, reduce=4),
}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on the fullest rank at the fullest moment of a step, by part."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float = 0.0
    buffers: float = 0.0
    """Copies for communication, gathered parameters, and what a block needs while it runs backward."""

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.buffers


def state(parameters: float, precision: Precision, *, stage: int = 0, shards: int = 1) -> Memory:
    """Parameters, gradients and optimizer of one rank (ZeRO; Rajbhandari et al. 2020, figure 1).

    Args:
        stage: What the shards share: 0 nothing, 1 the optimizer, 2 and gradients, 3 and parameters.

    Example:
        >>> mixed = Precision(name="fp16", parameter=2, gradient=2, optimizer=12, compute=2, reduce=2)
        >>> [round(state(7.5e9, mixed, stage=stage, shards=64).total / 1e9, 2) for stage in range(4)]
        [120.0, 31.41, 16.64, 1.88]
    """
    return Memory(
        parameters=parameters * precision.parameter / (shards if stage >= 3 else 1),
        gradients=parameters * precision.gradient / (shards if stage >= 2 else 1),
        optimizer=parameters * precision.optimizer / (shards if stage >= 1 else 1),
    )


def rank_memory(network: Network, layout: Layout, precision: Precision) -> Memory:
    """Memory of the fullest rank: the first stage of a pipeline has most micro-batches under way, the last one the head."""
    found = [_of_stage(stage, layout, precision) for stage in stages(network, tensor=layout.tensor, pipeline=layout.pipeline)]
    return max(found, key=lambda memory: memory.total)


def saved(block: Block, layout: Layout, precision: Precision) -> float:
    """Bytes of one micro-batch that stay on a rank until the block's backward pass."""
    whole = layout.tensor if layout.sequence_parallel else 1
    if layout.recompute and block.name == "layer":
        return layout.micro_batch * block.input / whole * precision.compute
    return _all_saved(block, layout, precision)


def _all_saved(block: Block, layout: Layout, precision: Precision) -> float:
    whole = block.whole_saved / (layout.tensor if layout.sequence_parallel else 1)
    return layout.micro_batch * ((whole + block.split_saved) * precision.compute + block.saved_bytes)


def _of_stage(stage: Stage, layout: Layout, precision: Precision) -> Memory:
    held = stage.held(layout.tensor)
    base = state(held, precision, stage=layout.stage if layout.shard > 1 else 0, shards=layout.shard)
    if _is_gathered_once(layout):
        base = replace(base, parameters=held * (precision.parameter / layout.shard + precision.compute))
    under_way = _under_way(layout, stage.index)
    kept = [(block, count, saved(block, layout, precision)) for block, count in stage]
    one = sum(count * size for _, count, size in kept)
    # Backward, block by block: activations of what lies before, gradients of what lies behind. More than one micro-batch leaves
    # gradients from the one before.
    best: tuple[float, float, float] = (0.0, 0.0, 0.0)
    before, behind = one, 0.0
    resident = layout.micro_batches > 1 or layout.data > 1
    for block, count, size in reversed(kept):
        share = block.held(layout.tensor) / held if held else 0.0
        again = _all_saved(block, layout, precision) if layout.recompute and block.name == "layer" else 0.0
        for edge in {1, count}:  # within equal blocks the sum is straight: its highest point is at an end
            activations = before - (edge - 1) * size + again
            gradients = base.gradients * (1.0 if resident else behind + edge * share)
            temporary = block.largest * precision.gradient if resident and layout.shard == 1 else 0.0
            transient = max(layout.micro_batch * block.loss_bytes, layout.micro_batch * block.transient * precision.compute + temporary)
            if activations + gradients + transient > sum(best):
                best = (activations, gradients, transient)
        before -= count * size - layout.micro_batch * block.lasting_bytes
        behind += count * share
    activations, gradients, transient = best
    return replace(
        base,
        gradients=max(gradients, base.gradients if resident else 0.0),
        activations=activations + (under_way - 1) * one,
        buffers=transient + _buffers(stage, layout, precision) + _between_stages(stage, layout, precision, under_way),
    )


def _is_gathered_once(layout: Layout) -> bool:
    """Whether a step gathers whole weights beside the shards that lie there between steps, as fully_shard does but for stage 3.

    Copies of what tensor or pipeline divide are shards of one part each.
    """
    return (layout.shard > 1 and layout.stage < 3) or (layout.data > 1 and layout.shard == 1 and layout.tensor * layout.pipeline > 1)


def _under_way(layout: Layout, place: int) -> float:
    """Micro-batches whose activations a stage holds at once."""
    p, m, v = layout.pipeline, layout.micro_batches, layout.interleave
    if p == 1:
        return 1.0
    if layout.schedule == "gpipe":
        return float(m)
    if v == 1:
        return float(min(p - place, m))
    # Narayanan et al. 2021, section 2.2; Korthikanti et al. 2022, equation 7.
    return float(min(p * (1 + (p - 1) / (p * v)), m)) if place == 0 else float(min(p, m))


def _between_stages(stage: Stage, layout: Layout, precision: Precision, under_way: float) -> float:
    """What a pipeline's stage keeps of every micro-batch of a step: room for what it receives, and the last one the scores of those that are done."""
    if layout.pipeline == 1:
        return 0.0
    hop = next(block.input for block, _ in stage if block.name == "layer") * precision.compute
    neighbours = (stage.index > 0) + (stage.index + stage.alike < layout.pipeline)
    scores = sum(count * block.lasting_bytes for block, count in stage)
    return layout.micro_batch * (layout.micro_batches * neighbours * hop + (layout.micro_batches - under_way) * scores)


def _buffers(stage: Stage, layout: Layout, precision: Precision) -> float:
    """Copies beside the state: buckets of gradients, gathered parameters of two blocks and the gradients of one."""
    largest = max(block.held(layout.tensor) for block, _ in stage)
    if layout.shard > 1 and layout.stage == 3:
        return largest * (2 * precision.compute + 2 * precision.reduce)
    if layout.shard > 1 or layout.data > 1:
        return largest * precision.reduce
    return 0.0
