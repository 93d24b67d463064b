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

# The hashes of a combination's parts are digits to this base, modulo a prime (2^31 - 1); a null's is none that a value has.
FACTOR, PRIME, NULL_HASH = 1_000_003, 2**31 - 1, 2**32


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
    | a cross's combination      | the bucket of its parts' hashes as digits, nulls among them        |
    """

    buckets: int = field(default=1024, metadata={"min": 2, "max": 2**24 - 1})
    """Buckets, in 2..16777215, the one of nulls not counted."""
    seed: int = field(default=0, metadata={"min": 0, "max": 2**31 - 1})
    """Seed of the hash; another one lets other categories share a bucket."""

    accepts: ClassVar[tuple[Kind, ...]] = ("string", "integer")

    def fit(self, kind: Kind) -> Fitted:
        return {}

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        if values.parts:
            hashes = np.zeros(len(values), np.int64)
            for part in values.parts:
                hashes = (hashes * FACTOR + np.where(part.known(), self._hashes(part), NULL_HASH)) % PRIME
        else:
            hashes = self._hashes(values)
        return Made({name: integers(np.where(values.known(), hashes % self.buckets, self.buckets))})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        if block.parts:
            combined = [self._combined(graph, parts) for parts in block.parts]
            hashes, null = graph.stack([each for each, _ in combined]), graph.stack([nulls for _, nulls in combined])
        else:
            hashes, null = self._hash_nodes(graph, block)
        bucket = graph.cast(graph.node("Mod", hashes, graph.constant([[self.buckets]], np.int64)), FLOAT)
        if null:
            bucket = graph.node("Where", null, graph.constant([[self.buckets]], np.float32), bucket)
        return block.take(block.names, bucket, FLOAT, kind="integer")

    def _hashes(self, values: Values) -> np.ndarray:
        """Hashes int64 [N], of nulls any."""
        if values.kind == "string":
            return hash_texts([value or "" for value in values.data.tolist()], self.seed).astype(np.int64)
        return hash_integers(values.data, self.seed).astype(np.int64)

    def _hash_nodes(self, graph: Builder, block: Block) -> tuple[str, str]:
        """Hashes int64 [N, C], and where they are of nulls, "" where there is none."""
        if block.kind == "string":
            # A node a column: what depends on one text column alone is computed once per distinct value.
            columns = graph.split(block)
            hashes = graph.stack([self._hash(graph, column) for column in columns])
            unknown = graph.constant([[NULL_STRING]], object)
            return graph.cast(hashes, INT64), graph.stack([graph.node("Equal", column, unknown) for column in columns])
        block = graph.integers(block)
        hashes = graph.cast(self._hash(graph, graph.stack(block.tensors)), INT64)
        return hashes, graph.node("Not", graph.stack(block.valid)) if block.valid else ""

    def _combined(self, graph: Builder, parts: Sequence[Block]) -> tuple[str, str]:
        """The hash of a combination, int64 [N, 1], and whether all of it is null."""
        total = all_null = ""
        for part in parts:
            hashes, null = self._hash_nodes(graph, part)
            null = null or graph.node("Less", hashes, graph.constant([[0]], np.int64))
            hashes = graph.node("Where", null, graph.constant([[NULL_HASH]], np.int64), hashes)
            if total:
                hashes = graph.node("Add", graph.node("Mul", total, graph.constant([[FACTOR]], np.int64)), hashes)
            total = graph.node("Mod", hashes, graph.constant([[PRIME]], np.int64))
            all_null = graph.node("And", all_null, null) if all_null else null
        return total, all_null

    def _hash(self, graph: Builder, tensor: str) -> str:
        return graph.node("MurmurHash3", tensor, domain=MICROSOFT, seed=self.seed, positive=1)
