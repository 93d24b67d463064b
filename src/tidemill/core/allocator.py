"""Memory given back as soon as it is free: for budgets that the allocators' habit of keeping it for later would break."""

from __future__ import annotations

import ctypes
from functools import cache

# Below this budget, what the allocators would keep for later is given back.
LEAN_BELOW = 1 << 30
_M_ARENA_MAX = -8


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
    """Give back what is free in the heaps of Arrow and the C library."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
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
