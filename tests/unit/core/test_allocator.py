"""What is freed is given back where the budget is small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.core.allocator import LEAN_BELOW, lean

# In a process of its own, for it cannot be undone. Blocks of 32 KiB lie in the heap; every hundredth stays, among those that go.
PROGRAM = """
import os
import numpy as np
from tidemill.core.allocator import lean, trim
from tidemill.testing.memory import tree_pss

assert lean(1)
before = tree_pss(os.getpid())
blocks = [np.ones(4096) for _ in range(4_000)]
full = tree_pss(os.getpid())
blocks = blocks[::100]
trim()
print((full - before) >> 20, (tree_pss(os.getpid()) - before) >> 20)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_freed_memory_is_given_back_also_among_what_stays() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    full, left = map(int, done.stdout.split())
    assert full >= 100
    assert left <= 30


def test_larger_budgets_leave_the_allocators_alone() -> None:
    assert lean(LEAN_BELOW) is False
