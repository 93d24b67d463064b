"""Quick models on the event loop: what the calls of one turn of it ask for goes through together, without changing threads.

No time is waited. The first call of a turn schedules the run behind whatever the loop has ready by then, which is where the other
callers' requests are; where those are many, some run before.
"""

from __future__ import annotations

import asyncio
from time import perf_counter

from tidemill.core.package import Answers
from tidemill.serve.batching.job import Job, Told
from tidemill.serve.batching.rows import answer
from tidemill.serve.model import Model

# Longest that one run of a turn shall hold the loop, in milliseconds.
HOLD_MS = 5.0
# So many jobs wait for no more: what a run costs beside its rows is shared by enough, their callers go on meanwhile, and what each holds is used
# again while the processor's cache has it. With 1,024 connections it was a sixth of the processor's time.
ENOUGH = 64


class Turn:
    """The jobs of one model on one event loop; not for other threads.

    Args:
        arrays: Whether jobs must get their answers as arrays, not only as a row's fields.
        told: Called after each run.
    """

    def __init__(self, model: Model, *, max_rows: int, arrays: bool, told: Told) -> None:
        self._model = model
        self._max_rows = max(1, min(max_rows, int(HOLD_MS / max(model.row_ms, 1e-6))))
        self._arrays = arrays
        self._told = told
        self._waiting: list[Job] = []

    def submit(self, job: Job) -> None:
        self._waiting.append(job)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._run)
        elif len(self._waiting) == ENOUGH:
            self._run()

    def run_alone(self, job: Job) -> None:
        """For a job that nobody is there to go with."""
        self._answer([job])

    def _run(self) -> None:
        waiting, rows = self._waiting, 0
        if not waiting:  # they were enough before their turn came
            return
        for number, job in enumerate(waiting):
            rows += job.count
            if rows > self._max_rows and number:
                self._waiting = waiting[number:]
                asyncio.get_running_loop().call_soon(self._run)
                waiting = waiting[:number]
                break
        else:
            self._waiting = []
        self._answer(waiting)

    def _answer(self, jobs: list[Job]) -> None:
        begun = perf_counter()
        jobs = [job for job in jobs if job.is_worth_it(begun)]
        if not jobs:
            return
        try:
            answers = answer(self._model, [job.rows for job in jobs])
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to one of them
            for job in jobs:
                if len(jobs) == 1:
                    job.fail(error, begun)
                else:
                    self._answer([job])
            return
        ended = perf_counter()
        self._told(sum(job.count for job in jobs), padding=0, cost=0)
        self._give(jobs, answers, begun, ended)

    def _give(self, jobs: list[Job], answers: Answers, begun: float, ended: float) -> None:
        only_rows = not self._arrays and all(job.as_row for job in jobs)
        rows = self._model.form.rows(answers) if only_rows else []
        start = 0
        for number, job in enumerate(jobs):
            if only_rows:
                job.row = rows[number]
            else:
                job.answers = answers if len(jobs) == 1 else answers.take(slice(start, start + job.count))
            start += job.count
            job.begun = begun
            job.finish(ended)
