"""Rows that are files of images, decoded in workers by the package's own decoder."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from tidemill.core.errors import DataError
from tidemill.core.graph import Arrays
from tidemill.train.torch.loader.augment import Augment, Augmented
from tidemill.train.torch.loader.columns import Columns
from tidemill.train.torch.loader.labels import Labels
from tidemill.train.torch.loader.raw import Raw, columns_of, digest
from tidemill.train.torch.loader.source import PIXELS

# Images that are decoded together.
TOGETHER = 64


class ImageSource:
    """Images as `pixels` [N, C, H, W]. They are held decoded, in the network's size.

    Images that are arrays already are an `ArraySource`.

    Args:
        raw: The rows.
        column: Holds the bytes of files, or texts: their base64, or their paths where `folder` is given.
        decode: From files (N, 1) by column to one tensor, such as `load("preprocess", "image")` of a package.
        shape: Of one image, (C, H, W).
        dtype: Of its numbers.
        folder: What paths are relative to.
        augment: What is done to the images in each epoch anew; None leaves them as they are.
        seed: Of what is drawn by `augment`.
        identity: Tells this decoder from others.
    """

    targets_per_row = 1

    def __init__(
        self,
        raw: Raw,
        labels: Labels,
        *,
        column: str,
        decode: Callable[[Arrays], Arrays],
        shape: tuple[int, int, int],
        dtype: str = "uint8",
        folder: Path | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        identity: str = "",
    ) -> None:
        self._raw, self._labels, self._column, self._decode = raw, labels, column, decode
        self._shape, self._type, self._folder = shape, np.dtype(dtype), folder
        self._augmented = None if augment is None else Augmented(augment, seed=seed)
        self.sizes, self.weighted = raw.sizes, labels.weighted
        self.sizes_bytes = [size * int(np.prod(shape)) * self._type.itemsize for size in raw.sizes]
        self.fingerprint = digest([raw.fingerprint, column, shape, identity])

    def read(self, block: int, picks: np.ndarray | None = None) -> Columns:
        return columns_of(self._raw, block, [self._column, *self._labels.columns], picks, self._columns) or self.blank(0)

    def weights(self, block: int) -> np.ndarray:
        return self._labels.weights(self._raw, block)

    def batch(self, columns: Columns, rows_N: np.ndarray, *, epoch: int, static: bool) -> Arrays:
        pixels_NCHW = columns[PIXELS]
        return {PIXELS: pixels_NCHW if self._augmented is None else self._augmented.apply(pixels_NCHW, rows_N, epoch=epoch)}

    def blank(self, count: int) -> Columns:
        return {PIXELS: np.zeros((count, *self._shape), self._type), **self._labels.blank(count)}

    def _columns(self, batch: pa.RecordBatch) -> Columns:
        values = batch[self._column]
        if values.null_count:
            raise DataError(f"column {self._column!r} must not be null", field=self._column, hint="drop those rows in prepare")
        files_N = np.empty(batch.num_rows, object)
        files_N[:] = [self._file(value) for value in values.to_pylist()]
        pixels_NCHW = np.empty((batch.num_rows, *self._shape), self._type)
        for first in range(0, batch.num_rows, TOGETHER):
            (decoded,) = self._decode({self._column: files_N[first : first + TOGETHER, None]}).values()
            if decoded.shape[1:] != self._shape or decoded.dtype != self._type:
                raise DataError(
                    f"column {self._column!r} must decode to {self._type} {self._shape}, got {decoded.dtype} {decoded.shape[1:]}",
                    field=self._column,
                )
            pixels_NCHW[first : first + TOGETHER] = decoded
        return {PIXELS: pixels_NCHW, **self._labels.read(batch)}

    def _file(self, value: bytes | str) -> bytes:
        if isinstance(value, bytes):
            return value
        try:
            return base64.b64decode(value, validate=True) if self._folder is None else (self._folder / value).read_bytes()
        except (binascii.Error, ValueError) as error:
            raise DataError(f"column {self._column!r} must hold base64, got {value[:40]!r}", field=self._column) from error
        except OSError as error:
            raise DataError(f"column {self._column!r} must name files: {error}", field=self._column) from error
