"""Blocks on their way into memory and out again, in one pass over an epoch: read before they are needed, dropped when they are used up."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from tidemill.train.torch.loader.batches import Batches, Dealing, Planned
from tidemill.train.torch.loader.columns import Columns
from tidemill.train.torch.loader.order import Order
from tidemill.train.torch.loader.source import WEIGHT, Resident, Source
from tidemill.train.torch.loader.workers import Workers


@dataclass(frozen=True)
class Held:
    """Rows of a block that are in memory, or will be."""

    columns: Future[Columns]
    picks: np.ndarray | None
    """Which rows of the block these are, ascending; all where None."""

    def at(self, places_N: np.ndarray) -> np.ndarray:
        """Where rows of the block stand in the columns."""
        return places_N if self.picks is None else np.searchsorted(self.picks, places_N)


@dataclass(frozen=True)
class Task:
    """A step to be made: all that it needs is in memory, or was given to the workers before it."""

    planned: Planned
    micro: list[np.ndarray]
    """This rank's rows for each micro-batch, those of a block beside each other."""
    held: dict[int, Held]
    """Empty where rows are resident."""
    weights: dict[int, Future[np.ndarray]]
    """Of every block that the step has rows of, on any rank; empty where rows have no weights or are resident."""


class Reading:
    """One pass over an epoch.

    While a window's steps are made, the blocks of the next window are read, spread evenly between them. Only the rows that
    this rank gets are made ready and held, unless all blocks are to stay (`kept`).
    """

    def __init__(
        self,
        source: Source,
        order: Order,
        batches: Batches,
        dealing: Dealing,
        workers: Workers,
        *,
        epoch: int,
        start: int = 0,
        kept: dict[int, Future[Columns]] | None = None,
    ) -> None:
        self._source, self._order, self._dealing, self._workers, self._kept = source, order, dealing, workers, kept
        self._resident = isinstance(source, Resident)
        self._windows = order.windows(epoch)
        self._place_B = np.zeros(len(source.sizes), np.int64)
        if self._windows:
            self._place_B[np.concatenate([window.blocks for window in self._windows])] = np.arange(len(source.sizes))
        self._plan = batches.steps(epoch, start)
        self._upcoming = next(self._plan, None)
        self._planned: deque[tuple[Planned, list[np.ndarray]]] = deque()
        self._closed = self._upcoming.window - 1 if self._upcoming else -1
        self._wanted: dict[int, list[np.ndarray]] = {}  # by block: rows of the steps that are planned, by step
        self._held: dict[int, Held] = {}
        self._uses: dict[int, int] = {}
        self._weights: dict[int, Future[np.ndarray]] = {}
        self._queue: deque[tuple[int, int]] = deque()  # windows and their blocks to be read
        self._credit = 0.0
        self._passed = 0  # windows that no later step has rows of

    def tasks(self) -> Iterator[Task]:
        """The steps in order; each when all it needs was given to the workers."""
        while True:
            if not self._planned and not self._plan_one():
                return
            planned, micro = self._planned.popleft()
            if self._resident:
                yield Task(planned, micro, {}, {})
                continue
            self._close(planned.last_window)
            while self._queue and self._queue[0][0] <= planned.last_window:
                self._read(self._queue.popleft()[1])
            self._read_ahead(planned)
            blocks = {int(block) for rows in micro for block in np.unique(self._order.block_of(rows))}
            weights = {}
            if self._source.weighted:
                weights = {int(block): self._weights[int(block)] for block in np.unique(self._order.block_of(planned.rows))}
            yield Task(planned, micro, {block: self._held[block] for block in blocks}, weights)

    def release(self, task: Task) -> None:
        """Drop the blocks that no later step has rows of; called for each task in order, once it is done."""
        if self._kept is None and not self._resident:
            for block in task.held:
                self._uses[block] -= 1
                if not self._uses[block]:
                    del self._held[block], self._uses[block]
            while self._passed < task.planned.window:
                for block in self._windows[self._passed].blocks:
                    self._weights.pop(int(block), None)
                self._passed += 1

    def close(self) -> None:
        """Forget the blocks whose reading was cut short or failed."""
        kept = self._kept if self._kept is not None else {}
        for block, future in list(kept.items()):
            if not future.done() or future.cancelled() or future.exception() is not None:
                del kept[block]

    def _plan_one(self) -> bool:
        """Plan one step more and say what it wants; False at the end."""
        planned = self._upcoming
        if planned is None:
            return False
        micro = self._dealing.deal(planned.rows, None if self._resident else self._place_B)
        self._planned.append((planned, micro))
        if self._kept is None and not self._resident:
            rows_N = np.concatenate(micro)
            blocks_N = self._order.block_of(rows_N)
            for block in np.unique(blocks_N).tolist():
                self._wanted.setdefault(block, []).append(rows_N[blocks_N == block] - self._order.starts[block])
                self._uses[block] = self._uses.get(block, 0) + 1
        self._upcoming = next(self._plan, None)
        return True

    def _close(self, window: int) -> None:
        """Queue what is to be read of all windows up to this one: all that any step wants of them."""
        while self._closed < min(window, len(self._windows) - 1):
            self._closed += 1
            while self._kept is None and self._upcoming is not None and self._upcoming.window <= self._closed:
                self._plan_one()
            self._queue += [(self._closed, int(block)) for block in self._windows[self._closed].blocks]

    def _read_ahead(self, planned: Planned) -> None:
        """Read some of the next window: as large a part of it as the step is of its own."""
        self._close(planned.window + 1)
        if planned.window + 1 < len(self._windows):
            self._credit += len(self._windows[planned.window + 1].blocks) * len(planned.rows) / self._windows[planned.window].num_rows
            while self._credit >= 1 and self._queue:
                self._credit -= 1
                self._read(self._queue.popleft()[1])

    def _read(self, block: int) -> None:
        source = self._source
        if self._kept is not None:
            if block not in self._kept:
                self._kept[block] = self._workers.submit(lambda: source.read(block))
            self._held[block] = Held(self._kept[block], None)
            if source.weighted:
                columns = self._kept[block]
                self._weights[block] = self._workers.submit(lambda: np.asarray(columns.result()[WEIGHT]))
            return
        if block in self._wanted:
            wanted = np.sort(np.concatenate(self._wanted.pop(block)))
            picks = wanted if len(wanted) < source.sizes[block] else None
            self._held[block] = Held(self._workers.submit(lambda: source.read(block, picks)), picks)
        if source.weighted:
            self._weights[block] = self._workers.submit(lambda: source.weights(block))
