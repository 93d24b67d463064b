"""How ranks share a step: the four axes, micro-batches and recomputation; which layouts exist, and why others do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tidemill.train.planner.network import Network

Schedule = Literal["1f1b", "gpipe"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to spread a step. Ranks are numbered tensor first, then shard, data and pipeline, so that tensor groups stay in a node."""

    data: int = 1
    """Groups of ranks with a whole copy of the state."""
    shard: int = 1
    """Ranks that share one copy."""
    tensor: int = 1
    """Ranks that share each matrix product."""
    pipeline: int = 1
    """Stages that share the layers."""
    stage: int = 3
    """What the shards share: 1 optimizer, 2 and gradients, 3 and parameters (ZeRO)."""
    micro_batch: int = 1
    """Rows of one micro-batch of one rank."""
    micro_batches: int = 1
    """Micro-batches of a step on each rank."""
    recompute: bool = False
    """Whether layers keep their input alone and compute the rest again."""
    schedule: Schedule = "1f1b"
    """Order of micro-batches through the stages."""
    interleave: int = 1
    """Parts of the model on each stage, taken in turn (Narayanan et al. 2021)."""
    sequence_parallel: bool = False
    """Whether what is whole on the tensor axis is split along the sequence (Korthikanti et al. 2022)."""

    @property
    def ranks(self) -> int:
        return self.data * self.shard * self.tensor * self.pipeline

    @property
    def replicas(self) -> int:
        """Places that take different rows."""
        return self.data * self.shard

    @property
    def batch(self) -> int:
        """Rows of a step over all ranks."""
        return self.replicas * self.micro_batch * self.micro_batches

    @property
    def text(self) -> str:
        axes = [f"data {self.data}"] if self.data > 1 else []
        axes += [f"shard {self.shard} (stage {self.stage})"] if self.shard > 1 else []
        axes += [f"tensor {self.tensor}"] if self.tensor > 1 else []
        axes += [f"pipeline {self.pipeline}"] if self.pipeline > 1 else []
        return " x ".join(axes) or "one rank"


@dataclass(frozen=True, kw_only=True)
class Impossible:
    """A layout's axes and why they cannot be."""

    layout: Layout
    why: str


def layouts(
    network: Network, *, ranks: int, batch: int, node_size: int, is_split_along_sequence: bool = False
) -> Iterator[Layout | Impossible]:
    """Every product of the axes that makes so many ranks; the legal ones with each micro-batch, with and without recomputation."""
    for tensor in _divisors(ranks):
        for pipeline in _divisors(ranks // tensor):
            places = ranks // tensor // pipeline
            axes = Layout(data=places, tensor=tensor, pipeline=pipeline, sequence_parallel=is_split_along_sequence and tensor > 1)
            why = illegal(network, axes, batch=batch, node_size=node_size)
            if why is not None:
                yield Impossible(layout=axes, why=why)
                continue
            for shard, stage in _shardings(places):
                split = replace(axes, data=places // shard, shard=shard, stage=stage)
                for micro_batch in _micro_batches(batch // places):
                    if batch // places // micro_batch < pipeline:
                        continue
                    for recompute in (False, True):
                        yield replace(split, micro_batch=micro_batch, micro_batches=batch // places // micro_batch, recompute=recompute)


def illegal(network: Network, layout: Layout, *, batch: int, node_size: int) -> str | None:
    """Why a product of axes cannot be, or None."""
    if (why := network.illegal(layout.tensor, layout.pipeline)) is not None:
        return why
    if layout.tensor > node_size or node_size % layout.tensor:
        return f"tensor {layout.tensor} crosses nodes of {node_size}"
    if batch % layout.replicas:
        return f"batch {batch} must be divisible by data x shard {layout.replicas}"
    if batch // layout.replicas < layout.pipeline:
        return f"{batch // layout.replicas} rows of a rank are fewer micro-batches than pipeline {layout.pipeline}"
    return None


def _shardings(places: int) -> Iterator[tuple[int, int]]:
    yield 1, 3
    for shard in _divisors(places)[1:]:
        for stage in (1, 2, 3):
            yield shard, stage


def _micro_batches(rows: int) -> list[int]:
    """Powers of two that divide the rows of one place, and all of them."""
    return sorted({size for size in (2**power for power in range(12)) if rows % size == 0} | {rows})


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
