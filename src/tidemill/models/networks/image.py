"""Networks over images: a residual one (He and others, 2016), and a light one of inverted residuals (MobileNetV2, Sandler and others, 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tidemill.core.project import to_plain
from tidemill.models import base
from tidemill.models.networks.base import NetworkModel, Reader, Shape
from tidemill.models.networks.inputs import Head

INPUT = "pixels"


@dataclass(frozen=True, kw_only=True)
class AugmentParams:
    """What is done to training images, in each pass anew."""

    crop: int = field(default=0, metadata={"min": 0, "max": 512})
    """Pixels by which an image is moved at most, up or down and left or right; what comes in is black."""
    flip: float = field(default=0.0, metadata={"min": 0.0, "max": 1.0})
    """How often an image is mirrored left to right."""
    erase: float = field(default=0.0, metadata={"min": 0.0, "max": 1.0})
    """How often a rectangle of 2 to 33 % of an image is made black."""


@dataclass(frozen=True, kw_only=True)
class ImageParams:
    """How images are taken in, and how the network is made."""

    height: int = field(metadata={"min": 1, "max": 8192})
    """Pixels that an image is brought to."""
    width: int = field(metadata={"min": 1, "max": 8192})
    """Pixels that an image is brought to."""
    column: str | None = None
    """Column of the images: bytes of PNG, JPEG or WEBP files, or base64 of them; absent means the only one."""
    mode: Literal["RGB", "L"] = "RGB"
    """Three channels, or one of grey."""
    resize: Literal["exact", "shorter", "none"] = "exact"
    """exact: to height x width, whatever the image's shape; shorter: the shorter side fits, the middle is cut out; none: the middle is cut out."""
    network: Literal["resnet", "mobile"] = "resnet"
    """resnet, or mobile: a tenth of the work and of the weights at the same channels."""
    channels: int = field(default=32, metadata={"min": 4, "max": 2048})
    """Channels of the first stage; each further one has twice as many, on half the height and width."""
    stages: int = field(default=3, metadata={"min": 1, "max": 6})
    """Stages."""
    blocks: int = field(default=1, metadata={"min": 1, "max": 32})
    """Blocks of two convolutions, or three, in each stage."""
    stem: Literal[1, 2, 4] = 1
    """What height and width are divided by before the first stage: 1 for small images, 4 for photographs."""
    dropout: float = field(default=0.0, metadata={"min": 0.0, "max": 0.9})
    """Share of the last channels that a training step leaves out."""
    augment: AugmentParams = field(default_factory=AugmentParams)
    """What is done to training images."""

    def declaration(self) -> dict[str, Any]:
        """`image.json`: how an image becomes the network's input."""
        return {"width": self.width, "height": self.height, "mode": self.mode, "resize": self.resize, "type": "uint8"}


class Image(NetworkModel):
    """A convolutional network."""

    ref = "image"
    Params: ClassVar[type] = ImageParams
    reads: ClassVar[str] = "image"
    embeds: ClassVar[bool] = False
    predict_rows: ClassVar[int] = 250
    double: ClassVar[bool] = False
    space: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "channels": {"choice": [16, 24, 32, 48]},
        "blocks": {"int": [1, 3]},
        "dropout": {"float": [0.0, 0.3]},
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 20,
        "batch_size": 128,
        "optimizer": {"learning_rate": 2e-3, "weight_decay": 0.05},
        "schedule": {"warmup": 0.15},
    }

    def preprocess(self, params: ImageParams, column: str, folder: Path) -> dict[str, Any]:
        """`config`: what `Decode` is told; `files`: what lies beside it; `loading`: what is done in training alone."""
        del folder
        files = {"image.json": params.declaration()}
        return {"config": {"column": column, "input": INPUT}, "files": files, "loading": {"augment": to_plain(params.augment)}}

    def content(self, params: ImageParams, folder: Path) -> None:
        """No file is named by the parameters."""

    def told(self, train: base.Matrix) -> dict[str, Any]:
        return {"preprocess": to_plain(getattr(train, "layout", {}))}

    def build(self, shape: Shape, params: ImageParams) -> nn.Module:
        return Convolutional(shape, params)

    def reader(self, shape: Shape, params: ImageParams, folder: Path | None) -> Reader:
        del shape, params, folder
        return lambda pixels_NCHW: {INPUT: pixels_NCHW}

    def axes(self, shape: Shape, params: ImageParams) -> dict[str, list[str | int]]:
        del shape
        return {INPUT: ["N", 3 if params.mode == "RGB" else 1, params.height, params.width]}

    def trial(self, shape: Shape, params: ImageParams) -> np.ndarray:
        del shape
        size = (6, 3 if params.mode == "RGB" else 1, params.height, params.width)
        pixels_NCHW = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
        pixels_NCHW[0], pixels_NCHW[1] = 0, 255
        return pixels_NCHW


class Convolutional(nn.Module):
    """`pixels` uint8 [N, C, H, W] to scores [N, S]."""

    def __init__(self, shape: Shape, params: ImageParams) -> None:
        super().__init__()
        block = {"resnet": Residual, "mobile": Inverted}[params.network]
        channels = params.channels
        self.stem = nn.Sequential(*convolution(3 if params.mode == "RGB" else 1, channels, size=3, stride=min(params.stem, 2)), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1) if params.stem == 4 else nn.Identity()
        self.stages = nn.ModuleList()
        for stage in range(params.stages):
            after = params.channels * 2**stage
            self.stages.append(
                nn.Sequential(
                    *(
                        block(channels if first else after, after, stride=2 if first and stage else 1)
                        for first in (place == 0 for place in range(params.blocks))
                    )
                )
            )
            channels = after
        self.dropout = nn.Dropout(params.dropout)
        self.head = Head(channels, shape)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        x = (pixels.to(self.head.weight.dtype) / 255.0 - 0.5) * 4.0
        x = self.pool(self.stem(x.contiguous(memory_format=torch.channels_last)))
        for stage in self.stages:
            x = stage(x)
        scores: Tensor = self.head(self.dropout(x.mean((2, 3))))
        return scores


class Residual(nn.Module):
    """Two convolutions of 3 x 3 beside the identity."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(*convolution(before, after, size=3, stride=stride), nn.ReLU(), *convolution(after, after, size=3))
        # The block starts as the identity, which trains faster (Goyal and others, 2017).
        nn.init.zeros_(self.main[-1].weight)
        self.side = nn.Identity() if stride == 1 and before == after else nn.Sequential(*convolution(before, after, size=1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        return (self.main(x) + self.side(x)).relu()


class Inverted(nn.Module):
    """Four times as many channels, each with a convolution of its own, and back; beside the identity where it fits."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        wide = 4 * before
        self.main = nn.Sequential(
            *convolution(before, wide, size=1), nn.ReLU6(),
            *convolution(wide, wide, size=3, stride=stride, groups=wide), nn.ReLU6(),
            *convolution(wide, after, size=1),
        )  # fmt: skip
        self.adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.main(x)
        return x + made if self.adds else made


def convolution(before: int, after: int, *, size: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    """A convolution without bias that keeps height and width but for the stride, and the norm behind it."""
    return nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(after)
