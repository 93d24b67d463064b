"""DCN-V2: explicit crosses of features beside or before a deep network (Wang and others, "DCN V2", 2021), for click-through data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tidemill.models.networks.base import NetworkModel, Shape
from tidemill.models.networks.inputs import Head, Inputs


@dataclass(frozen=True, kw_only=True)
class DcnParams:
    """How the network is made."""

    crosses: int = field(default=3, metadata={"min": 1, "max": 16})
    """Cross layers: n of them make products of up to n + 1 features."""
    rank: int = field(default=0, metadata={"min": 0, "max": 65_536})
    """Rank of a cross layer's matrix, a quarter of the inputs' width or less to be worth it; 0 is the full matrix."""
    structure: Literal["parallel", "stacked"] = "parallel"
    """parallel: the deep part beside the crosses; stacked: behind them."""
    depth: int = field(default=2, metadata={"min": 0, "max": 64})
    """Layers of the deep part; 0 has none."""
    width: int = field(default=256, metadata={"min": 1, "max": 65_536})
    """Units of each."""
    dropout: float = field(default=0.1, metadata={"min": 0.0, "max": 0.9})
    """Share of the deep part's units that a training step leaves out."""
    max_embedding: int = field(default=16, metadata={"min": 1, "max": 4096})
    """Largest width of a category's learned vector."""


class Dcn(NetworkModel):
    """A deep and cross network."""

    ref = "dcn"
    Params: ClassVar[type] = DcnParams
    space: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "crosses": {"int": [1, 4]},
        "width": {"choice": [128, 256, 512]},
        "dropout": {"float": [0.0, 0.4]},
        "max_embedding": {"choice": [8, 16, 32]},
    }
    defaults: ClassVar[Mapping[str, Any]] = {"epochs": 20, "batch_size": 512, "early_stopping": 3, "optimizer": {"learning_rate": 5e-3}}

    def build(self, shape: Shape, params: DcnParams) -> nn.Module:
        return DeepCross(shape, params)


class DeepCross(nn.Module):
    """`features` [N, F] to scores [N, S]."""

    def __init__(self, shape: Shape, params: DcnParams) -> None:
        super().__init__()
        self.inputs = Inputs(shape, max_embedding=params.max_embedding)
        width = self.inputs.width
        self.cross = nn.ModuleList(Cross(width, rank=params.rank) for _ in range(params.crosses))
        self.deep = nn.ModuleList(
            Deep(before, after, dropout=params.dropout) for before, after in pairwise([width, *[params.width] * params.depth])
        )
        self.parallel = params.structure == "parallel"
        deep_width = params.width if params.depth else width
        self.head = Head(deep_width + (width if self.parallel and params.depth else 0), shape)

    def forward(self, features: Tensor) -> Tensor:
        first = self.inputs(features)
        crossed = first
        for cross in self.cross:
            crossed = cross(first, crossed)
        hidden = first if self.parallel and len(self.deep) else crossed
        for layer in self.deep:
            hidden = layer(hidden)
        scores: Tensor = self.head(torch.cat([crossed, hidden], dim=1) if self.parallel and len(self.deep) else hidden)
        return scores


class Cross(nn.Module):
    """x0 * (W x + b) + x, W being U V of a low rank where that is asked for."""

    def __init__(self, width: int, *, rank: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(width, rank, bias=False) if rank else nn.Identity()
        self.linear = nn.Linear(rank or width, width)
        nn.init.zeros_(self.linear.bias)

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        made: Tensor = self.linear(self.narrow(x))
        return first * made + x


class Deep(nn.Module):
    """Linear, activated, with dropout."""

    def __init__(self, before: int, after: int, *, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.dropout(self.linear(x).relu())
        return made
