"""A large job cut into parts, and its answers put together again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from tidemill.core.package import Answers
from tidemill.serve.batching.job import Job
from tidemill.serve.batching.rows import Rows, taken

# What a run costs beside its tokens, in tokens: a sentence encoder of six layers and 384 numbers on one core took as long as for 12 of them in bf16
# and for 17 in fp32. As much padding is worth a run that is spared.
RUN_COST = 16


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What may go through a model at once."""

    rows: int
    cost: float = inf
    """Rows times the length that they are brought to."""
    step: int = 1
    """Rows are brought to the next multiple of this that the longest fits in."""

    def length(self, size: int) -> int:
        """What rows are brought to whose longest has this size."""
        return -(-size // self.step) * self.step

    def hold(self, rows: int, size: int) -> bool:
        """Whether so many rows may go through together whose longest has this size."""
        return rows <= self.rows and rows * self.length(size) <= self.cost

    def gain(self, rows: int, tokens: int, size: int) -> float:
        """How many times as much the rows would cost one by one."""
        return (rows * RUN_COST + tokens) / (RUN_COST + rows * self.length(size))


@dataclass(slots=True, eq=False)
class Part:
    """Rows of a job that go through the model together: all of them, or those of `index`."""

    split: Split
    rows: Rows
    count: int
    size: int
    """Of its longest row."""
    cost: int
    """Sum of its rows' sizes."""
    index: list[int] | None
    number: int = 0
    """Its place among all that came."""
    taken: bool = False


class Split:
    """The parts of one job, made as their turns come; rows of like size go together. The queue's lock guards it."""

    def __init__(self, job: Job, size_N: Sequence[int], bounds: Bounds) -> None:
        self.job = job
        self.is_over = False
        self._sizes = size_N
        self._cuts = list(_cuts(size_N, bounds))
        self._next = 0
        self._done: list[tuple[Part, Answers]] = []

    def next(self) -> Part | None:
        """The next part; None where there are no more, or the job has failed."""
        if self._next == len(self._cuts) or self.is_over:
            return None
        index = self._cuts[self._next]
        self._next += 1
        whole = len(self._cuts) == 1
        sizes = self._sizes if whole else [self._sizes[i] for i in index]
        rows = self.job.rows if whole else taken(self.job.rows, index)
        return Part(self, rows, len(index), size=max(sizes), cost=sum(sizes), index=None if whole else index)

    def add(self, part: Part, answers: Answers) -> bool:
        """Keep a part's answers; whether they were the last."""
        self._done.append((part, answers))
        return len(self._done) == len(self._cuts) and not self.is_over

    def answers(self) -> Answers:
        """The whole job's answers, in the order of its rows; when the last part's are here."""
        together = Answers.joined([answers for _, answers in self._done])
        if len(self._done) == 1:
            return together
        back = [0] * self.job.count
        for place, row in enumerate(row for part, _ in self._done for row in part.index or ()):
            back[row] = place
        return together.take(back)


def _cuts(size_N: Sequence[int], bounds: Bounds) -> Iterator[list[int]]:
    """Rows by size in runs that keep the bounds, or of one row that does not, as long as a row more is answered at less cost."""
    run: list[int] = []
    tokens, gain = 0, 0.0
    for i in sorted(range(len(size_N)), key=size_N.__getitem__):
        size = size_N[i]
        if run and (not bounds.hold(len(run) + 1, size) or bounds.gain(len(run) + 1, tokens + size, size) < gain):
            yield run
            run, tokens = [], 0
        run.append(i)
        tokens += size
        gain = bounds.gain(len(run), tokens, size)
    yield run
