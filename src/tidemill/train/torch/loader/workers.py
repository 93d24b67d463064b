"""Threads that make batches ready: ONNX Runtime, tokenizers, Parquet, decoders and NumPy's copies let go of Python's lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

R = TypeVar("R")


class Workers:
    """A pool of threads that takes work in the order in which it is given; without threads, work is done at once where it is given.

    Work may wait for the result of work given before it, never after it.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tidemill-loader") if threads else None

    def submit(self, work: Callable[[], R]) -> Future[R]:
        if self._pool is not None:
            return self._pool.submit(work)
        done: Future[R] = Future()
        try:
            done.set_result(work())
        except Exception as error:  # noqa: BLE001 - as a pool does: raised again where the result is asked for
            done.set_exception(error)
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Drop what has not begun and wait for what has."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
