"""A small GPT-like network over tokens: rotary attention, RMS norms, gated feed-forward layers.

The test bed of every parallelism: it declares what tensor ranks divide (`tp_plan`) and where a pipeline may cut
(`split_points`). Positions are rotations of queries and keys (Su et al. 2021), the feed-forward layer is SwiGLU (Shazeer
2020) or GELU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from tidemill.core.errors import ConfigError
from tidemill.models.networks.base import Shape


@dataclass(frozen=True, kw_only=True)
class DecoderParams:
    """How the network is made."""

    depth: int = field(default=4, metadata={"min": 1, "max": 1_024})
    """Layers, each of attention and a feed-forward part."""
    width: int = field(default=256, metadata={"min": 2, "max": 65_536})
    """Numbers that stand for a token between layers."""
    heads: int = field(default=4, metadata={"min": 1, "max": 1_024})
    """Attention heads; width / heads must be even."""
    hidden: int = field(default=768, metadata={"min": 1, "max": 262_144})
    """Units of a feed-forward part."""
    activation: Literal["swiglu", "gelu"] = "swiglu"
    """What the feed-forward part is."""
    dropout: float = field(default=0.0, metadata={"min": 0.0, "max": 0.9})
    """Share of what each part adds that a training step leaves out."""
    tied: bool = False
    """Whether the head's weights are those of the tokens' vectors."""

    def check(self) -> None:
        """Raise ConfigError where heads and width do not go together."""
        if self.width % (2 * self.heads):
            raise ConfigError(f"model.width: must be a multiple of 2 x model.heads, got width {self.width} with heads {self.heads}")


class Decoder:
    """Builds `Transformer`s; `Shape.num_outputs` is the vocabulary."""

    ref = "tidemill.models.networks.decoder:Decoder"
    Params: ClassVar[type] = DecoderParams
    defaults: ClassVar[Mapping[str, Any]] = {"epochs": 1, "batch_size": 32, "optimizer": {"learning_rate": 3e-4}, "clip": 1.0}

    def build(self, shape: Shape, params: DecoderParams) -> nn.Module:
        params.check()
        return Transformer(shape.num_outputs, params)


class Transformer(nn.Module):
    """`input_ids` [N, L], and `attention_mask` [N, L] (1 for a token, 0 for padding), to scores of the next token [N, L, V]."""

    tp_plan: Mapping[str, str] = {
        "embed": "embedding_rowwise",
        "layers.*.attention.query": "colwise",
        "layers.*.attention.key": "colwise",
        "layers.*.attention.value": "colwise",
        "layers.*.attention.out": "rowwise",
        "layers.*.feed.up": "colwise",
        "layers.*.feed.gate": "colwise",
        "layers.*.feed.down": "rowwise",
        "head": "colwise_gather_output",
    }
    split_points = "layers"

    def __init__(self, vocabulary: int, params: DecoderParams) -> None:
        super().__init__()
        self.tp_multiples = {"heads": params.heads}
        self.tp_plan = {name: style for name, style in type(self).tp_plan.items() if params.activation == "swiglu" or "gate" not in name}
        self.embed = nn.Embedding(vocabulary, params.width)
        self.rotary = Rotary(params.width // params.heads)
        self.layers = nn.ModuleList(Layer(params) for _ in range(params.depth))
        self.norm = RmsNorm(params.width)
        self.head = nn.Linear(params.width, vocabulary, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:  # what writes into the stream is scaled down by the number of writers, as in GPT-2
                writes = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * params.depth) ** 0.5 if writes else 0.02)
        if params.tied:
            self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        length = input_ids.shape[1]
        turn = self.rotary(torch.arange(length, device=input_ids.device))
        seen = _seen(length, attention_mask, input_ids.device)
        x_NLD = self.embed(input_ids)
        for layer in self.layers:
            x_NLD = layer(x_NLD, turn, seen)
        scores: Tensor = self.head(self.norm(x_NLD))
        return scores


class RmsNorm(nn.Module):
    """Each token divided by the root of its mean square (Zhang and Sennrich 2019), in float32; written out, as ONNX 19 has no such node."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_NLD: Tensor) -> Tensor:
        wide = x_NLD.float()
        return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + 1e-6)).to(x_NLD.dtype) * self.weight


class Rotary(nn.Module):
    """Positions [L] to the cosines and sines [2, L, W / 2] that turn pairs of numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("pace", 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        angles = positions.float()[:, None] * self.pace
        return torch.stack((angles.cos(), angles.sin()))


class Layer(nn.Module):
    """Attention, then the feed-forward part; each reads the normed stream and adds to it."""

    def __init__(self, params: DecoderParams) -> None:
        super().__init__()
        self.before_attention = RmsNorm(params.width)
        self.attention = Attention(params)
        self.before_feed = RmsNorm(params.width)
        self.feed = Feed(params)
        self.dropout = nn.Dropout(params.dropout)

    def forward(self, x_NLD: Tensor, turn: Tensor, seen: Tensor) -> Tensor:
        x_NLD = x_NLD + self.dropout(self.attention(self.before_attention(x_NLD), turn, seen))
        fed: Tensor = self.dropout(self.feed(self.before_feed(x_NLD)))
        return x_NLD + fed


class Attention(nn.Module):
    """Every token looks at itself and those before it. Under tensor parallelism each rank has some of the heads."""

    def __init__(self, params: DecoderParams) -> None:
        super().__init__()
        self.head_width = params.width // params.heads
        self.query = nn.Linear(params.width, params.width, bias=False)
        self.key = nn.Linear(params.width, params.width, bias=False)
        self.value = nn.Linear(params.width, params.width, bias=False)
        self.out = nn.Linear(params.width, params.width, bias=False)

    def forward(self, x_NLD: Tensor, turn: Tensor, seen: Tensor) -> Tensor:
        query, key, value = (
            part(x_NLD).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )  # [N, H, L, W], H the heads that are here
        mixed = scaled_dot_product_attention(_turned(query, turn), _turned(key, turn), value, attn_mask=seen)
        made: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return made


class Feed(nn.Module):
    """The feed-forward part of a layer."""

    def __init__(self, params: DecoderParams) -> None:
        super().__init__()
        self.up = nn.Linear(params.width, params.hidden, bias=False)
        self.gate = nn.Linear(params.width, params.hidden, bias=False) if params.activation == "swiglu" else None
        self.down = nn.Linear(params.hidden, params.width, bias=False)

    def forward(self, x_NLD: Tensor) -> Tensor:
        made: Tensor = self.down(gelu(self.up(x_NLD)) if self.gate is None else silu(self.gate(x_NLD)) * self.up(x_NLD))
        return made


def _turned(x_NHLW: Tensor, turn: Tensor) -> Tensor:
    first, second = x_NHLW.chunk(2, dim=-1)
    cos, sin = turn.to(x_NHLW.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _seen(length: int, attention_mask: Tensor | None, device: torch.device) -> Tensor:
    """Which tokens [.., L] each token [L, ..] looks at, as booleans; one that is padding looks at itself, or it would have nothing."""
    places = torch.arange(length, device=device)
    before = places[None, :] <= places[:, None]
    if attention_mask is None:
        return before
    itself = places[None, :] == places[:, None]
    return (before & attention_mask.bool()[:, None, None, :]) | itself
