"""Images drawn anew in each epoch: moved, mirrored, a part wiped out. What is drawn for a row depends on seed, epoch and row alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tidemill.core.errors import ConfigError

# Which number of a row's stream decides what.
_TOP, _LEFT, _FLIP, _ERASE, _AREA, _ASPECT, _ERASE_TOP, _ERASE_LEFT = range(8)

# A rectangle that is wiped out: its share of the image, and its height to its width (Zhong and others, "Random erasing data augmentation", 2020).
LEAST_AREA, MOST_AREA = 0.02, 0.33
LEAST_ASPECT, MOST_ASPECT = 0.3, 1 / 0.3


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is done to training images."""

    crop: int = field(default=0, metadata={"min": 0, "max": 512})
    """Pixels by which an image is moved at most, up or down and left or right; what comes in is black. 0 moves none."""
    flip: float = field(default=0.0, metadata={"min": 0.0, "max": 1.0})
    """How often an image is mirrored left to right, 0 to 1."""
    erase: float = field(default=0.0, metadata={"min": 0.0, "max": 1.0})
    """How often a rectangle of 2 to 33 % of an image is made black, 0 to 1."""

    def __post_init__(self) -> None:
        if self.crop < 0 or not 0 <= self.flip <= 1 or not 0 <= self.erase <= 1:
            raise ConfigError(f"augment: crop must be at least 0, flip and erase in 0..1, got {self.crop}, {self.flip}, {self.erase}")


class Augmented:
    """Applies `Augment` to rows. Safe from several threads."""

    def __init__(self, config: Augment, *, seed: int) -> None:
        self._config, self._seed = config, seed

    def apply(self, pixels_NCHW: np.ndarray, rows_N: np.ndarray, *, epoch: int) -> np.ndarray:
        """The rows' images in this epoch, in the same shape and type."""
        config = self._config
        if config.crop:
            pixels_NCHW = self._cropped(pixels_NCHW, rows_N, epoch)
        if config.flip:
            flipped_N = self._drawn(rows_N, epoch, _FLIP) < config.flip
            pixels_NCHW = np.where(flipped_N[:, None, None, None], pixels_NCHW[..., ::-1], pixels_NCHW)
        if config.erase:
            pixels_NCHW = np.where(self._erased(pixels_NCHW.shape[-2:], rows_N, epoch)[:, None], pixels_NCHW.dtype.type(0), pixels_NCHW)
        return pixels_NCHW

    def _cropped(self, pixels_NCHW: np.ndarray, rows_N: np.ndarray, epoch: int) -> np.ndarray:
        """Black on all sides, and a piece of the old size cut out."""
        by = self._config.crop
        height, width = pixels_NCHW.shape[-2:]
        padded = np.pad(pixels_NCHW, ((0, 0), (0, 0), (by, by), (by, by)))
        pieces = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        top_N, left_N = (
            (self._drawn(rows_N, epoch, number) * (2 * by + 1)).astype(np.int64) for number in (_TOP, _LEFT)
        )  # fmt: skip
        return np.asarray(pieces[np.arange(len(rows_N)), :, top_N, left_N])

    def _erased(self, shape: tuple[int, ...], rows_N: np.ndarray, epoch: int) -> np.ndarray:
        """Which pixels become black, bool [N, H, W]."""
        height, width = shape
        area_N = (LEAST_AREA + self._drawn(rows_N, epoch, _AREA) * (MOST_AREA - LEAST_AREA)) * height * width
        aspect_N = np.exp(np.log(LEAST_ASPECT) + self._drawn(rows_N, epoch, _ASPECT) * np.log(MOST_ASPECT / LEAST_ASPECT))
        tall_N = np.minimum(np.rint(np.sqrt(area_N * aspect_N)), height)
        wide_N = np.minimum(np.rint(np.sqrt(area_N / aspect_N)), width)
        top_N = np.floor(self._drawn(rows_N, epoch, _ERASE_TOP) * (height - tall_N + 1))
        left_N = np.floor(self._drawn(rows_N, epoch, _ERASE_LEFT) * (width - wide_N + 1))
        y, x = np.arange(height), np.arange(width)
        rows_NH = (y >= top_N[:, None]) & (y < (top_N + tall_N)[:, None])
        columns_NW = (x >= left_N[:, None]) & (x < (left_N + wide_N)[:, None])
        chosen_N = self._drawn(rows_N, epoch, _ERASE) < self._config.erase
        return np.asarray(chosen_N[:, None, None] & rows_NH[:, :, None] & columns_NW[:, None, :])

    def _drawn(self, rows_N: np.ndarray, epoch: int, number: int) -> np.ndarray:
        """A number in [0, 1) for each row: SplitMix64 of seed, epoch, row and what it decides (Steele, Lea and Flood 2014)."""
        key = np.zeros(1, np.uint64)
        with np.errstate(over="ignore"):
            for part in (self._seed, epoch, number):
                key = _mixed(key ^ np.uint64(part % 2**64))
            bits_N = _mixed(rows_N.astype(np.uint64) ^ key)
        return np.asarray((bits_N >> np.uint64(11)) * 2.0**-53)


def _mixed(bits: np.ndarray) -> np.ndarray:
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(bits ^ (bits >> np.uint64(31)))
