"""The queue: whose turn it is, what goes together, who is refused, and that everybody gets their own answer."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.errors import Unavailable
from tidemill.core.package import Answers
from tidemill.serve.batching.config import BatchConfig
from tidemill.serve.batching.job import Job
from tidemill.serve.batching.parts import Bounds
from tidemill.serve.batching.queue import Queue
from tidemill.serve.batching.rows import Rows
from tidemill.serve.http import Refused

FAR_S = 60.0


class Doubling:
    """A model of lists: a row is a number of tokens and a value, its answer twice the value."""

    def __init__(self) -> None:
        self.runs: list[list[tuple[int, float]]] = []
        self.alone: list[bool] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def sizes(self, rows: Rows) -> list[int]:
        return [row[0] for row in rows]

    def answer(self, parts: list[Rows], *, alone: bool) -> Answers:
        rows: list[Any] = [row for part in parts for row in part]
        self.runs.append(rows)
        self.alone.append(alone)
        self.entered.release()
        self.gate.wait(FAR_S)
        if any(row[1] < 0 for row in rows):
            raise ValueError("no negative value can be doubled")
        return Answers(np.array([2.0 * row[1] for row in rows]), interval=np.array([[row[0], row[1]] for row in rows], float))


Told = list[tuple[int, int, int]]


@contextmanager
def queue(*, slots: int = 1, unit_s: float = 1e-6, step: int = 1, **config: Any) -> Iterator[tuple[Queue, Doubling, Told]]:
    model, told = Doubling(), []

    def count(rows: int, *, cost: int, padding: int) -> None:
        told.append((rows, cost, padding))

    settings = BatchConfig(**{"max_run_ms": 600_000, **config})
    most = Bounds(rows=settings.max_rows, cost=settings.max_tokens or math.inf, step=step)
    made = Queue(model, settings, slots=slots, unit_s=unit_s, name="test", told=count, most=most)
    try:
        yield made, model, told
    finally:
        model.gate.set()
        made.close()


class Caller:
    """Puts jobs and waits for them."""

    def __init__(self, to: Queue) -> None:
        self._queue = to

    def ask(self, *rows: tuple[int, float], within_s: float = FAR_S, **more: Any) -> Callable[[], Job]:
        ended = threading.Event()
        now = time.perf_counter()
        job = Job(list(rows), len(rows), lambda _: ended.set(), now, now + within_s, **more)
        self._queue.submit(job)

        def wait() -> Job:
            assert ended.wait(FAR_S)
            return job

        return wait


def values(job: Job) -> list[float]:
    assert job.error is None, job.error
    assert job.answers is not None
    return list(job.answers.prediction)


@contextmanager
def busy(made: Queue, model: Doubling) -> Iterator[Caller]:
    """While the only runner is held by a job of its own."""
    caller = Caller(made)
    model.gate.clear()
    held = caller.ask((1, 1.0))
    assert model.entered.acquire(timeout=FAR_S)
    yield caller
    model.gate.set()
    held()


ROWS = st.lists(st.tuples(st.integers(1, 200), st.floats(0, 1e6)), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(
    jobs=st.lists(st.tuples(ROWS, st.integers(1, 9)), min_size=1, max_size=20),
    slots=st.integers(1, 3),
    max_rows=st.integers(1, 12),
    max_tokens=st.one_of(st.none(), st.integers(1, 600)),
    step=st.sampled_from([1, 8]),
    delay=st.sampled_from([0.0, 2.0]),
)
def test_every_caller_gets_their_own_answers_and_no_run_is_too_large(
    jobs: list[tuple[list[tuple[int, float]], int]], slots: int, max_rows: int, max_tokens: int | None, step: int, delay: float
) -> None:
    with queue(slots=slots, step=step, max_rows=max_rows, max_tokens=max_tokens, max_delay_ms=delay) as (made, model, told):
        waits: list[Any] = [None] * len(jobs)

        def put(place: int) -> None:
            rows, priority = jobs[place]
            waits[place] = Caller(made).ask(*rows, priority=priority)

        callers = [threading.Thread(target=put, args=(place,)) for place in range(len(jobs))]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        for (rows, _), wait in zip(jobs, waits, strict=True):
            job = wait()
            assert values(job) == [2 * value for _, value in rows]
            np.testing.assert_array_equal(job.answers.interval, np.array(rows, float))
            assert job.begun <= job.ended
    assert sum(map(len, model.runs)) == sum(len(rows) for rows, _ in jobs)
    for run in model.runs:
        assert len(run) <= max_rows
        assert len(run) == 1 or max_tokens is None or len(run) * length(run, step) <= max_tokens
    tokens = [sum(size for size, _ in run) for run in model.runs]
    assert sorted(told) == sorted(
        (len(run), each, len(run) * length(run, step) - each) for run, each in zip(model.runs, tokens, strict=True)
    )


def length(run: list[tuple[int, float]], step: int) -> int:
    longest = max(size for size, _ in run)
    return next(multiple for multiple in range(0, longest + step, step) if multiple >= longest)


def test_what_is_queued_goes_together_by_size_and_the_oldest_goes_first() -> None:
    with queue() as (made, model, _):
        with busy(made, model) as caller:
            waits = [caller.ask((size, float(i))) for i, size in enumerate([100, 10, 98, 11, 104, 9])]
        for i, wait in enumerate(waits):
            assert values(wait()) == [2.0 * i]
    assert [sorted(size for size, _ in run) for run in model.runs] == [[1], [98, 100, 104], [9, 10, 11]]


def test_texts_go_together_only_where_padding_costs_less_than_a_run() -> None:
    with queue() as (made, model, told):
        with busy(made, model) as caller:
            waits = [caller.ask((size, 1.0)) for size in (40, 41, 42, 60, 120, 43, 200)]
        for wait in waits:
            wait()
    assert [sorted(size for size, _ in run) for run in model.runs] == [[1], [40, 41, 42, 43], [60], [120], [200]]
    assert sum(padding for *_, padding in told) == 3 + 2 + 1


def test_texts_of_one_multiple_go_together_as_if_they_were_as_long() -> None:
    with queue(step=32) as (made, model, told):
        with busy(made, model) as caller:
            waits = [caller.ask((size, 1.0)) for size in (33, 64, 50, 65, 32, 31)]
        for wait in waits:
            wait()
    assert [sorted(size for size, _ in run) for run in model.runs] == [[1], [33, 50, 64], [65], [31, 32]]
    assert sorted(told)[-1] == (3, 147, 3 * 64 - 147)


def test_a_large_request_is_cut_where_lengths_leap() -> None:
    with queue() as (made, model, _):
        sizes = [10, 200, 11, 201, 12, 202]
        assert values(Caller(made).ask(*[(size, float(i)) for i, size in enumerate(sizes)])()) == [2.0 * i for i in range(6)]
    assert [[size for size, _ in run] for run in model.runs] == [[10, 11, 12], [200, 201, 202]]


def test_a_run_is_told_whether_it_is_alone() -> None:
    with queue(slots=2, max_rows=1) as (made, model, _):
        caller = Caller(made)
        caller.ask((1, 1.0))()
        model.gate.clear()
        waits = [caller.ask((1, 1.0))]
        assert model.entered.acquire(timeout=FAR_S)
        assert model.entered.acquire(timeout=FAR_S)
        waits += [caller.ask((1, 1.0)) for _ in range(3)]
        model.gate.set()
        for wait in waits:
            wait()
    # The last may find the other runner at work still, or not.
    assert model.alone[:4] == [True, True, False, False]


def test_nothing_waits_where_a_runner_is_free() -> None:
    with queue(slots=2) as (made, model, _):
        caller = Caller(made)
        model.gate.clear()
        waits = []
        for value in (1.0, 2.0):
            waits.append(caller.ask((1, value)))
            assert model.entered.acquire(timeout=FAR_S)
        model.gate.set()
        assert [values(wait()) for wait in waits] == [[2.0], [4.0]]
    assert len(model.runs) == 2


def test_a_declared_delay_counts_from_the_first_arrival_and_ends_when_the_batch_is_full() -> None:
    with queue(max_delay_ms=60_000, max_rows=3) as (made, model, _):
        caller = Caller(made)
        waits = [caller.ask((1, float(i))) for i in range(3)]
        assert [values(wait()) for wait in waits] == [[0.0], [2.0], [4.0]]
    assert len(model.runs) == 1
    with queue(max_delay_ms=30) as (made, model, _):
        assert values(Caller(made).ask((1, 1.0))()) == [2.0]


def test_others_have_their_turn_between_the_parts_of_a_large_request() -> None:
    with queue(max_rows=2) as (made, model, _):
        with busy(made, model) as caller:
            large = caller.ask(*[(1, float(i)) for i in range(20)])
            small = [caller.ask((50, 100.0)), caller.ask((90, 101.0))]
        assert values(large()) == [2.0 * i for i in range(20)]
        assert [values(wait()) for wait in small] == [[200.0], [202.0]]
    places = [i for i, run in enumerate(model.runs) if run[0][1] >= 100]
    assert places == [2, 3]


def test_urgent_requests_go_first_and_the_others_are_not_starved() -> None:
    with queue(max_rows=1) as (made, model, _):
        with busy(made, model) as caller:
            waits = [caller.ask((1, float(i)), priority=priority) for i, priority in ((9, 9), (5, 5), (1, 1))]
        for wait in waits:
            wait()
    assert [run[0][1] for run in model.runs[1:]] == [1.0, 5.0, 9.0]


def test_work_whose_time_is_over_or_whose_caller_has_gone_is_not_run() -> None:
    with queue(max_rows=1) as (made, model, _):
        here = True
        with busy(made, model) as caller:
            late = caller.ask((1, 7.0), within_s=0.05)
            gone = caller.ask((1, 8.0), wanted=lambda: here)
            needed = caller.ask((1, 9.0), wanted=lambda: here, needed=lambda: True)
            here = False
            time.sleep(0.06)
        assert [(wait().error.status, wait().error.cause) for wait in (late, gone)] == [(504, "deadline"), (499, "gone")]  # type: ignore[union-attr]
        assert values(needed()) == [18.0]
        with pytest.raises(Refused, match="time that the request had is over"):
            caller.ask((1, 1.0), within_s=0.0)
    assert [run[0][1] for run in model.runs] == [1.0, 9.0]


def test_what_would_come_too_late_is_refused_at_once() -> None:
    with queue(unit_s=0.01) as (made, model, _):
        with busy(made, model) as caller:
            waits = [caller.ask((100, 1.0), within_s=FAR_S)]
            with pytest.raises(Refused) as refused:
                caller.ask((1, 2.0), within_s=0.5)
            assert (refused.value.status, refused.value.cause) == (503, "overload")
            assert dict(refused.value.headers)["retry-after"] == "2"
            waits += [caller.ask((1, 3.0), within_s=5.0), caller.ask((1, 4.0), within_s=0.5, priority=1)]
        assert [values(wait()) for wait in waits] == [[2.0], [6.0], [8.0]]


def test_a_lone_request_is_run_whatever_is_predicted() -> None:
    with queue(unit_s=1000.0) as (made, _, _told):
        assert values(Caller(made).ask((5, 1.0), within_s=5.0)()) == [2.0]


def test_a_full_queue_refuses_at_once() -> None:
    with queue(max_queue=2) as (made, model, _):
        with busy(made, model) as caller:
            wait = caller.ask((1, 1.0))
            with pytest.raises(Refused, match="2 requests wait already"):
                caller.ask((1, 2.0))
        assert values(wait()) == [2.0]
        assert values(Caller(made).ask((1, 3.0))()) == [6.0]
    assert made.jobs == 0


def test_one_wrong_row_fails_its_own_caller_alone() -> None:
    with queue() as (made, model, _):
        with busy(made, model) as caller:
            good, bad, other = caller.ask((1, 1.0)), caller.ask((1, -1.0)), caller.ask((1, 2.0))
        assert values(good()) == [2.0]
        assert values(other()) == [4.0]
        assert isinstance(bad().error, ValueError)
        assert made.jobs == 0


def test_a_part_that_fails_ends_its_whole_request_once() -> None:
    with queue(max_rows=2) as (made, _, _told):
        wait = Caller(made).ask(*[(1, 1.0)] * 3, (1, -1.0), *[(1, 1.0)] * 6)
        assert isinstance(wait().error, ValueError)
        assert values(Caller(made).ask((1, 1.0))()) == [2.0]
    assert made.jobs == 0


def test_a_closed_queue_answers_what_it_took_and_takes_no_more() -> None:
    with queue() as (made, model, _):
        with busy(made, model) as caller:
            waits = [caller.ask((size, 1.0)) for size in (1, 50, 100)]
            closing = threading.Thread(target=made.close)
            closing.start()
            while not made._closed:
                time.sleep(0.001)
            with pytest.raises(Unavailable):
                caller.ask((1, 1.0))
        closing.join(FAR_S)
        assert not closing.is_alive()
        assert [values(wait()) for wait in waits] == [[2.0]] * 3
