"""How many ranks train one model, and what each axis of them divides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tidemill.core.errors import ConfigError

# Outermost first: ranks beside each other share the innermost axis, the one that speaks most.
AXES = ("pipeline", "data", "shard", "tensor")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """`[train.parallel]`: ranks along each axis; their product is the number of ranks."""

    data: int = field(default=1, metadata={"min": 1, "max": 65_536})
    """Copies of the model, each of which reads its own part of every step."""
    shard: int = field(default=1, metadata={"min": 1, "max": 65_536})
    """Ranks that read their own part of every step too, and hold a part of the weights, gradients or optimizer state each."""
    tensor: int = field(default=1, metadata={"min": 1, "max": 1_024})
    """Ranks that divide single layers, as the model's `tp_plan` says."""
    pipeline: int = field(default=1, metadata={"min": 1, "max": 1_024})
    """Ranks that hold consecutive layers, from the model's `split_points`."""
    shard_stage: int = field(default=3, metadata={"min": 1, "max": 3})
    """What is divided over `shard` between uses: 1 the optimizer's state, 2 the gradients too, 3 the weights too."""
    offload: bool = False
    """Keep what `shard` divides in the memory of the CPU; the optimizer steps there."""
    schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """Order of a pipeline's micro-batches: each backward as early as it can be, or all forwards before all backwards."""
    recompute: bool = False
    """Keep only the input of each layer for the backward, and compute the layer again there: less memory, a third more work."""

    @property
    def ranks(self) -> int:
        """Ranks that a launch of this layout has."""
        return self.data * self.shard * self.tensor * self.pipeline

    def check(self) -> None:
        """Raise ConfigError where a setting has nothing to act on."""
        if self.offload and self.shard == 1:
            raise ConfigError(
                "train.parallel.offload: needs train.parallel.shard of at least 2, got 1", hint="only what is sharded is offloaded"
            )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A `ParallelConfig` on a launch, checked against it."""

    config: ParallelConfig
    micro_batches: int = 1
    """Micro-batches of one step on each rank."""

    @classmethod
    def of(cls, config: ParallelConfig, *, ranks: int, micro_batches: int = 1) -> Layout:
        """The layout on a launch of `ranks`.

        Raises:
            ConfigError: If the product is another number of ranks, or a pipeline has too few micro-batches.
        """
        config.check()
        layout = cls(config=config, micro_batches=micro_batches)
        if config.ranks != ranks:
            raise ConfigError(f"{layout.factors} = {config.ranks} ranks, but the launch has {ranks}")
        if config.schedule == "1f1b" and micro_batches < config.pipeline:
            raise ConfigError(
                f"train.accumulate: must be at least the {config.pipeline} stages of the pipeline with schedule 1f1b, got {micro_batches}",
                hint="more micro-batches keep more stages busy; gpipe takes any number",
            )
        return layout

    @property
    def sizes(self) -> dict[str, int]:
        """Ranks along each axis, outermost first."""
        return {axis: getattr(self.config, axis) for axis in AXES}

    @property
    def factors(self) -> str:
        """The axes in words: `data 2 x tensor 3 x pipeline 2`."""
        named = {axis: getattr(self.config, axis) for axis in ("data", "shard", "tensor", "pipeline")}
        return " x ".join(f"{axis} {size}" for axis, size in named.items() if size > 1) or "data 1"

    @property
    def readers(self) -> int:
        """Ranks that read different rows: data times shard."""
        return self.config.data * self.config.shard

    @property
    def plain(self) -> bool:
        """Whether one rank does it all."""
        return self.config.ranks == 1

    def coordinates(self, rank: int) -> dict[str, int]:
        """Place of a rank on each axis."""
        places, rest = {}, rank
        for axis, size in reversed(self.sizes.items()):
            rest, places[axis] = divmod(rest, size)
        return {axis: places[axis] for axis in AXES}

    def reader(self, rank: int) -> int:
        """Which part of every step a rank reads, in 0..readers - 1: alike for all ranks of a tensor or pipeline group."""
        at = self.coordinates(rank)
        return at["data"] * self.config.shard + at["shard"]

    def rank_of(self, **places: int) -> int:
        """The rank at a place; an axis that is not named counts as 0."""
        rank = 0
        for axis, size in self.sizes.items():
            rank = rank * size + places.get(axis, 0)
        return rank
