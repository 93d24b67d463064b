"""Rows that are texts, tokenized in workers by the package's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from tidemill.core.errors import DataError
from tidemill.core.graph import Arrays
from tidemill.core.schema import NULL_STRING
from tidemill.train.torch.loader.columns import Columns, Ragged, joined
from tidemill.train.torch.loader.labels import Labels
from tidemill.train.torch.loader.raw import Raw, columns_of, digest
from tidemill.train.torch.loader.source import TOKENS

# Texts that are tokenized together: those of a piece are padded to the longest of them.
TOGETHER = 256


class TextSource:
    """Texts as `input_ids` and `attention_mask`, int64 [N, L], padded to the batch's longest text. Null counts as the empty text.

    Args:
        raw: The rows.
        column: Holds the texts.
        tokenize: From texts (N, 1) by column to ids and mask, such as `load("preprocess", "text")` of a package.
        max_length: Most tokens of a text, as `tokenize` cuts them; what every text is padded to where shapes must not differ.
        vocabulary: How many tokens there are; ids are kept in two bytes where they fit.
        pad_id: Token that fills shorter texts; the mask hides it.
        identity: Tells this tokenizer from others.
        types: Whether the network takes `token_type_ids` too, all 0.
    """

    targets_per_row = 1

    def __init__(
        self,
        raw: Raw,
        labels: Labels,
        *,
        column: str,
        tokenize: Callable[[Arrays], Arrays],
        max_length: int,
        vocabulary: int,
        pad_id: int = 0,
        identity: str = "",
        types: bool = False,
    ) -> None:
        self._raw, self._labels, self._column, self._tokenize = raw, labels, column, tokenize
        self._max_length, self._pad_id, self._types = max_length, pad_id, types
        self._type = np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.int32)
        self.sizes, self.sizes_bytes, self.weighted = raw.sizes, raw.sizes_bytes, labels.weighted
        self.fingerprint = digest([raw.fingerprint, column, max_length, vocabulary, identity])

    def read(self, block: int, picks: np.ndarray | None = None) -> Columns:
        return columns_of(self._raw, block, [self._column, *self._labels.columns], picks, self._columns) or self.blank(0)

    def weights(self, block: int) -> np.ndarray:
        return self._labels.weights(self._raw, block)

    def batch(self, columns: Columns, rows_N: np.ndarray, *, epoch: int, static: bool) -> Arrays:
        ids_NL, mask_NL = columns[TOKENS].padded(self._pad_id, length=self._max_length if static else None)
        made: Arrays = {"input_ids": ids_NL, "attention_mask": mask_NL.astype(np.int64)}
        if self._types:
            made["token_type_ids"] = np.zeros_like(ids_NL)
        return made

    def blank(self, count: int) -> Columns:
        # One token that the mask shows: over none at all, attention is not defined.
        tokens = Ragged.of(np.full(count, self._pad_id, self._type), np.ones(count, np.int64))
        return {TOKENS: tokens, **self._labels.blank(count)}

    def _columns(self, batch: pa.RecordBatch) -> Columns:
        values = batch[self._column]
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            raise DataError(f"column {self._column!r} must be texts, is {values.type}", field=self._column)
        texts_N = np.array([NULL_STRING if text is None else text for text in values.to_pylist()], object)
        made = [self._tokens(texts_N[first : first + TOGETHER]) for first in range(0, len(texts_N), TOGETHER)]
        return {TOKENS: joined(made) if made else self.blank(0)[TOKENS], **self._labels.read(batch)}

    def _tokens(self, texts_N: np.ndarray) -> Ragged:
        made = self._tokenize({self._column: texts_N[:, None]})
        mask_NL = made["attention_mask"].astype(bool)
        return Ragged.of(made["input_ids"][mask_NL].astype(self._type), mask_NL.sum(1))
