"""`image.json`: how an image becomes a graph's input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from tidemill.core.errors import ConfigError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_SIDE = 8192


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """What is done to an image: `value = (pixel x scale - mean) / std` by channel, after it was resized and cut."""

    width: int
    """Of the graph's input, in pixels, 1 to 8192."""
    height: int
    """Of the graph's input, in pixels, 1 to 8192."""
    mode: Literal["RGB", "L"] = "RGB"
    """Three channels, or one of grey."""
    channels: Literal["RGB", "BGR"] = "RGB"
    """Order of three channels."""
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    """Channels before height and width, or behind."""
    resize: Literal["exact", "shorter", "none"] = "exact"
    """`exact`: to width x height, whatever the image's shape. `shorter`: the shorter side to `shorter_side`, then the middle is cut out.
    `none`: the middle is cut out, black where the image is smaller."""
    shorter: int | None = None
    """Length of the shorter side for `shorter`; the larger of width and height when absent."""
    resample: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """How pixels are interpolated, over the whole area that one becomes."""
    type: Literal["float32", "uint8"] = "float32"
    """Element type of the graph's input; uint8 takes the pixels as they are."""
    scale: float = 1 / 255
    """What pixels, 0 to 255, are multiplied with."""
    mean: tuple[float, ...] = (0.0,)
    """Subtracted after scaling: one number, or one a channel in the order red, green, blue."""
    std: tuple[float, ...] = (1.0,)
    """Divided by after that, > 0: one number, or one a channel."""
    orientation: bool = True
    """Whether an image is turned as its EXIF data say."""
    formats: tuple[str, ...] = FORMATS
    """Formats that are decoded, of JPEG, PNG and WEBP."""

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> ImageConfig:
        """The declaration in a JSON document.

        Raises:
            ConfigError: If a key is not known or a value out of range.
        """
        if not isinstance(document, Mapping):
            raise ConfigError("image.json: must be an object")
        known = {field.name for field in fields(cls)}
        strange = sorted(set(document) - known)
        if strange:
            raise ConfigError(f"image.json: {strange[0]!r} is no key (known: {', '.join(sorted(known))})")
        missing = [name for name in ("width", "height") if name not in document]
        if missing:
            raise ConfigError(f"image.json: {missing[0]} must be given")
        made: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in document.items()}
        for key in ("mean", "std"):
            if isinstance(made.get(key), (int, float)):
                made[key] = (float(made[key]),)
        config = cls(**made)
        config.check()
        return config

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: Names the key.
        """
        choices: dict[str, tuple[Any, ...]] = {
            "mode": ("RGB", "L"), "channels": ("RGB", "BGR"), "layout": ("NCHW", "NHWC"), "resize": ("exact", "shorter", "none"),
            "resample": ("nearest", "bilinear", "bicubic"), "type": ("float32", "uint8"), "orientation": (True, False),
        }  # fmt: skip
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(f"image.json: {key} must be one of {', '.join(map(str, allowed))}, got {getattr(self, key)!r}")
        for key in ("width", "height"):
            value = getattr(self, key)
            if type(value) is not int or not 1 <= value <= MAX_SIDE:
                raise ConfigError(f"image.json: {key} must be in 1..{MAX_SIDE}, got {value!r}")
        if self.shorter is not None and (type(self.shorter) is not int or not max(self.width, self.height) <= self.shorter <= MAX_SIDE):
            raise ConfigError(f"image.json: shorter must be in {max(self.width, self.height)}..{MAX_SIDE}, got {self.shorter!r}")
        for key in ("mean", "std"):
            numbers = getattr(self, key)
            if len(numbers) not in (1, self.depth) or not all(isinstance(n, (int, float)) and np.isfinite(n) for n in numbers):
                raise ConfigError(f"image.json: {key} must be one number or {self.depth}, got {list(numbers)}")
        if min(self.std) <= 0:
            raise ConfigError(f"image.json: std must be above 0, got {list(self.std)}")
        if not self.formats or set(self.formats) - set(FORMATS):
            raise ConfigError(f"image.json: formats must be of {', '.join(FORMATS)}, got {list(self.formats)}")

    @property
    def depth(self) -> int:
        """Number of channels."""
        return 3 if self.mode == "RGB" else 1

    @property
    def dtype(self) -> Any:
        return np.dtype(self.type)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image as the graph takes it."""
        return (self.depth, self.height, self.width) if self.layout == "NCHW" else (self.height, self.width, self.depth)

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items() if value is not None}

    @property
    def shorter_side(self) -> int:
        return self.shorter or max(self.width, self.height)
