"""A model's queue: whoever comes is admitted or refused at once, and a runner that becomes free takes what is there.

Nothing waits for others to come, unless the configuration says so. A large job queues a few parts at a time, so that the others' turns
come between them.
"""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from time import perf_counter
from typing import Protocol

from tidemill.core.errors import Unavailable
from tidemill.core.package import Answers
from tidemill.serve.batching.config import BatchConfig
from tidemill.serve.batching.job import Job, Told
from tidemill.serve.batching.parts import Bounds, Part, Split
from tidemill.serve.batching.rows import Rows
from tidemill.serve.batching.speed import Caution, Speed
from tidemill.serve.batching.waiting import Waiting
from tidemill.serve.http import Refused


class Runs(Protocol):
    """What a queue runs. Safe from several threads."""

    def sizes(self, rows: Rows) -> list[int]: ...
    def answer(self, parts: list[Rows], *, alone: bool) -> Answers:
        """Answers to all rows; `alone` where nothing else runs or waits."""


class Queue:
    """The jobs of one model. Safe from several threads.

    Args:
        slots: How many runs go on at once, each on a thread of its own.
        unit_s: The first guess of what a unit of cost takes, in seconds.
        told: Called after each run.
        most: What may go through the model at once at most.
    """

    def __init__(self, runs: Runs, config: BatchConfig, *, slots: int, unit_s: float, name: str, told: Told, most: Bounds) -> None:
        self._runs = runs
        self._config = config
        self._most = most
        self._slots = slots
        self._told = told
        self._speed = Speed(unit_s)
        self._caution = Caution()
        self._waiting = Waiting()
        self._jobs = 0
        self._running = 0
        self._closed = False
        self._lock = threading.Lock()
        self._came = threading.Condition(self._lock)
        self._name = name
        # Started by the first job. None are kept unstarted or ended: they know the queue, and a circle would keep a model that is unloaded.
        self._threads: list[threading.Thread] = []

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn; `done` is called from a runner.

        Raises:
            Refused: With 503, where the queue is full or the answer would come too late by what is predicted; with 504 where it already is.
            Unavailable: If the queue is closed.
        """
        size_N = self._runs.sizes(job.rows)
        now = perf_counter()
        if refusal := job.refusal(now):
            raise refusal
        split = Split(job, size_N, self._bounds())
        with self._lock:
            if self._closed:
                raise Unavailable("the model is being unloaded", retry_after_s=1)
            self._admit(job, sum(size_N), now)
            if not self._threads:
                self._start()
            self._jobs += 1
            for _ in range(self._slots):
                self._add_next(split, now)

    def close(self) -> None:
        """Take no more, and return when what was taken is answered."""
        with self._lock:
            self._closed = True
            self._came.notify_all()
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()

    def learn(self, job: Job, now: float) -> None:
        """Take from an answer that is about to go out how far off its prediction was."""
        if job.predicted_s:
            with self._lock:
                self._caution.add(job.predicted_s, now - job.queued)

    @property
    def jobs(self) -> int:
        """How many wait or run."""
        return self._jobs

    def _start(self) -> None:
        self._threads = [threading.Thread(target=self._run, name=f"{self._name}-{i}", daemon=True) for i in range(self._slots)]
        for thread in self._threads:
            thread.start()

    def _admit(self, job: Job, cost: int, now: float) -> None:
        wait_s = (self._waiting.cost(job.priority) + self._running / 2) * self._speed.unit_s / self._slots
        if self._jobs >= self._config.max_queue:
            raise _overload(f"{self._jobs} requests wait already", wait_s)
        if self._jobs:
            job.queued, job.predicted_s = now, wait_s + cost * self._speed.unit_s
            predicted_s = job.predicted_s * self._caution.factor
            if now + predicted_s > job.due:
                raise _overload(f"the answer may take {predicted_s:.2g} s, the request has {job.due - now:.2g} s", wait_s)

    def _bounds(self) -> Bounds:
        return replace(self._most, cost=min(self._most.cost, self._config.max_run_ms / 1e3 / self._speed.unit_s))

    def _add_next(self, split: Split, now: float) -> None:
        """Let the next part of a job wait, where there is one."""
        part = split.next()
        if part is not None:
            self._waiting.add(part, now)
            self._came.notify()

    def _run(self) -> None:
        """What a runner does until the queue is closed and empty."""
        while True:
            with self._lock:
                group = self._take()
                cost = sum(part.cost for part in group)
                alone = not self._running and not len(self._waiting)
                self._running += cost
            if not group:
                return
            self._answer(self._wanted(group), alone=alone)
            with self._lock:
                self._running -= cost
                now = perf_counter()
                for part in group:
                    self._add_next(part.split, now)

    def _take(self) -> list[Part]:
        """The parts that go next, once there are some; none where the queue is closed and empty."""
        while True:
            first = self._waiting.first()
            if first is None:
                if self._closed:
                    return []
                self._came.wait()
                continue
            bounds = self._bounds()
            job = first.split.job
            delay_s = min(job.arrived + self._config.max_delay_ms / 1e3, job.due) - perf_counter()
            if delay_s <= 0 or self._closed or len(self._waiting) >= bounds.rows or self._waiting.cost() >= bounds.cost:
                return self._waiting.group(first, bounds)
            self._came.wait(delay_s)

    def _wanted(self, group: list[Part]) -> list[Part]:
        """Those whose answer is of use to somebody; the others' jobs fail."""
        now, wanted = perf_counter(), []
        # Where others wait, what would be too late when it is done is not begun; one alone shows how long it takes now.
        size = max(part.size for part in group) if self._jobs > len(group) else 0
        run_s = self._most.length(size) * sum(part.count for part in group) * self._speed.unit_s
        for part in group:
            refusal = part.split.job.refusal(now + run_s)
            if refusal is not None:
                self._fail(part, refusal)
            elif not part.split.is_over:
                wanted.append(part)
        return wanted

    def _answer(self, group: list[Part], *, alone: bool) -> None:
        if not group:
            return
        begun = perf_counter()
        for part in group:
            part.split.job.begun = part.split.job.begun or begun
        try:
            answers = self._runs.answer([part.rows for part in group], alone=alone)
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to one of them
            for part in group:
                if len(group) == 1:
                    self._fail(part, error)
                else:
                    self._answer([part], alone=alone)
            return
        ended = perf_counter()
        rows, cost = sum(part.count for part in group), sum(part.cost for part in group)
        self._speed.add(cost, ended - begun)
        self._told(rows, cost=cost, padding=self._most.length(max(part.size for part in group)) * rows - cost)
        start = 0
        for part in group:
            self._give(part, answers if len(group) == 1 else answers.take(slice(start, start + part.count)), ended)
            start += part.count

    def _give(self, part: Part, answers: Answers, ended: float) -> None:
        with self._lock:
            is_last = part.split.add(part, answers)
            self._jobs -= is_last
        if is_last:
            part.split.job.answers = part.split.answers()
            part.split.job.finish(ended)

    def _fail(self, part: Part, error: Exception) -> None:
        with self._lock:
            is_first = not part.split.is_over
            part.split.is_over = True
            self._jobs -= is_first
        if is_first:
            part.split.job.fail(error, perf_counter())


def _overload(reason: str, wait_s: float) -> Refused:
    after = str(max(1, math.ceil(wait_s)))
    return Refused(503, "overload", f"too much is asked: {reason}", hint=f"come again in {after} s", headers=(("retry-after", after),))
