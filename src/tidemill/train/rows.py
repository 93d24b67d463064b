"""The rows of one split as texts or images, for networks that read them: what `features.json` declares is done to each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.artifact import Artifact
from tidemill.core.errors import DataError
from tidemill.core.graph import RowSignature
from tidemill.core.image import ImageSignature
from tidemill.core.load import load
from tidemill.core.schema import Schema
from tidemill.models.base import Batch
from tidemill.train.matrix import BUFFER_BYTES, class_indices, finite_numbers, row_weights

if TYPE_CHECKING:
    import pyarrow as pa

    from tidemill.train.torch.loader.raw import ParquetRows
    from tidemill.train.torch.loader.source import Source

BATCH_ROWS = 256

# Images that take no more than this are decoded once.
MOST_BYTES = 256 << 20

PIXELS = "pixels"


class RowMatrix:
    """A `Matrix` whose rows are texts, an object array (N,), or images, uint8 (N, C, H, W). Nothing is kept between passes.

    Raises:
        DataError: If the split has no files. While iterating: if a target is null or not among the classes, a weight is null, negative
            or not finite, or an image is none.
    """

    def __init__(self, data: Artifact, features: Artifact, split: str) -> None:
        import pyarrow.parquet as pq

        self.made_from = (data, features, split)
        facts, described = data.read_json("schema.json"), features.read_json("features.json")
        self.layout: dict[str, Any] = {key: described[key] for key in ("preprocess", "preprocess_config")}
        """What is done to a row, as `features.json` says it."""
        self.reads: str = described["preprocess"]
        """text or image."""
        schema = Schema.from_json(described["inputs"])
        self.column: str = schema.names[0]
        self.names, self.num_features = [self.column], 1
        self.preprocess: Any = load("preprocess", self.reads)(features.path, **self.layout["preprocess_config"])
        """The package's own tokenizer or decoder."""
        self.signature = (ImageSignature if self.reads == "image" else RowSignature)(schema)
        self.files = sorted((data.path / split).glob("*.parquet"))
        if not self.files:
            raise DataError(f"{data.path / split} must hold Parquet files, holds none", hint="run the data stage again")
        self.num_rows = sum(pq.read_metadata(file).num_rows for file in self.files)
        self._target: str = facts["target"]
        self._classes: list[Any] | None = facts["classes"]
        self._weight: str | None = facts["weight"]
        self._targets: tuple[np.ndarray, np.ndarray | None] | None = None

    def batches(self) -> Iterator[Batch]:
        for rows in self.rows([self.column, *self._labelled]):
            inputs = self.signature.from_arrow(rows)
            if self.reads == "image":
                (x_N,) = self.preprocess(inputs).values()
            else:
                x_N = inputs[self.column].ravel().astype(object)
            yield Batch(x_N, *self._labels(rows))

    def targets(self) -> tuple[np.ndarray, np.ndarray | None]:
        if self._targets is None:
            parts = [self._labels(rows) for rows in self.rows(self._labelled)]
            weights = [weight_N for _, weight_N in parts if weight_N is not None]
            self._targets = np.concatenate([y_N for y_N, _ in parts]), np.concatenate(weights) if weights else None
        return self._targets

    def rows(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Columns of the raw rows, in the order of `batches`."""
        import pyarrow.parquet as pq

        for file in self.files:
            with pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False) as parquet:
                yield from parquet.iter_batches(BATCH_ROWS, columns=columns)

    @property
    def _labelled(self) -> list[str]:
        return [name for name in (self._target, self._weight) if name is not None]

    def _labels(self, rows: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray | None]:
        y_N = class_indices(rows[self._target], self._classes, name=self._target) if self._classes else finite_numbers(rows, self._target)
        return y_N, None if self._weight is None else row_weights(rows, self._weight)


def source(data: Artifact, features: Artifact, split: str, *, class_weight: Sequence[float] | None, seed: int) -> Source:
    """The same rows as a network's loader takes them; training images are augmented as `features.json` says."""
    from tidemill.train.torch.loader.arrays import ArraySource
    from tidemill.train.torch.loader.augment import Augment
    from tidemill.train.torch.loader.image import ImageSource
    from tidemill.train.torch.loader.labels import Labels
    from tidemill.train.torch.loader.raw import ParquetRows
    from tidemill.train.torch.loader.text import TextSource

    matrix, loading = RowMatrix(data, features, split), features.read_json("features.json")["loading"]
    labels = Labels.of(data, class_weight=class_weight)
    if matrix.reads == "text":
        settings = matrix.layout["preprocess_config"]
        return TextSource(
            ParquetRows(data, split, [matrix.column, *labels.columns]), labels,
            column=matrix.column, tokenize=matrix.preprocess, max_length=settings["max_length"], vocabulary=loading["vocabulary"],
            pad_id=settings["pad_id"], identity=features.id,
        )  # fmt: skip
    augment = Augment(**loading["augment"]) if split == "train" else None
    shape: tuple[int, int, int] = matrix.preprocess.config.shape
    if matrix.num_rows * math.prod(shape) <= MOST_BYTES:
        pixels_NCHW = np.concatenate([batch.x_NF for batch in matrix.batches()])
        made = [labels.read(rows) for rows in matrix.rows(labels.columns)]
        weight_N = np.concatenate([one["weight"] for one in made]) if labels.weighted else None
        return ArraySource({PIXELS: pixels_NCHW}, np.concatenate([one["target"] for one in made]), weight_N, augment=augment, seed=seed)
    raw = _Files(ParquetRows(data, split, [matrix.column, *labels.columns]), matrix)
    return ImageSource(
        raw, labels, column=matrix.column, decode=matrix.preprocess, shape=shape, augment=augment, seed=seed, identity=features.id
    )


class _Files:
    """Raw rows whose images are files' bytes, though they are kept in base64."""

    def __init__(self, raw: ParquetRows, matrix: RowMatrix) -> None:
        self._raw, self._matrix = raw, matrix
        self.sizes, self.sizes_bytes, self.fingerprint = raw.sizes, raw.sizes_bytes, raw.fingerprint
        self.where = raw.where

    def pieces(self, block: int, columns: Sequence[str], picks: np.ndarray | None = None) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        import pyarrow as pa

        name = self._matrix.column
        for rows, places in self._raw.pieces(block, columns, picks):
            if name not in rows.schema.names:
                yield rows, places
                continue
            files = pa.array(self._matrix.signature.from_arrow(rows)[name].ravel().tolist(), pa.binary())
            place = rows.schema.get_field_index(name)
            yield rows.set_column(place, name, files), places
