"""Declared preprocessing of text: the tokenizer's own file, run by the same library offline and online."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.core.errors import DataError
from tidemill.core.graph import Arrays
from tidemill.core.load import need
from tidemill.core.schema import NULL_STRING


class Tokenize:
    """From a column of texts to token ids, attention mask and token types, int64 [N, L].

    L is the longest text of the batch, or the next multiple of what `pad_to` says, at most `max_length` tokens. Null counts as the empty text. Safe from several threads.

    Args:
        folder: The package, which holds `file`.
        column: Name of the input that holds the texts.
        max_length: Most tokens of a text, special ones included; the rest is cut off.
        inputs: What the graph takes, of `input_ids`, `attention_mask` and `token_type_ids`.
        pad_id: Token that fills shorter texts; the mask hides it.
        file: The tokenizer in the `tokenizers` library's JSON.
    """

    def __init__(
        self, folder: Path, *, column: str, max_length: int, inputs: Sequence[str], pad_id: int = 0, file: str = "tokenizer.json"
    ) -> None:
        tokenizers = need("tokenizers", "a text package")
        path = Path(folder) / file
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise DataError(f"{path} must be a tokenizer of the tokenizers library: {error}") from error
        self._tokenizer.enable_truncation(max_length=max_length)
        self._tokenizer.no_padding()
        self._column = column
        self._max_length = max_length
        self._inputs = tuple(inputs)
        self._pad_id = pad_id
        self._step = 1

    def pad_to(self, step: int) -> None:
        """Bring lengths to multiples of `step` tokens, up to the most, from now on."""
        self._step = step

    def sizes(self, inputs: Arrays) -> np.ndarray:
        """How long each row's text is, int64 [N], to batch like with like."""
        return np.array([len(text) for text in inputs[self._column].ravel().tolist()], np.int64)

    def __call__(self, inputs: Arrays) -> Arrays:
        return self.stack(self.rows(inputs))

    def rows(self, inputs: Arrays) -> list[Any]:
        """Each row's tokens, for `stack` to put together with whichever others."""
        texts = ["" if text == NULL_STRING else text for text in inputs[self._column].ravel().tolist()]
        return list(self._tokenizer.encode_batch_fast(texts))

    def variants(self, example: Arrays, count: int, *, seed: int = 0) -> Arrays:
        """`count` texts: the example, and its words shuffled and repeated, from one word to as many as are looked at."""
        text = str(example[self._column].ravel()[0]) if len(example[self._column]) else ""
        words = text.replace(NULL_STRING, "").split() or ["a"]
        rng = np.random.default_rng(seed)
        made = np.empty((count, 1), object)
        for i, length in enumerate(np.geomspace(1, self._max_length, count).astype(int).tolist()):
            made[i, 0] = " ".join(rng.choice(words, length).tolist())
        made[0, 0] = text
        return {self._column: made}

    def row_sizes(self, rows: Sequence[Any]) -> list[int]:
        """How many tokens each of `rows` has."""
        return [len(row) for row in rows]

    def stack(self, rows: Sequence[Any]) -> Arrays:
        """The graph's inputs for rows together."""
        # A graph needs at least one token to look at, even where the tokenizer adds none of its own.
        longest = max(1, *map(len, rows)) if rows else 1
        shape = len(rows), max(longest, min(self._max_length, -(-longest // self._step) * self._step))
        made: Arrays = {name: np.full(shape, self._pad_id if name == "input_ids" else 0, np.int64) for name in self._inputs}
        for place, row in enumerate(rows):
            for name, values in (("input_ids", row.ids), ("attention_mask", row.attention_mask), ("token_type_ids", row.type_ids)):
                if name in made:
                    made[name][place, : len(values)] = values
        return made
