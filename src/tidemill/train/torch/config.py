"""`[train]` for networks: how long, with how many rows at once, by which optimizer, on which ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from tidemill.core.errors import ConfigError
from tidemill.core.events import Events
from tidemill.train.torch.checkpoint import CheckpointConfig
from tidemill.train.torch.loader.config import LoaderConfig
from tidemill.train.torch.parallel.layout import Layout, ParallelConfig
from tidemill.train.torch.watch import FaultConfig

Struct = TypeVar("Struct")

# What a network trains with where neither the project nor the network's own defaults say.
FALLBACK: Mapping[str, Any] = {
    "epochs": 10,
    "batch_size": 256,
    "clip": 1.0,
    "early_stopping": 0,
    "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.01, "betas": (0.9, 0.999), "momentum": 0.9},
    "schedule": {"warmup": 0.05},
}

# Which optimizer a setting is for.
_OF = {"betas": ("adamw", "lamb"), "momentum": ("sgd",)}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights follow their gradients."""

    name: Literal["adamw", "lamb", "sgd"] = "adamw"
    """adamw | lamb, for batches of many thousand rows | sgd, with momentum."""
    learning_rate: float | None = field(default=None, metadata={"min": 0.0, "max": 1e3})
    """Largest rate, which the schedule starts from; absent means the network's own."""
    weight_decay: float | None = field(default=None, metadata={"min": 0.0, "max": 1e3})
    """Decay of weights, not of biases, norms and embeddings; absent means the network's own."""
    betas: tuple[float, ...] | None = None
    """adamw and lamb: how slowly the means of gradients and of their squares forget, two shares; absent means 0.9 and 0.999."""
    momentum: float | None = field(default=None, metadata={"min": 0.0, "max": 0.9999})
    """sgd: share of the last update that is kept; absent means 0.9."""

    def check(self) -> None:
        """Raise ConfigError where a value is wrong or is for another optimizer."""
        for key, names in _OF.items():
            if getattr(self, key) is not None and self.name not in names:
                raise ConfigError(f"train.optimizer.{key}: is for {' and '.join(names)}, got train.optimizer.name {self.name!r}")
        if self.betas is not None and (len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas)):
            raise ConfigError(f"train.optimizer.betas: must be two shares in 0..1 below 1, got {list(self.betas)}")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate goes over the steps."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Way down from the largest rate after the warm-up."""
    warmup: float | None = field(default=None, metadata={"min": 0.0, "max": 1e9})
    """Steps over which the rate rises from 0; below 1 a share of all steps; absent means the network's own."""
    floor: float = field(default=0.0, metadata={"min": 0.0, "max": 1.0})
    """Share of the largest rate that cosine and linear end on."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """How a network is fitted; other kinds of models have no use for these."""

    epochs: int | None = field(default=None, metadata={"min": 1, "max": 1_000_000})
    """Passes over the training rows; absent means the network's own."""
    max_steps: int | None = field(default=None, metadata={"min": 1, "max": 1_000_000_000})
    """Steps after which training ends even within a pass; absent means no such limit."""
    batch_size: int | None = field(default=None, metadata={"min": 1, "max": 16_777_216})
    """Rows of one step over all ranks and micro-batches; absent means the network's own."""
    batch_tokens: int | None = field(default=None, metadata={"min": 16, "max": 1_073_741_824})
    """Text: tokens of one step, padding counted, instead of batch_size; rows of like length share a batch."""
    accumulate: int = field(default=1, metadata={"min": 1, "max": 65_536})
    """Micro-batches that a step is divided into on each rank, to fit into memory; the step stays the same."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What matrix products are computed in; weights stay fp32, and fp16 scales the loss as it must."""
    compile: bool = False
    """Compile the network with torch.compile: minutes at the start, faster steps."""
    clip: float | None = field(default=None, metadata={"min": 0.0, "max": 1e9})
    """Largest global norm of a step's gradient; 0 does not clip; absent means the network's own."""
    ema: float = field(default=0.0, metadata={"min": 0.0, "max": 0.999999})
    """Decay of a moving average of the weights, which is judged and kept in their place, such as 0.999; 0 keeps the weights."""
    label_smoothing: float = field(default=0.0, metadata={"min": 0.0, "max": 0.5})
    """Share of a class's weight that goes to all classes alike."""
    early_stopping: int | None = field(default=None, metadata={"min": 0, "max": 1_000_000})
    """Evaluations without a lower validation loss after which training ends; 0 never; absent means the network's own."""
    evaluate_every: int = field(default=0, metadata={"min": 0, "max": 1_000_000_000})
    """Steps between evaluations on the validation rows; 0 evaluates after each pass. The best weights are kept."""
    tensorboard: str | None = None
    """Folder for TensorBoard's curves, relative to the project; absent writes none."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How weights follow their gradients."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How the learning rate goes over the steps."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """How rows are read and shuffled, and how far ahead."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How many ranks train together, and what each axis of them divides."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """How often a run is saved, and how many of its states stay."""
    fault: FaultConfig = field(default_factory=FaultConfig)
    """What happens when ranks fail, hang, or the loss goes wrong."""

    def check(self) -> None:
        """Raise ConfigError where settings contradict each other."""
        if self.batch_size is not None and self.batch_tokens is not None:
            raise ConfigError(f"train.batch_tokens: must stand without train.batch_size, got {self.batch_tokens} and {self.batch_size}")
        layout = Layout.of(self.parallel, ranks=self.parallel.ranks, micro_batches=self.accumulate)
        parts = layout.readers * self.accumulate
        if self.batch_size is not None and self.batch_size < parts:
            raise ConfigError(
                f"train.batch_size: must give each micro-batch a row, got {self.batch_size} rows for "
                f"data {self.parallel.data} x shard {self.parallel.shard} x accumulate {self.accumulate} = {parts} micro-batches"
            )


def resolve(config: NetworkConfig, defaults: Mapping[str, Any]) -> NetworkConfig:
    """The config with what it leaves open: the network's `defaults`, a tree as in the project file, then `FALLBACK`.

    Raises:
        ConfigError: If rows of a step and micro-batches do not go together.
    """
    tokens = config.batch_tokens is not None
    own = NetworkConfig(**{known.name: getattr(config, known.name) for known in dataclasses.fields(NetworkConfig)})  # of a larger [train]
    filled = _filled(_filled(own, defaults), FALLBACK)
    others: dict[str, Any] = {key: None for key, names in _OF.items() if filled.optimizer.name not in names}
    filled = dataclasses.replace(filled, optimizer=dataclasses.replace(filled.optimizer, **others))
    filled = dataclasses.replace(filled, batch_size=None) if tokens else dataclasses.replace(filled, batch_tokens=None)
    filled.check()
    return filled


def _filled(config: Struct, defaults: Mapping[str, Any]) -> Struct:
    """`config` with `defaults` where it has None, also inside its structs."""
    changes: dict[str, Any] = {}
    for key, value in defaults.items():
        current = getattr(config, key)
        if dataclasses.is_dataclass(current) and isinstance(value, Mapping):
            changes[key] = _filled(current, value)
        elif current is None:
            changes[key] = value
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a fit of a network takes from its project, beside the rows and the network's parameters."""

    config: NetworkConfig = field(default_factory=NetworkConfig)
    launcher: str = "local"
    """What starts ranks where there is more than one."""
    folder: Path | None = None
    """Where checkpoints and ranks' files live; what an unfinished fit left there is resumed. None keeps none."""
    project: Path = Path(".")
    """What relative paths are resolved against."""
    events: Events = field(default_factory=Events, compare=False)
    """Hears of steps, skipped batches and the like."""
    profile: Path | None = None
    """Where a trace of some steps is written; None takes none."""
    report: dict[str, Any] = field(default_factory=dict, compare=False)
    """Filled by the fit: what it measured of its own speed, and what a trace says."""
