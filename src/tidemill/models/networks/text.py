"""A Hugging Face encoder of texts from a local folder, fine-tuned whole, by low-rank updates (LoRA, Hu and others, 2021) or by its head alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tidemill.core.artifact import hash_file
from tidemill.core.errors import ConfigError
from tidemill.core.load import need
from tidemill.models.networks.base import Shape
from tidemill.models.networks.texts import TOKENIZER, TextNetwork

WEIGHTS = "model.safetensors"

_PURPOSE = "a text network"


@dataclass(frozen=True, kw_only=True)
class TextParams:
    """Which encoder, and how it is tuned."""

    encoder: str
    """Folder with config.json, tokenizer.json and model.safetensors, as Hugging Face writes it; relative to the project."""
    column: str | None = None
    """Column of the texts; absent means the only one."""
    max_length: int = field(default=128, metadata={"min": 4, "max": 8192})
    """Tokens of a text, special ones included; the rest is cut off."""
    tune: Literal["full", "lora", "head"] = "full"
    """full: every weight; lora: a low-rank update of each matrix of the encoder, added to it in the end; head: what follows the encoder."""
    rank: int = field(default=16, metadata={"min": 1, "max": 1024})
    """lora: rank of an update."""
    alpha: float = field(default=32.0, metadata={"min": 0.0, "max": 4096.0})
    """lora: an update is scaled by alpha / rank."""
    dropout: float = field(default=0.1, metadata={"min": 0.0, "max": 0.9})
    """Share of units that a training step leaves out, in the encoder and before the head."""


class Text(TextNetwork):
    """An encoder with a head over its pooled answer."""

    ref = "text"
    Params: ClassVar[type] = TextParams
    files: ClassVar[tuple[str, ...]] = ("config.json", TOKENIZER)
    space: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tune": {"choice": ["full", "lora"]},
        "dropout": {"float": [0.0, 0.3]},
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 3,
        "batch_size": 32,
        "optimizer": {"learning_rate": 1e-4, "weight_decay": 0.01},
        "schedule": {"warmup": 0.1},
    }

    def source(self, params: TextParams, folder: Path) -> Path:
        found = (folder / Path(params.encoder).expanduser()).resolve()
        for name in self.files:
            if not (found / name).is_file():
                raise ConfigError(
                    f"model.encoder: {found} must hold {name}, has none", hint="save_pretrained of transformers writes such folders"
                )
        return found

    def vocabulary(self, source: Path) -> int:
        return int(_config(source)["vocab_size"])

    def pad_id(self, source: Path) -> int:
        return int(_config(source).get("pad_token_id") or 0)

    def preprocess(self, params: TextParams, column: str, folder: Path) -> dict[str, Any]:
        config = _config(self.source(params, folder))
        longest = int(config.get("max_position_embeddings") or params.max_length)
        if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer"):
            longest -= 2  # these count positions from 2
        if params.max_length > longest:
            raise ConfigError(f"model.max_length: the encoder takes at most {longest} tokens, got {params.max_length}")
        return super().preprocess(params, column, folder)

    def content(self, params: TextParams, folder: Path) -> dict[str, str]:
        weights = self.source(params, folder) / WEIGHTS
        return {**super().content(params, folder), **({WEIGHTS: hash_file(weights)} if weights.is_file() else {})}

    def build(self, shape: Shape, params: TextParams) -> nn.Module:
        folder = self.source(params, Path(shape.folder))
        if not (folder / WEIGHTS).is_file():
            raise ConfigError(f"model.encoder: {folder} must hold {WEIGHTS}, weights that hold no code")
        network = Classifier(_architecture(folder, shape, params, weights=True), shape)
        if params.tune == "lora":
            network.low_rank(rank=params.rank, scale=params.alpha / params.rank)
        elif params.tune == "head":
            network.freeze()
        return network

    def rebuild(self, shape: Shape, params: TextParams, folder: Path | None) -> nn.Module:
        return Classifier(_architecture(folder or self.source(params, Path(shape.folder)), shape, params, weights=False), shape)

    def settled(self, state: dict[str, np.ndarray], params: TextParams) -> dict[str, np.ndarray]:
        """With low-rank updates added to the matrices that they are of."""
        made = {name: value for name, value in state.items() if not name.endswith((".down", ".up"))}
        for name, up in state.items():
            if name.endswith(".up"):
                base_name = name.removesuffix(".up") + ".weight"
                made[base_name] = made[base_name] + np.float32(params.alpha / params.rank) * (up @ state[name.removesuffix("up") + "down"])
        return made


class Classifier(nn.Module):
    """`input_ids` and `attention_mask` int64 [N, L] to scores [N, S]."""

    def __init__(self, model: Any, shape: Shape) -> None:
        super().__init__()
        self.model = model
        self.unit = (shape.scale, shape.center) if shape.task == "regression" else None

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        scores: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return scores if self.unit is None else scores * self.unit[0] + self.unit[1]

    def freeze(self) -> None:
        """Train what follows the encoder alone."""
        for parameter in self.model.base_model.parameters():
            parameter.requires_grad_(False)

    def low_rank(self, *, rank: int, scale: float) -> None:
        """Freeze the encoder, with an update of a low rank for each matrix of its layers."""
        self.freeze()
        for module in list(self.model.base_model.encoder.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, LowRank(child, rank=rank, scale=scale))


class LowRank(nn.Linear):
    """A frozen matrix and a learned update `up @ down` of a low rank, 0 to begin with."""

    def __init__(self, frozen: nn.Linear, *, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = frozen.in_features, frozen.out_features
        self.weight, self.bias, self.scale = frozen.weight, frozen.bias, scale
        self.down = nn.Parameter(torch.randn(rank, frozen.in_features) / rank)
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        update = nn.functional.linear(nn.functional.linear(input, self.down), self.up)
        return super().forward(input) + self.scale * update


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def _architecture(folder: Path, shape: Shape, params: TextParams, *, weights: bool) -> Any:
    """The classifier over the encoder that `folder` describes, with its weights or without."""
    transformers = need("transformers", _PURPOSE)
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
        config.num_labels = shape.num_outputs
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "attention_dropout"):
            if hasattr(config, name):
                setattr(config, name, params.dropout)
        kind = transformers.AutoModelForSequenceClassification
        if not weights:
            return kind.from_config(config, attn_implementation="eager", dtype=torch.float32)
        return kind.from_pretrained(
            str(folder), config=config, local_files_only=True, use_safetensors=True, dtype=torch.float32, attn_implementation="sdpa",
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"model.encoder: {folder} must hold an encoder that transformers can load: {str(error).splitlines()[0]}"
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
