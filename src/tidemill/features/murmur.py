"""MurmurHash3 (Austin Appleby, x86, 32 bits) in NumPy: what `com.microsoft.MurmurHash3` and scikit-learn compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_C1, _C2, _ADDED = np.uint32(0xCC9E2D51), np.uint32(0x1B873593), np.uint32(0xE6546B64)


def hash_texts(texts: Sequence[str], seed: int = 0) -> np.ndarray:
    """The hash of each text's UTF-8 bytes, uint32 [N].

    Example:
        >>> hash_texts(["", "hello", "中文"]).tolist()
        [0, 613153351, 3676729751]
    """
    encoded = [text.encode() for text in texts]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    padded = b"".join(text + b"\0" * (-len(text) % 4) for text in encoded)
    return _hashed(np.frombuffer(padded, "<u4").astype(np.uint32), lengths, seed)


def hash_integers(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """The hash of each integer's 8 bytes, little-endian two's complement, uint32 [N]."""
    words = np.ascontiguousarray(values, "<i8").view("<u4").astype(np.uint32)
    return _hashed(words, np.full(len(values), 8, np.int64), seed)


def _hashed(words: np.ndarray, lengths: np.ndarray, seed: int) -> np.ndarray:
    """Hashes of N byte strings of these lengths, which lie one after the other in `words`, each filled up with zeros."""
    held = -(-lengths // 4)
    starts = np.cumsum(held) - held
    # Longest first: those that have a k-th block of four bytes are the first ones.
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    blocks = lengths // 4
    state = np.full(len(lengths), seed, np.uint32)
    for k in range(int(blocks[0]) if len(blocks) else 0):
        live = int(np.searchsorted(-blocks, -k, side="left"))
        state[:live] = _rotated(state[:live] ^ _mixed(words[starts[:live] + k]), 13) * np.uint32(5) + _ADDED
    rest = np.flatnonzero(lengths % 4)
    state[rest] ^= _mixed(words[starts[rest] + blocks[rest]])
    state ^= lengths.astype(np.uint32)
    state = (state ^ (state >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    state = (state ^ (state >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    made = np.empty_like(state)
    made[order] = state ^ (state >> np.uint32(16))
    return made


def _mixed(block: np.ndarray) -> np.ndarray:
    return _rotated(block * _C1, 15) * _C2


def _rotated(x: np.ndarray, bits: int) -> np.ndarray:
    made: np.ndarray = (x << np.uint32(bits)) | (x >> np.uint32(32 - bits))
    return made
