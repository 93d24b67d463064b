"""How many tokens each row has: counted once, in parallel, and kept in a file for the next run and the other ranks."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.core.parallel import ordered_map
from tidemill.train.torch.loader.columns import Columns, Ragged
from tidemill.train.torch.loader.source import TOKENS, Source


def measured(source: Source, *, threads: int = 1, kept: dict[int, Future[Columns]] | None = None, folder: Path | None = None) -> np.ndarray:
    """Tokens of each row, int32 [N].

    Args:
        kept: Filled with the blocks as they are read, so that the first epoch need not read them again.
        folder: Holds the file of lengths; where it is there, nothing is read.

    Raises:
        ConfigError: If rows of the source are no texts.
    """
    if folder is None:
        return _counted(source, threads, kept)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"lengths-{source.fingerprint}.npy"
    with _alone(file.with_suffix(".lock")):
        if not file.exists():
            lengths_N = _counted(source, threads, kept)
            partial = file.with_name(f".{file.name}.partial")
            with partial.open("wb") as stream:
                np.save(stream, lengths_N)
            partial.replace(file)
            return lengths_N
    lengths_N = np.load(file)
    if len(lengths_N) != sum(source.sizes):
        raise ConfigError(f"{file}: must hold the lengths of {sum(source.sizes):,} rows, holds {len(lengths_N):,}", hint="remove the file")
    return np.asarray(lengths_N)


def _counted(source: Source, threads: int, kept: dict[int, Future[Columns]] | None) -> np.ndarray:
    def count(block: int) -> np.ndarray:
        columns = source.read(block)
        if not isinstance(columns.get(TOKENS), Ragged):
            raise ConfigError("train.batch_tokens: needs texts, which have tokens", hint="use batch_size")
        if kept is not None:
            kept[block] = Future()
            kept[block].set_result(columns)
        return np.asarray(columns[TOKENS].lengths, np.int32)

    counted = list(ordered_map(count, range(len(source.sizes)), threads))
    return np.concatenate(counted) if counted else np.empty(0, np.int32)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While nobody else on this machine is in it."""
    held = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
