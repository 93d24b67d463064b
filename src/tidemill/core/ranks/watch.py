"""Which rank hangs, told from what ranks tell about themselves.

A rank that waits for another in a collective operation stands still as well. The one to name is the one that all wait for:
frozen as a whole, or behind in steps, or not in a collective operation while others are, or the first to stand still.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tidemill.core.ranks.pulse import Beat, read_beat

# Before its first step, and while one said to be patient, ranks may stand still so many times longer.
PATIENCE = 10.0

# A hung rank is named within hang_s: the rest of it is for the beats to come and be read.
_SHARE = 0.8


def beat_every_s(hang_s: float) -> float:
    """Seconds between the beats of a rank."""
    return min(1.0, hang_s / 20)


@dataclass(frozen=True, kw_only=True)
class Hung:
    """A rank that stands still."""

    rank: int
    beat: Beat | None
    idle_s: float

    @property
    def said(self) -> str:
        if self.beat is None:
            return f"rank {self.rank} told nothing of itself for {self.idle_s:.0f} s"
        beat = self.beat
        last = f", last collective {beat.collective}" if beat.collective else ""
        return f"rank {self.rank} on {beat.host} made no progress for {self.idle_s:.0f} s (last step: {beat.step}, {beat.doing}{last}, at {beat.line})"


class Watch:
    """Reads the heartbeats of one attempt. Times are this process's own: clocks of other machines do not matter.

    Args:
        folder: Where `rank-<r>.beat` are.
    """

    def __init__(self, folder: Path, ranks: int, hang_s: float) -> None:
        self.hang_s = hang_s
        self._files = [folder / f"rank-{rank}.beat" for rank in range(ranks)]
        now = time.monotonic()
        self._beats: list[Beat | None] = [None] * ranks
        self._beaten, self._moved = [now] * ranks, [now] * ranks

    def look(self) -> None:
        """Read what is new."""
        now = time.monotonic()
        for rank, file in enumerate(self._files):
            before, beat = self._beats[rank], read_beat(file)
            if beat is None or beat == before:
                continue
            self._beats[rank], self._beaten[rank] = beat, now
            if before is None or beat.progress != before.progress:
                self._moved[rank] = now

    def hung(self, ended: Collection[int] = ()) -> Hung | None:
        """The rank that the others wait for, once one of them has stood still for too long.

        Args:
            ended: Ranks that have finished.
        """
        self.look()
        now = time.monotonic()
        running = [rank for rank in range(len(self._files)) if rank not in ended]
        beats = {rank: self._beats[rank] for rank in running}
        patient = any(beat is None or beat.patient for beat in beats.values())
        limit = self.hang_s * _SHARE * (PATIENCE if patient else 1.0)
        frozen = [rank for rank in running if now - self._beaten[rank] > limit]
        if frozen:
            return self._named(min(frozen, key=lambda rank: self._beaten[rank]), self._beaten, now)
        if not any(now - self._moved[rank] > limit for rank in running):
            return None

        def behind(rank: int) -> tuple[int, bool, float]:
            beat = beats[rank]
            return (-1, False, 0.0) if beat is None else (-1 if beat.step is None else beat.step, beat.waiting, self._moved[rank])

        return self._named(min(running, key=behind), self._moved, now)

    def last(self, rank: int) -> Beat | None:
        """The last beat of a rank that was read."""
        return self._beats[rank]

    def idle_s(self, rank: int) -> float:
        """Seconds since the last progress of a rank."""
        return time.monotonic() - self._moved[rank]

    def _named(self, rank: int, since: list[float], now: float) -> Hung:
        return Hung(rank=rank, beat=self._beats[rank], idle_s=now - since[rank])
