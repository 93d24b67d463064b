"""All that runs one model: the cache before it, the turn of the event loop for what is quick, the queue for everything else."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import inf
from time import perf_counter

from tidemill.core.package import Answers
from tidemill.serve.batching import rows
from tidemill.serve.batching.config import BatchConfig
from tidemill.serve.batching.counts import ModelCounts
from tidemill.serve.batching.job import Job
from tidemill.serve.batching.parts import Bounds
from tidemill.serve.batching.queue import Queue
from tidemill.serve.batching.rows import Rows
from tidemill.serve.batching.turn import HOLD_MS, Turn
from tidemill.serve.cache import Cache, Looked
from tidemill.serve.metrics import Metrics
from tidemill.serve.model import Model
from tidemill.serve.routes import Work

# Tokens of texts that go through at once on a processor: a sentence encoder is as quick for each from some hundred on, and slower beyond this, where
# what lies between its layers leaves the core's cache.
TOKENS_AT_ONCE = 512


class Batches:
    """Answers the rows of one model's callers. Safe from several threads.

    Args:
        slots: How many runs of the queue go on at once.
        inline_ms: A model whose row takes at most this long is quick.
        arrays: Whether every answer is needed as arrays, as the prediction log does.
    """

    def __init__(
        self, model: Model, config: BatchConfig, *, slots: int, inline_ms: float, cache: Cache | None, metrics: Metrics, arrays: bool
    ) -> None:
        self.model = model
        self.cache = cache
        self.quick_rows = 0 if model.waits or model.row_ms > inline_ms else int(HOLD_MS / max(model.row_ms, 1e-6))
        """So many rows take so little time that they may be answered where they were read."""
        self.counted = ModelCounts(metrics, model)
        self._turn = Turn(model, max_rows=config.max_rows, arrays=arrays, told=self.counted.run)
        unit_s = model.row_ms / 1e3 / max(1, *rows.sizes(model, rows.prepared(model, model.signature.from_records([model.example]))))
        usual = TOKENS_AT_ONCE if model.has_tokens and model.predictor.runtime.device == "cpu" else inf
        most = Bounds(rows=config.max_rows, cost=config.max_tokens or usual, step=model.predictor.length_step)
        name = f"{model.name}-{model.version}"
        self.queue = Queue(_Runs(model), config, slots=slots, unit_s=unit_s, name=name, told=self.counted.run, most=most)
        self.deadline_ms = config.deadline_ms if config.deadline_ms is not None else model.promised_ms

    def ask(self, work: Work, job: Job, *, tenant: str, on_loop: bool, alone: bool = False) -> None:
        """Have a call's rows answered: `job.done` is called once they are, from whichever thread, and maybe before this returns.

        Args:
            on_loop: Whether this is the event loop, where rows of quick models are answered together.
            alone: Whether nobody is there to go together with.

        Raises:
            DataError: If a value cannot be what its column holds.
            Refused: If too much waits already.
        """
        if self.cache is None or not 0 < work.rows <= self.cache.max_rows:
            return self._run(work.prepared(), job, on_loop=on_loop, alone=alone)
        looked = self.cache.look(work.inputs, work.rows, tenant=tenant)
        mine = None
        if looked.missing is not None:
            mine = replace(job, done=partial(_land, looked), count=looked.count, as_row=False, needed=looked.is_shared)
            try:
                self._run(rows.prepared(self.model, looked.missing), mine, on_loop=on_loop, alone=alone)
            except Exception as error:
                looked.fail(error)
                raise
        looked.then(partial(_told, job, mine, perf_counter()))
        return None

    def close(self) -> None:
        """Return when what was taken is answered."""
        self.queue.close()

    def _run(self, given: Rows, job: Job, *, on_loop: bool, alone: bool) -> None:
        job.rows = given
        if job.count > self.quick_rows:
            self.queue.submit(job)
        elif alone or not on_loop:
            self._turn.run_alone(job)
        else:
            self._turn.submit(job)


class _Runs:
    """What the queue runs: the model, and nothing that knows the queue."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def sizes(self, given: Rows) -> list[int]:
        return rows.sizes(self._model, given)

    def answer(self, parts: list[Rows], *, alone: bool) -> Answers:
        return rows.answer(self._model, parts, alone=alone)


def _land(looked: Looked, ran: Job) -> None:
    if ran.answers is not None:
        looked.give(ran.answers)
    else:
        looked.fail(ran.error or RuntimeError("a job must end with answers or an error"))


def _told(job: Job, mine: Job | None, looked: float, answers: Answers | None, error: BaseException | None) -> None:
    job.begun, job.answers = mine.begun if mine is not None else looked, answers
    job.error = error if isinstance(error, Exception) else None
    job.finish(perf_counter())
