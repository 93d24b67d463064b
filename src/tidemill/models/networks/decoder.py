"""A small GPT-like network over tokens: rotary attention, RMS norms, gated feed-forward layers.

In a project it reads a text to its end and answers from the last token; it starts from nothing but a tokenizer. With
`Shape.task` next_token it gives the next of each token. The test bed of every parallelism: it declares what tensor ranks
divide (`tp_plan`) and where a pipeline may cut (`split_points`). Positions are rotations of queries and keys (Su et al. 2021), the feed-forward layer is SwiGLU (Shazeer
2020) or GELU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from tidemill.core.errors import ConfigError
from tidemill.core.load import need
from tidemill.models.networks.base import Shape
from tidemill.models.networks.inputs import Head
from tidemill.models.networks.texts import TOKENIZER, TextNetwork


@dataclass(frozen=True, kw_only=True)
class DecoderParams:
    """How the network is made, and what it reads."""

    tokenizer: str = ""
    """tokenizer.json of the `tokenizers` library, or the folder that holds it; relative to the project. Must be given in a project."""
    column: str | None = None
    """Column of the texts; absent means the only one."""
    max_length: int = field(default=128, metadata={"min": 4, "max": 8192})
    """Tokens of a text, special ones included; the rest is cut off."""
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
    """Whether the head's weights are those of the tokens' vectors; for next_token alone."""

    def check(self) -> None:
        """Raise ConfigError where heads and width do not go together."""
        if self.width % (2 * self.heads):
            raise ConfigError(f"model.width: must be a multiple of 2 x model.heads, got width {self.width} with heads {self.heads}")


class Decoder(TextNetwork):
    """Builds `Transformer`s. Of next_token, `Shape.num_outputs` is the vocabulary; of the others the tokenizer says it."""

    ref = "decoder"
    Params: ClassVar[type] = DecoderParams
    space: ClassVar[Mapping[str, Mapping[str, Any]]] = {"depth": {"int": [1, 6]}, "dropout": {"float": [0.0, 0.3]}}
    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 5,
        "batch_size": 32,
        "early_stopping": 2,
        "optimizer": {"learning_rate": 3e-4},
        "clip": 1.0,
    }

    def source(self, params: DecoderParams, folder: Path) -> Path:
        if not params.tokenizer:
            raise ConfigError("model.tokenizer: must name a tokenizer.json, or the folder that holds one; got none")
        found = (folder / Path(params.tokenizer).expanduser()).resolve()
        found = found.parent if found.name == TOKENIZER else found
        if not (found / TOKENIZER).is_file():
            raise ConfigError(
                f"model.tokenizer: {found} must hold {TOKENIZER}, has none", hint="the tokenizers library writes it: Tokenizer.save"
            )
        return found

    def vocabulary(self, source: Path) -> int:
        try:
            known = need("tokenizers", "a text network").Tokenizer.from_file(str(source / TOKENIZER)).get_vocab()
        except Exception as error:  # the library raises Exception itself
            raise ConfigError(f"model.tokenizer: {source / TOKENIZER} must be a tokenizer of the tokenizers library: {error}") from error
        return 1 + max(known.values(), default=0)

    def build(self, shape: Shape, params: DecoderParams) -> nn.Module:
        return self.rebuild(shape, params, None)

    def rebuild(self, shape: Shape, params: DecoderParams, folder: Path | None) -> nn.Module:
        params.check()
        if shape.task == "next_token":
            return Transformer(shape.num_outputs, params)
        if params.tied:
            raise ConfigError("model.tied: must be false where a text has one answer, got true")
        return Transformer(self.vocabulary(folder or self.source(params, Path(shape.folder))), params, answers=shape)


class Transformer(nn.Module):
    """`input_ids` [N, L], and `attention_mask` [N, L] (1 for a token, 0 for padding), to scores of the next token [N, L, V].

    Args:
        answers: Told, it gives scores [N, S] of the whole text from its last token instead; padding must follow the text.
    """

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

    def __init__(self, vocabulary: int, params: DecoderParams, *, answers: Shape | None = None) -> None:
        super().__init__()
        self.tp_multiples = {"heads": params.heads}
        absent = [] if params.activation == "swiglu" else ["layers.*.feed.gate"]
        if answers is not None:
            absent.append("head")  # a few numbers, whole on every rank
        self.tp_plan = {name: style for name, style in type(self).tp_plan.items() if name not in absent}
        self.answers_once = answers is not None
        self.embed = nn.Embedding(vocabulary, params.width)
        self.rotary = Rotary(params.width // params.heads)
        self.layers = nn.ModuleList(Layer(params) for _ in range(params.depth))
        self.norm = RmsNorm(params.width)
        self.head = nn.Linear(params.width, vocabulary, bias=False) if answers is None else Head(params.width, answers)
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
        x_NLD = self.norm(x_NLD)
        scores: Tensor = self.head(_last(x_NLD, attention_mask) if self.answers_once else x_NLD)
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


def _last(x_NLD: Tensor, attention_mask: Tensor | None) -> Tensor:
    """What stands for the last token of each row [N, D]."""
    if attention_mask is None:
        return x_NLD[:, -1]
    last_N = (attention_mask.sum(dim=1) - 1).clamp(min=0)
    return x_NLD.gather(1, last_N[:, None, None].expand(-1, 1, x_NLD.shape[2])).squeeze(1)


def _seen(length: int, attention_mask: Tensor | None, device: torch.device) -> Tensor:
    """Which tokens [.., L] each token [L, ..] looks at, as booleans; one that is padding looks at itself, or it would have nothing."""
    places = torch.arange(length, device=device)
    before = places[None, :] <= places[:, None]
    if attention_mask is None:
        return before
    itself = places[None, :] == places[:, None]
    return (before & attention_mask.bool()[:, None, None, :]) | itself
