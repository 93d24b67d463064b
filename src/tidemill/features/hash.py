"""Hash: a category as the number of a bucket, without a list of categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tidemill.core.schema import NULL_STRING
from tidemill.features.builder import FLOAT, INT64, MICROSOFT, Block, Builder
from tidemill.features.murmur import hash_integers, hash_texts
from tidemill.features.operator import Fitted, Kind, Made, Values, integers


@dataclass(frozen=True, kw_only=True)
class Hash:
    """MurmurHash3 (x86, 32 bits) modulo `buckets`: 0 to B - 1, equal to scikit-learn's `murmurhash3_32(..., positive=True) % B`.

    Nothing is fitted, so that a category of tomorrow has its bucket today; different categories may share one. The result
    is an integer, which `one_hot` takes. A package with it needs ONNX Runtime: the hash is no part of standard ONNX.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null                       | a bucket of its own, B                                             |
    | any text, also empty       | the bucket of its UTF-8 bytes, not normalized                      |
    | any integer                | the bucket of its 8 bytes, little-endian; not that of its text     |
    """

    buckets: int = field(default=1024, metadata={"min": 2, "max": 2**24 - 1})
    """Buckets, in 2..16777215, the one of nulls not counted."""
    seed: int = field(default=0, metadata={"min": 0, "max": 2**31 - 1})
    """Seed of the hash; another one lets other categories share a bucket."""

    accepts: ClassVar[tuple[Kind, ...]] = ("string", "integer")

    def fit(self, kind: Kind) -> Fitted:
        return {}

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        known = values.known()
        if values.kind == "string":
            hashes = hash_texts([value or "" for value in values.data.tolist()], self.seed)
        else:
            hashes = hash_integers(values.data, self.seed)
        return Made({name: integers(np.where(known, hashes.astype(np.int64) % self.buckets, self.buckets))})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        if block.kind == "string":
            # A node a column: what depends on one text column alone is computed once per distinct value.
            columns = graph.split(block)
            hashes = graph.stack([self._hash(graph, column) for column in columns])
            unknown = graph.constant([[NULL_STRING]], object)
            null = graph.stack([graph.node("Equal", column, unknown) for column in columns])
        else:
            block = graph.integers(block)
            hashes = self._hash(graph, graph.stack(block.tensors))
            null = graph.node("Not", graph.stack(block.valid)) if block.valid else ""
        bucket = graph.cast(graph.node("Mod", graph.cast(hashes, INT64), graph.constant([[self.buckets]], np.int64)), FLOAT)
        if null:
            bucket = graph.node("Where", null, graph.constant([[self.buckets]], np.float32), bucket)
        return block.take(block.names, bucket, FLOAT, kind="integer")

    def _hash(self, graph: Builder, tensor: str) -> str:
        return graph.node("MurmurHash3", tensor, domain=MICROSOFT, seed=self.seed, positive=1)
