"""A multilayer perceptron over normal numbers and embedded categories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from tidemill.models.networks.base import NetworkModel, Shape
from tidemill.models.networks.inputs import Head, Inputs

ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
NORMS: Mapping[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}


@dataclass(frozen=True, kw_only=True)
class MlpParams:
    """How the network is made."""

    depth: int = field(default=3, metadata={"min": 1, "max": 64})
    """Hidden layers."""
    width: int = field(default=256, metadata={"min": 1, "max": 65_536})
    """Units of each."""
    activation: Literal["relu", "gelu", "silu"] = "silu"
    """What follows each layer."""
    normalize: Literal["none", "layer", "batch"] = "layer"
    """layer: over a row's units; batch: each unit over the rows of a micro-batch."""
    dropout: float = field(default=0.1, metadata={"min": 0.0, "max": 0.9})
    """Share of units that a training step leaves out."""
    residual: bool = False
    """Whether a layer adds to what it got, from the second on."""
    max_embedding: int = field(default=32, metadata={"min": 1, "max": 4096})
    """Largest width of a category's learned vector."""


class Mlp(NetworkModel):
    """A multilayer perceptron."""

    ref = "mlp"
    Params: ClassVar[type] = MlpParams
    space: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "depth": {"int": [1, 5]},
        "width": {"choice": [64, 128, 256, 512]},
        "dropout": {"float": [0.0, 0.4]},
    }
    defaults: ClassVar[Mapping[str, Any]] = {"epochs": 30, "batch_size": 256, "early_stopping": 6, "optimizer": {"learning_rate": 2e-3}}

    def build(self, shape: Shape, params: MlpParams) -> nn.Module:
        return Perceptron(shape, params)


class Perceptron(nn.Module):
    """`features` [N, F] to scores [N, S]."""

    # A norm sees all units of a row: what ranks computed of a layer is put together behind it.
    tp_plan: ClassVar[Mapping[str, str]] = {"layers.*.linear": "colwise_gather_output"}
    split_points = "layers"

    def __init__(self, shape: Shape, params: MlpParams) -> None:
        super().__init__()
        self.inputs = Inputs(shape, max_embedding=params.max_embedding)
        widths = [self.inputs.width, *[params.width] * params.depth]
        self.layers = nn.ModuleList(Layer(before, after, params) for before, after in pairwise(widths))
        self.head = Head(params.width, shape)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.inputs(features)
        for layer in self.layers:
            hidden = layer(hidden)
        scores: Tensor = self.head(hidden)
        return scores


class Layer(nn.Module):
    """Linear, normalised, activated, with dropout; added to its input where that is asked for and of its width."""

    def __init__(self, before: int, after: int, params: MlpParams) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)
        self.norm = NORMS[params.normalize](after)
        self.activation = ACTIVATIONS[params.activation]()
        self.dropout = nn.Dropout(params.dropout)
        self.residual = params.residual and before == after

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.dropout(self.activation(self.norm(self.linear(x))))
        return x + made if self.residual else made
