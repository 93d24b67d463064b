"""Memory given back as soon as it is free: for budgets that the allocators' habit of keeping it for later would break."""

from __future__ import annotations

import ctypes
from functools import cache

import pyarrow as pa

_M_ARENA_MAX = -8


@cache
def lean() -> None:
    """Let this process keep little of what it frees: slower by some percent, for all that it does from now on."""
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
        pa.jemalloc_set_decay_ms(0)
    # One arena for all threads, so that what one frees serves another.
    _libc("mallopt", _M_ARENA_MAX, 1)


def trim() -> None:
    """Give back what is free in the C library's heap."""
    pa.default_memory_pool().release_unused()
    _libc("malloc_trim", 0)


def _libc(name: str, *arguments: int) -> None:
    """Call glibc, where that is the C library."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
