"""Steps of training from any source of rows: planned by seed and epoch, read by block, made ready by workers ahead of the network."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.core.errors import ConfigError, Unsupported
from tidemill.core.load import need
from tidemill.train.torch.loader.batches import Batches, Dealing, RowBatches, TokenBatches
from tidemill.train.torch.loader.columns import Columns
from tidemill.train.torch.loader.config import LoaderConfig
from tidemill.train.torch.loader.lengths import measured
from tidemill.train.torch.loader.micro import MicroBatches
from tidemill.train.torch.loader.order import Order
from tidemill.train.torch.loader.reading import Reading, Task
from tidemill.train.torch.loader.source import Resident, Source
from tidemill.train.torch.loader.step import Step
from tidemill.train.torch.loader.workers import Workers

# Threads where nothing else is said.
WORKERS = 2


class Loader:
    """A source's rows as steps, every row once an epoch.

    Which rows a step holds, and `Step.total`, depend on the source, the batch's size, `shuffle_mib`, seed and epoch alone. A pass that
    begins at a step gives what one from the beginning would have given from there on.

    Args:
        batch_rows: Rows of a step, over all ranks and micro-batches.
        batch_tokens: Instead of that for texts: most tokens of a step, padding included. Only a single text that is longer goes beyond it.
        rank: Of those that read different rows; ranks that share a model's parts read the same.
        accumulate: Micro-batches of a step on each rank.
        shuffle: False gives the rows of every epoch in the order of the split, for evaluation.
        static: Whether all micro-batches have one shape, filled up with rows of weight 0 and texts of the greatest length, as pipelines need it.
        folder: Where lengths of texts are kept between runs; they are measured again where it is None.

    Raises:
        ConfigError: If not exactly one of `batch_rows` and `batch_tokens` is given, or a number is out of range.
        Unsupported: If `static` is asked for with `batch_tokens`.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_rows: int | None = None,
        batch_tokens: int | None = None,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        accumulate: int = 1,
        shuffle: bool = True,
        static: bool = False,
        config: LoaderConfig | None = None,
        folder: Path | None = None,
    ) -> None:
        torch = need("torch", "training a network")
        self._source, self._config = source, config or LoaderConfig()
        if (batch_rows is None) == (batch_tokens is None):
            raise ConfigError("train: needs one of batch_size and batch_tokens", hint="batch_tokens is for texts")
        facts = [source.fingerprint, list(source.sizes), batch_rows, batch_tokens, seed, shuffle, self._config.shuffle_mib]
        self._digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        if batch_tokens is not None and source.targets_per_row > 1:  # rows are of one length
            batch_rows, batch_tokens = batch_tokens // source.targets_per_row or 1, None
        if static and batch_tokens is not None:
            raise Unsupported("train.batch_tokens: gives batches of differing shape, which pipelines cannot take", hint="use batch_size")
        self._order = Order(
            source.sizes, source.sizes_bytes, window_bytes=self._config.shuffle_mib << 20, seed=seed, shuffle=shuffle
        )  # fmt: skip
        self.num_rows = self._order.num_rows
        self._resident = isinstance(source, Resident)
        self._beside = torch.cuda.is_available()
        # Blocks that stay, where all of them fit.
        stays = not self._resident and sum(source.sizes_bytes) <= self._config.cache_mib << 20
        self._kept: dict[int, Future[Columns]] | None = {} if stays else None
        lengths: np.ndarray | None = None
        self._batches: Batches
        if batch_tokens is None:
            self._batches = RowBatches(self._order, batch_rows=batch_rows or 0)
        else:
            lengths = measured(source, threads=self._threads(), kept=self._kept, folder=folder)
            self._batches = TokenBatches(self._order, lengths=lengths, batch_tokens=batch_tokens)
        self._dealing = Dealing(self._order, rank=rank, ranks=ranks, accumulate=accumulate, lengths=lengths)
        fixed = ceil(ceil(batch_rows / ranks) / accumulate) if static and batch_rows else None
        self._micro = MicroBatches(source, self._order, rows=fixed, pin=self._config.pin)
        self._lengths_N = lengths
        self._next = 0, 0

    def num_steps(self, epoch: int) -> int:
        """Steps of an epoch; under a budget of tokens, epochs differ a little."""
        return self._batches.num_steps(epoch)

    @property
    def position(self) -> dict[str, Any]:
        """Where training stands, as plain JSON: the step after the last one that was given out, and what the order of rows depends on."""
        return {"epoch": self._next[0], "step": self._next[1], "order": self._digest}

    def resume(self, position: Mapping[str, Any]) -> tuple[int, int]:
        """The epoch and step to go on from, for `steps`.

        Raises:
            ConfigError: If the position is one in another order of rows.
        """
        if position["order"] != self._digest:
            raise ConfigError(
                "a checkpoint's place among the rows: must be one in the same order, but the data, the batch size, shuffle_mib or the seed differ",
                hint="train from the start, or with the settings of the checkpoint",
            )
        self._next = int(position["epoch"]), int(position["step"])
        return self._next

    def steps(self, epoch: int, start: int = 0) -> Generator[Step, None, None]:
        """The steps of an epoch from `start` on, made ready ahead. Close the iterator to stop the workers before the end.

        Raises:
            DataError: If a row is not what was declared; names the row.
        """
        last = self.num_steps(epoch)
        self._next = (epoch, start) if start < last else (epoch + 1, 0)
        threads = self._threads()
        with closing(self._ahead(epoch, start, threads) if threads or not self._resident else self._at_once(epoch, start)) as steps:
            for step in steps:
                self._next = (epoch, step.number + 1) if step.number + 1 < last else (epoch + 1, 0)
                yield step

    def _threads(self) -> int:
        """Of an epoch that begins now. Where nothing is to be read, threads would take the processor from the network for little."""
        if self._config.workers is not None:
            return self._config.workers
        ready = self._resident or (self._kept is not None and len(self._kept) == len(self._source.sizes))
        return 0 if ready and not self._beside else WORKERS

    def _at_once(self, epoch: int, start: int) -> Generator[Step, None, None]:
        """Resident rows, each step made when it is asked for."""
        for planned in self._batches.steps(epoch, start):
            yield self._made(Task(planned, self._dealing.deal(planned.rows, None), {}, {}), epoch)

    def _ahead(self, epoch: int, start: int, threads: int) -> Generator[Step, None, None]:
        workers = Workers(threads)
        reading = Reading(self._source, self._order, self._batches, self._dealing, workers, epoch=epoch, start=start, kept=self._kept)
        ahead = self._config.prefetch if workers.threads else 0
        tasks, waiting = reading.tasks(), deque[tuple[Task, Future[Step]]]()
        with closing(reading), workers:
            while True:
                while len(waiting) <= ahead and (task := next(tasks, None)) is not None:
                    waiting.append((task, workers.submit(partial(self._made, task, epoch))))
                if not waiting:
                    return
                task, made = waiting.popleft()
                step = made.result()
                reading.release(task)
                del task, made
                yield step

    def _made(self, task: Task, epoch: int) -> Step:
        planned = task.planned
        tokens = 0 if self._lengths_N is None else int(self._lengths_N[planned.rows].sum())
        if self._source.targets_per_row > 1:
            tokens = len(planned.rows) * self._source.targets_per_row
        return Step(
            micro=[self._micro.make(rows, task.held, epoch=epoch) for rows in task.micro],
            total=self._total(task),
            epoch=epoch,
            number=planned.number,
            rows=len(planned.rows),
            tokens=tokens,
        )

    def _total(self, task: Task) -> float:
        """The weight of all rows of a step, on every rank the same sum in the same order."""
        rows_N = task.planned.rows
        if not self._source.weighted:
            return float(len(rows_N) * self._source.targets_per_row)
        weight_N, blocks_N = np.empty(len(rows_N)), self._order.block_of(rows_N)
        for block in np.unique(blocks_N).tolist():
            of_block = blocks_N == block
            weight_B = self._source.weights(block) if self._resident else task.weights[block].result()
            weight_N[of_block] = weight_B[rows_N[of_block] - self._order.starts[block]]
        return float(weight_N.sum()) * self._source.targets_per_row
