"""The independent path of images: decoded by Pillow, all else in NumPy, with nothing of `image` shared.

Resampling is Pillow's: each output pixel is the mean of the input pixels under a filter as wide as the reduction, first along rows, then
along columns, in fixed point of 22 bits, rounded to 8 bits after each.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from tidemill.core.errors import DataError
from tidemill.core.image import image_bytes
from tidemill.packaging.image_config import ImageConfig

_BITS = 22
_TURNS = {1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}


def prepare(value: Any, config: ImageConfig) -> np.ndarray:
    """One image, bytes or base64, as the graph takes it."""
    pixels_HWC = _decoded(image_bytes(value), config)
    pixels_HWC = _sized(pixels_HWC, config)
    if config.type != "uint8":
        pixels_HWC = (
            (pixels_HWC.astype(np.float32) * np.float32(config.scale) - np.array(config.mean, np.float32))
            / np.array(config.std, np.float32)
        ).astype(np.float32)
    if config.channels == "BGR":
        pixels_HWC = pixels_HWC[:, :, ::-1]
    return np.moveaxis(pixels_HWC, 2, 0) if config.layout == "NCHW" else pixels_HWC


def _decoded(content: bytes, config: ImageConfig) -> np.ndarray:
    """Pixels uint8 [H, W, C], upright, on white."""
    from PIL import Image

    try:
        image: Any = Image.open(io.BytesIO(content), formats=config.formats)
        image.load()
    except Exception as error:  # decoders raise what they like
        raise DataError(f"must be a whole image of {', '.join(config.formats)}: {error}") from error
    orientation = image.getexif().get(0x0112, 1) if config.orientation else 1
    deep = image.mode.startswith("I") or image.mode == "F"
    if deep:
        values = np.asarray(image, np.float64)
        grey = np.clip(values / 256 if values.max(initial=0) > 255 else values, 0, 255).astype(np.uint8)[..., None]
        pixels = grey if config.mode == "L" else np.repeat(grey, 3, axis=2)
    else:
        through = image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info)
        if through:
            ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(ground, image.convert("RGBA"))
        pixels = np.asarray(image.convert(config.mode))
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    turns, mirrored = _TURNS.get(orientation, (0, False))
    pixels = np.rot90(pixels, turns)
    return pixels[:, ::-1] if mirrored else pixels


def _sized(pixels_HWC: np.ndarray, config: ImageConfig) -> np.ndarray:
    height, width = pixels_HWC.shape[:2]
    if config.resize == "exact":
        return _resampled(pixels_HWC, config.height, config.width, config.resample)
    if config.resize == "shorter":
        scale = config.shorter_side / min(height, width)
        pixels_HWC = _resampled(
            pixels_HWC, max(config.height, round(height * scale)), max(config.width, round(width * scale)), config.resample
        )
        height, width = pixels_HWC.shape[:2]
    top, left = (height - config.height) // 2, (width - config.width) // 2
    made = np.zeros((config.height, config.width, pixels_HWC.shape[2]), np.uint8)
    inside = pixels_HWC[max(top, 0) : top + config.height, max(left, 0) : left + config.width]
    made[max(-top, 0) : max(-top, 0) + inside.shape[0], max(-left, 0) : max(-left, 0) + inside.shape[1]] = inside
    return made


def _resampled(pixels_HWC: np.ndarray, height: int, width: int, how: str) -> np.ndarray:
    if how == "nearest":
        return np.asarray(pixels_HWC[_nearest(pixels_HWC.shape[0], height)][:, _nearest(pixels_HWC.shape[1], width)])
    if pixels_HWC.shape[1] != width:
        pixels_HWC = _rounded(np.einsum("ow,hwc->hoc", _weights(pixels_HWC.shape[1], width, how), pixels_HWC.astype(np.int64)))
    if pixels_HWC.shape[0] != height:
        pixels_HWC = _rounded(np.einsum("oh,hwc->owc", _weights(pixels_HWC.shape[0], height, how), pixels_HWC.astype(np.int64)))
    return pixels_HWC


def _nearest(size: int, wanted: int) -> np.ndarray:
    """The pixel under the middle of each wanted one; the middles are added up one by one, rounding and all."""
    step = size / wanted
    middles = np.add.accumulate(np.concatenate([[step * 0.5], np.full(wanted - 1, step)]))
    return np.asarray(middles.astype(int))


def _weights(size: int, wanted: int, how: str) -> np.ndarray:
    """How much each of `size` pixels counts for each of `wanted`, int64 [wanted, size] in fixed point."""
    ratio = size / wanted
    stretch = max(ratio, 1.0)
    reach = {"bilinear": 1.0, "bicubic": 2.0}[how] * stretch
    made = np.zeros((wanted, size), np.int64)
    for i in range(wanted):
        center = (i + 0.5) * ratio
        first, last = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), size)
        share = _filter((np.arange(first, last) - center + 0.5) / stretch, how)
        share = share / share.sum()
        made[i, first:last] = np.where(share < 0, share * (1 << _BITS) - 0.5, share * (1 << _BITS) + 0.5).astype(np.int64)
    return made


def _filter(x: np.ndarray, how: str) -> np.ndarray:
    x = np.abs(x)
    if how == "bilinear":
        return np.asarray(np.where(x < 1, 1 - x, 0.0))
    a = -0.5  # Keys' cubic convolution
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.asarray(np.where(x < 1, near, np.where(x < 2, far, 0.0)))


def _rounded(sums: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip((sums + (1 << (_BITS - 1))) >> _BITS, 0, 255), np.uint8)
