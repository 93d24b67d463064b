"""What is freed is given back where the budget is small, and kept where a loop takes it again."""

from __future__ import annotations

import os
import platform
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


# Large arrays, as a training step has them: taken, filled and freed time and again.
LOOP = """
import resource
import sys
import numpy as np
from tidemill.core.allocator import kept, lean

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        np.ones(6_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1:]:
    lean(1)
without = faults(5)
with kept():
    faults(1)
    inside = faults(5)
print(without, inside, faults(5))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize("budget", ["large", "small"])
def test_a_loop_takes_what_it_freed_again(budget: str) -> None:
    command = [sys.executable, "-c", LOOP, *(["lean"] if budget == "small" else [])]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"})
    assert done.returncode == 0, done.stderr
    without, inside, after = map(int, done.stdout.split())
    assert without > 50_000  # 48 MB in pages of 4 KiB, five times
    assert after > 50_000
    assert inside < 1_000 if budget == "large" else inside > 50_000
