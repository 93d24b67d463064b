"""Declared preprocessing of images: decoded, turned upright, resized, cut, scaled, laid out; by the same code offline and online.

What is decoded comes from strangers. Only the formats that are declared are tried, the size is read from the header and held against the
limit before a pixel is decoded, and a file that ends early, or holds more than it says, is refused.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.core.errors import DataError
from tidemill.core.graph import Arrays
from tidemill.core.load import need
from tidemill.packaging.image_config import ImageConfig

# Limits of one image, where nobody sets others: pixels before it is resized, known from its header, and bytes of its file.
MAX_PIXELS = 25_000_000
MAX_BYTES = 16_000_000


class Decode:
    """From a column of images to one tensor [N, C, H, W] or [N, H, W, C]. Safe from several threads.

    An image is the bytes of a file.

    Args:
        folder: The package, which holds `file`.
        column: Name of the input that holds the images.
        input: Name of the graph's input.
        file: The declaration, as `image_config` describes it.
    """

    def __init__(self, folder: Path, *, column: str, input: str, file: str = "image.json") -> None:  # noqa: A002 - the graph's word
        need("PIL", "an image package")
        path = Path(folder) / file
        try:
            self.config = ImageConfig.of(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} must be a declaration of images: {error}") from error
        self._column, self._input = column, input
        self.max_pixels, self.max_bytes = MAX_PIXELS, MAX_BYTES

    def limit(self, *, max_pixels: int, max_bytes: int) -> None:
        """Refuse larger images from now on."""
        self.max_pixels, self.max_bytes = max_pixels, max_bytes

    def sizes(self, inputs: Arrays) -> np.ndarray:
        """Images are all of one size once they are decoded, int64 [N]."""
        return np.ones(len(inputs[self._column]), np.int64)

    def __call__(self, inputs: Arrays) -> Arrays:
        return self.stack(self.rows(inputs))

    def rows(self, inputs: Arrays) -> list[Any]:
        """Each row's image as an array, for `stack` to put together with whichever others.

        Raises:
            DataError: If one is no image of the declared formats, too large, or broken; names the row.
        """
        made = []
        for row, value in enumerate(inputs[self._column].ravel().tolist()):
            try:
                made.append(self._prepared(value))
            except DataError as error:
                where = f" in row {row}" if len(inputs[self._column]) > 1 else ""
                raise DataError(f"field {self._column!r} {error.message}{where}", field=self._column, hint=error.hint) from error
        return made

    def row_sizes(self, rows: Sequence[Any]) -> list[int]:
        return [1] * len(rows)

    def stack(self, rows: Sequence[Any]) -> Arrays:
        """The graph's input for images together."""
        if not rows:
            return {self._input: np.empty((0, *self.config.shape), self.config.dtype)}
        return {self._input: np.stack(rows)}

    def blank(self) -> Arrays:
        """The graph's input for one image of zeros."""
        return {self._input: np.zeros((1, *self.config.shape), self.config.dtype)}

    def variants(self, example: Arrays, count: int, *, seed: int = 0) -> Arrays:
        """`count` images like the example: cut, turned, lighter and darker ones; made up where there is no example."""
        from PIL import Image

        rng = np.random.default_rng(seed)
        width, height = max(16, self.config.width), max(16, self.config.height)
        try:
            source = _flat(self._decoded(example[self._column].ravel()[0]), "RGB")
        except (DataError, IndexError):
            source = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        made = np.empty((count, 1), object)
        for i in range(count):
            share = 1.0 if i == 0 else rng.uniform(0.4, 1.0)
            size = max(1, int(source.width * share)), max(1, int(source.height * share))
            left, top = rng.integers(0, source.width - size[0] + 1), rng.integers(0, source.height - size[1] + 1)
            image = source.crop((int(left), int(top), int(left) + size[0], int(top) + size[1])).rotate(
                0 if i == 0 else 90 * int(rng.integers(4))
            )
            light = 1.0 if i == 0 else rng.uniform(0.5, 1.5)
            file = io.BytesIO()
            Image.fromarray(np.clip(np.asarray(image, np.float32) * light, 0, 255).astype(np.uint8)).save(file, "PNG")
            made[i, 0] = file.getvalue()
        return {self._column: made}

    def _prepared(self, content: bytes) -> np.ndarray:
        """One image as the graph takes it, [C, H, W] or [H, W, C]."""
        config = self.config
        image = self._decoded(content)
        image = _resized(_flat(image, config.mode), config)
        values = np.asarray(image)
        if values.ndim == 2:
            values = values[..., None]
        if config.dtype != np.uint8:
            values = (values.astype(np.float32) * np.float32(config.scale) - np.array(config.mean, np.float32)) / np.array(
                config.std, np.float32
            )
            values = values.astype(config.dtype, copy=False)
        if config.channels == "BGR":
            values = values[..., ::-1]
        return np.ascontiguousarray(values.transpose(2, 0, 1) if config.layout == "NCHW" else values)

    def _decoded(self, content: bytes) -> Any:
        """The image, upright, every pixel decoded.

        Raises:
            DataError: If it is of another format, too large, or broken.
        """
        from PIL import Image, ImageOps, UnidentifiedImageError

        config = self.config
        if len(content) > self.max_bytes:
            raise DataError(f"must be of at most {self.max_bytes:,} bytes, got {len(content):,}", hint="send it smaller")
        try:
            image: Any = Image.open(io.BytesIO(content), formats=config.formats)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise DataError(f"must have at most {self.max_pixels:,} pixels", hint="send it smaller") from None
        except UnidentifiedImageError:
            raise DataError(f"must be an image of {', '.join(config.formats)}") from None
        except Exception as error:  # noqa: BLE001 - decoders raise what they like on bytes from strangers
            raise DataError(f"must be an image that can be read: {_said(error)}") from None
        if image.width * image.height > self.max_pixels or not image.width or not image.height:
            raise DataError(f"must have at most {self.max_pixels:,} pixels, has {image.width:,} x {image.height:,}", hint="send it smaller")
        if getattr(image, "n_frames", 1) > 1:
            raise DataError(f"must be one image, holds {image.n_frames}")
        try:
            image.load()
            return ImageOps.exif_transpose(image) if config.orientation else image
        except Exception as error:  # noqa: BLE001 - as above
            raise DataError(f"must be a whole image: {_said(error)}") from None


def _flat(image: Any, mode: str) -> Any:
    """The image in the mode that the graph takes, RGB or L; what is transparent becomes white."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        # 16 bits a channel, which Pillow would cut off at 255.
        values = np.asarray(image, np.float64)
        image = Image.fromarray(np.clip(values / 256 if values.max(initial=0) > 255 else values, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, image)
    return image if image.mode == mode else image.convert(mode)


def _resized(image: Any, config: ImageConfig) -> Any:
    """To width and height: as `resize` says, then the middle is cut out."""
    from PIL import Image

    how = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[config.resample]
    if config.resize == "exact":
        return _scaled(image, config.width, config.height, how)
    short = config.shorter_side
    if config.resize == "shorter":
        scale = short / min(image.size)
        image = _scaled(image, max(config.width, round(image.width * scale)), max(config.height, round(image.height * scale)), how)
    left, top = (image.width - config.width) // 2, (image.height - config.height) // 2
    return image.crop((left, top, left + config.width, top + config.height))


def _scaled(image: Any, width: int, height: int, how: Any) -> Any:
    """To `width` x `height`, along rows and then along columns: which of them Pillow takes first depends on its version."""
    return image.resize((width, image.height), how).resize((width, height), how)


def _said(error: Exception) -> str:
    return str(error)[:120] or type(error).__name__
