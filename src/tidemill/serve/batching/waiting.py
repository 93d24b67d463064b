"""Parts that wait, and which of them go together: the one whose turn it is, and neighbours in size as long as they make it cheaper."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from itertools import count
from operator import itemgetter

from tidemill.serve.batching.job import LEVELS, USUAL
from tidemill.serve.batching.parts import Bounds, Part

# A level of urgency counts as having come that much earlier, so that nobody waits for ever behind urgent ones.
LEVEL_S = 1.0


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
        """`first` and the neighbours in size with which it is answered at the least cost, within the bounds; all of them taken.

        The group grows where that costs less, as far as the bounds let it; what it was at its best is taken.
        """
        low = bisect_left(self._by_size, (first.size, first.number))
        high = low + 1
        rows, tokens, size = first.count, first.cost, first.size
        best, gain = (low, high), bounds.gain(rows, tokens, size)
        while True:
            sides = [(at, self._by_size[at][2]) for at in (low - 1, high) if 0 <= at < len(self._by_size)]
            gains = [
                (bounds.gain(rows + part.count, tokens + part.cost, max(size, part.size)), at, part)
                for at, part in sides
                if bounds.hold(rows + part.count, max(size, part.size))
            ]
            if not gains:
                break
            grown, at, part = max(gains, key=itemgetter(0))
            low, high = min(low, at), max(high, at + 1)
            rows, tokens, size = rows + part.count, tokens + part.cost, max(size, part.size)
            if grown >= gain:
                best, gain = (low, high), grown
        group = [part for _, _, part in self._by_size[slice(*best)]]
        for part in group:
            self.take(part)
        return group
