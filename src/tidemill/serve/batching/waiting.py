"""Parts that wait, and which of them go together: the one whose turn it is, and those nearest to it in size."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import count

from tidemill.serve.batching.job import LEVELS, USUAL
from tidemill.serve.batching.parts import Bounds, Part

# A level of urgency counts as having come that much earlier, so that nobody waits for ever behind urgent ones.
LEVEL_S = 1.0

# Rows go together whose sizes differ by this share of the larger at most, or by this much.
NEAR_SHARE, NEAR_SIZE = 0.2, 6


class Waiting:
    """Not safe from several threads: the queue's lock guards it."""

    def __init__(self) -> None:
        self._numbers = count()
        self._by_turn: list[tuple[float, int, Part]] = []
        self._by_size: list[tuple[int, int, Part]] = []
        self._costs = dict.fromkeys(LEVELS, 0)

    def __len__(self) -> int:
        return len(self._by_size)

    def cost(self, priority: int = LEVELS[-1]) -> int:
        """Of the parts that are as urgent as `priority` or more."""
        return sum(cost for level, cost in self._costs.items() if level <= priority)

    def add(self, part: Part, now: float) -> None:
        """Let a part wait; its turn comes by when it came and by its urgency."""
        part.number = next(self._numbers)
        heapq.heappush(self._by_turn, (now + (part.split.job.priority - USUAL) * LEVEL_S, part.number, part))
        insort(self._by_size, (part.size, part.number, part))
        self._costs[part.split.job.priority] += part.cost

    def first(self) -> Part | None:
        """The part whose turn it is; it goes on waiting."""
        while self._by_turn and self._by_turn[0][2].taken:
            heapq.heappop(self._by_turn)
        return self._by_turn[0][2] if self._by_turn else None

    def take(self, part: Part) -> None:
        """Let a part wait no more."""
        del self._by_size[bisect_left(self._by_size, (part.size, part.number))]
        part.taken = True
        self._costs[part.split.job.priority] -= part.cost

    def group(self, first: Part, bounds: Bounds) -> list[Part]:
        """`first` and the parts that go with it, nearest in size first, as many as fit; all of them taken."""
        near = list(self._near(first))
        group, rows, size = [first], first.count, first.size
        for part in near:
            larger = max(size, part.size)
            if rows + part.count > bounds.rows or larger * (rows + part.count) > bounds.cost:
                continue
            group.append(part)
            rows, size = rows + part.count, larger
            if rows == bounds.rows:
                break
        for part in group:
            self.take(part)
        return group

    def _near(self, first: Part) -> Iterator[Part]:
        """Other parts of like size, from the nearest outwards."""
        lowest = min(first.size * (1 - NEAR_SHARE), first.size - NEAR_SIZE)
        highest = max(first.size / (1 - NEAR_SHARE), first.size + NEAR_SIZE)
        here = bisect_left(self._by_size, (first.size, first.number))
        below, above = here - 1, here + 1
        while True:
            low = self._by_size[below] if below >= 0 and self._by_size[below][0] >= lowest else None
            high = self._by_size[above] if above < len(self._by_size) and self._by_size[above][0] <= highest else None
            if low is not None and (high is None or first.size - low[0] < high[0] - first.size):
                below -= 1
                yield low[2]
            elif high is not None:
                above += 1
                yield high[2]
            else:
                return
