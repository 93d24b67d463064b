"""What the allocators do with memory that is free: give it back at once, for small budgets, or keep all of it, for loops that take it again."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Below this budget, what the allocators would keep for later is given back.
LEAN_BELOW = 1 << 30

# Of mallopt(3), and what it begins with.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_MMAP_MAX, _TRIM_THRESHOLD = 65_536, 64 << 20


def lean(budget: int) -> bool:
    """Whether a budget is so small that this process keeps little of what it frees, from now on; some percent slower.

    Args:
        budget: Bytes that work may take.
    """
    if budget >= LEAN_BELOW:
        return False
    _keep_little()
    return True


def trim() -> None:
    """Give back what is free in the heaps of the C library and of Arrow, where that is in use."""
    if arrow := sys.modules.get("pyarrow"):
        arrow.default_memory_pool().release_unused()
    _libc("malloc_trim", 0)


@contextmanager
def kept() -> Iterator[None]:
    """Keep what is freed inside, and take large arrays from it again; give it back in the end. Not where `lean` holds.

    A training step frees and takes the same tensors each time. Each time the system would map their pages anew and fill them with zeros,
    which was a twentieth of a step of a small ResNet, and a tenth of MiniLM's.
    """
    if _keep_little.cache_info().currsize:
        yield
        return
    _libc("mallopt", _M_MMAP_MAX, 0)
    _libc("mallopt", _M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        _libc("mallopt", _M_MMAP_MAX, _MMAP_MAX)
        _libc("mallopt", _M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
        _libc("malloc_trim", 0)


@cache
def _keep_little() -> None:
    import pyarrow as pa

    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
        pa.jemalloc_set_decay_ms(0)
    # One arena for all threads, so that what one frees serves another.
    _libc("mallopt", _M_ARENA_MAX, 1)


def _libc(name: str, *arguments: int) -> None:
    """Call glibc, where that is the C library."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
