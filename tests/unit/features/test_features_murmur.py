"""MurmurHash3 as others compute it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils import murmurhash3_32

from tidemill.features.murmur import hash_integers, hash_texts

TEXTS = ["", "a", "ab", "abc", "abcd", "abcde", "a\0", "\0", "中文", "é", "e\u0301", "🙂🙂", "\uffff", "x" * 1000, "品" * 333]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31 - 1])
def test_texts_hash_as_in_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    texts = [*TEXTS, *("".join(map(chr, random.choice(points, length))) for length in random.integers(0, 40, 200))]
    expected = [murmurhash3_32(text.encode(), seed, positive=True) for text in texts]
    assert hash_texts(texts, seed).tolist() == expected


def test_integers_hash_as_their_bytes() -> None:
    values = np.array([0, 1, -1, 2**63 - 1, -(2**63), 1234567890123])
    expected = [murmurhash3_32(value.tobytes(), 7, positive=True) for value in values]
    assert hash_integers(values, 7).tolist() == expected


def test_nothing_hashes_to_nothing() -> None:
    assert hash_texts([]).dtype == np.uint32
    assert len(hash_integers(np.array([], np.int64))) == 0
