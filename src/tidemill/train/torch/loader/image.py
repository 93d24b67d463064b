"""Rows that are files of images, decoded in workers by the package's own decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from tidemill.core.errors import DataError
from tidemill.core.graph import Arrays
from tidemill.train.torch.loader.augment import Augment, Augmented
from tidemill.train.torch.loader.columns import Columns, joined
from tidemill.train.torch.loader.labels import Labels
from tidemill.train.torch.loader.raw import Raw, digest, made_of

PIXELS = "pixels"

# Until it is decoded an image is its file's bytes, or its path.
_FILE = "file"


class ImageSource:
    """Images as `pixels` [N, C, H, W], in the type that the decoder gives; their files stay packed until a batch needs them.

    Images that are arrays already are an `ArraySource`.

    Args:
        raw: The rows.
        column: Holds the bytes of files, or their paths as texts.
        decode: From files (N, 1) by column to one tensor, such as `load("preprocess", "image")` of a package.
        shape: Of one image, (C, H, W).
        folder: What paths are relative to.
        augment: What is done to the images in each epoch anew; None leaves them as they are.
        seed: Of what is drawn by `augment`.
        identity: Tells this decoder from others.
    """

    targets_per_row = 1
    resident = False

    def __init__(
        self,
        raw: Raw,
        labels: Labels,
        *,
        column: str,
        decode: Callable[[Arrays], Arrays],
        shape: tuple[int, int, int],
        folder: Path | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        identity: str = "",
    ) -> None:
        self._raw, self._labels, self._column, self._decode = raw, labels, column, decode
        self._shape, self._folder = shape, folder or Path()
        self._augmented = None if augment is None else Augmented(augment, seed=seed)
        self.sizes, self.sizes_bytes, self.weighted = raw.sizes, raw.sizes_bytes, labels.weighted
        self._starts = np.concatenate([[0], np.cumsum(raw.sizes)])
        self.fingerprint = digest([raw.fingerprint, column, shape, identity])

    def read(self, block: int, picks: np.ndarray | None = None) -> Columns:
        made = made_of(self._raw, block, [self._column, *self._labels.columns], picks, self._columns)
        return {name: joined([one[name] for one in made]) for name in made[0]} if made else self.blank(0)

    def weights(self, block: int) -> np.ndarray:
        return self._labels.weights(self._raw, block)

    def batch(self, columns: Columns, rows_N: np.ndarray, *, epoch: int, static: bool) -> Arrays:
        pixels = [self._pixels(file, int(row)) for file, row in zip(columns[_FILE].tolist(), rows_N, strict=True)]
        kind = next((image.dtype for image in pixels if image is not None), np.dtype(np.uint8))
        made = np.zeros((len(pixels), *self._shape), kind)
        for place, image in enumerate(pixels):
            if image is not None:
                made[place] = image
        if self._augmented is not None:
            made = self._augmented.apply(made, rows_N, epoch=epoch)
        return {PIXELS: made}

    def blank(self, count: int) -> Columns:
        return {_FILE: np.full(count, None, object), **self._labels.blank(count)}

    def _columns(self, batch: pa.RecordBatch) -> Columns:
        values = batch[self._column]
        if values.null_count:
            raise DataError(f"column {self._column!r} must not be null", field=self._column, hint="drop those rows in prepare")
        files = np.empty(batch.num_rows, object)
        files[:] = values.to_pylist()
        return {_FILE: files, **self._labels.read(batch)}

    def _pixels(self, file: bytes | str | None, row: int) -> np.ndarray | None:
        """One image; None of a row that only fills up."""
        if file is None:
            return None
        one = np.empty((1, 1), object)
        try:
            one[0, 0] = file if isinstance(file, bytes) else (self._folder / file).read_bytes()
            return self._decoded(one)
        except (DataError, OSError) as error:
            block = int(np.searchsorted(self._starts, row, side="right")) - 1
            where = self._raw.where(block, row - int(self._starts[block]))
            named = f" ({file})" if isinstance(file, str) else ""
            message = error.message if isinstance(error, DataError) else str(error)
            raise DataError(f"image{named} in {where}: {message}", field=self._column) from error

    def _decoded(self, file: np.ndarray) -> np.ndarray:
        (image_1CHW,) = self._decode({self._column: file}).values()
        if image_1CHW.shape[1:] != self._shape:
            raise DataError(f"must be of shape {self._shape}, is {image_1CHW.shape[1:]}")
        return np.asarray(image_1CHW[0])
