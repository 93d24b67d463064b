"""Hashed n-grams: how often each run of n characters occurs in a text, in a fixed number of buckets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tidemill.core.schema import NULL_STRING
from tidemill.features.builder import FLOAT, INT64, MICROSOFT, Block, Builder
from tidemill.features.characters import FILL, MAX_LENGTH, character_nodes
from tidemill.features.murmur import hash_texts
from tidemill.features.operator import Fitted, Kind, Made, Values, numbers

# n hashes of 32 bits with factors of 27 bits, n at most 8, add up to less than 2^62; their rest by a prime is the n-gram's.
PRIME = 2**31 - 1
MAX_N = 8
FACTORS = [pow(0x9E3779B1, j + 1, 2**27) | 1 for j in range(MAX_N)]


@dataclass(frozen=True, kw_only=True)
class HashNgrams:
    """Features `<column>.<n>gram_<bucket>`: counts of the runs of n characters, both ends of the text counting as one.

    A run's bucket is a sum of the MurmurHash3 of its characters with a factor for each place, modulo 2^31 - 1, modulo
    `buckets`; different runs may share one. "ab" has the runs (end)ab and ab(end) of three. A package with it needs ONNX Runtime.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null                       | 0 in every bucket                                                  |
    | empty text                 | 0 in every bucket; for n = 2 one run of two ends                   |
    | beyond `max_length`        | the counts of the first `max_length` characters                    |
    | accents written apart      | characters of their own; text is not normalized                    |
    """

    n: int = field(default=3, metadata={"min": 2, "max": MAX_N})
    """Characters in a run, in 2..8."""
    buckets: int = field(default=64, metadata={"min": 2, "max": 4096})
    """Features made, in 2..4096."""
    seed: int = field(default=0, metadata={"min": 0, "max": 2**31 - 1})
    """Seed of the hash; another one lets other runs share a bucket."""
    max_length: int = field(default=MAX_LENGTH, metadata={"min": 1, "max": MAX_LENGTH})
    """Characters that are looked at, in 1..1000."""

    accepts: ClassVar[tuple[Kind, ...]] = ("string",)

    def fit(self, kind: Kind) -> Fitted:
        return {}

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        texts = [None if text is None else text[: self.max_length] for text in values.data.tolist()]
        alphabet = sorted({character for text in texts for character in text or ""})
        hashes = dict(zip(alphabet, hash_texts(alphabet, self.seed).tolist(), strict=True))
        (end,) = hash_texts([FILL], self.seed).tolist()
        counts = np.zeros((len(texts), self.buckets))
        for row, text in enumerate(texts):
            if text is not None:
                run = np.array([end, *(hashes[character] for character in text), end], np.int64)
                for start in range(len(run) - self.n + 1):
                    counts[row, int(run[start : start + self.n] @ np.array(FACTORS[: self.n])) % PRIME % self.buckets] += 1
        return Made({feature: numbers(counts[:, bucket]) for bucket, feature in enumerate(self._names(name))})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        made = []
        for texts in graph.split(block):
            with graph.taking_apart():
                counts = self._count_nodes(graph, character_nodes(graph, texts, self.max_length))
                null = graph.node("Equal", texts, graph.constant([[NULL_STRING]], object))
                made.append(graph.node("Where", null, graph.constant([[0]], np.float32), counts))
        names = [feature for name in block.names for feature in self._names(name)]
        origins = tuple(origin for origin in block.origins for _ in range(self.buckets))
        return block.take(names, graph.stack(made), FLOAT, origins=origins)

    def _count_nodes(self, graph: Builder, characters: str) -> str:
        """Counts [N, buckets] of characters [N, D]."""
        around = graph.constant([0, 1, 0, self.n - 1], np.int64)
        (end,) = hash_texts([FILL], self.seed).tolist()
        hashes = graph.cast(graph.node("MurmurHash3", characters, domain=MICROSOFT, seed=self.seed, positive=1), INT64)
        hashes = graph.node("Pad", hashes, around, graph.constant(end, np.int64))
        total = ""
        for j in range(self.n):
            term = graph.node("Mul", self._window(graph, hashes, j), graph.constant([[FACTORS[j]]], np.int64))
            total = graph.node("Add", total, term) if total else term
        prime, buckets = graph.constant([[PRIME]], np.int64), graph.constant([[self.buckets]], np.int64)
        places = graph.node("Mod", graph.node("Mod", total, prime), buckets)
        # A run is one where the character before its last is there: the first end counts as a character, the last does not.
        there = graph.cast(graph.node("Not", graph.node("Equal", characters, graph.constant([[FILL]], object))), FLOAT)
        first = graph.node("Pad", there, graph.constant([0, 1, 0, 0], np.int64), graph.constant(1, np.float32))
        there = graph.node("Pad", first, graph.constant([0, 0, 0, self.n - 1], np.int64))
        counted = self._window(graph, there, self.n - 2)
        begin, one = graph.constant([0], np.int64), graph.constant([1], np.int64)
        row = graph.node("Slice", first, begin, one, one)
        nothing = graph.node("Mul", row, graph.constant(np.zeros((1, self.buckets)), np.float32))
        return graph.node("ScatterElements", nothing, places, counted, axis=1, reduction="add")

    def _window(self, graph: Builder, tensor: str, start: int) -> str:
        """Columns from `start` on, as many as runs may begin at: n - 1 fewer than there are."""
        left = self.n - 1 - start
        end = graph.constant([-left if left else 2**62], np.int64)
        return graph.node("Slice", tensor, graph.constant([start], np.int64), end, graph.constant([1], np.int64))

    def _names(self, column: str) -> list[str]:
        return [f"{column}.{self.n}gram_{bucket}" for bucket in range(self.buckets)]
