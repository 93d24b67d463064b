"""XGBoost's processes that fit one model together, by its own collective operations: torchrun's variables say who is who."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tidemill.core.load import need

# Whoever hangs is ended by the launcher, long before.
_TIMEOUT_S = 7 * 86_400
# The first process may come last: tries to reach it, with longer and longer pauses, a minute and a half in all.
_TRIES = 10


def place() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@contextmanager
def joined() -> Iterator[None]:
    """Inside the block all fits of XGBoost are of all processes together."""
    xgb = need("xgboost", "model.kind xgboost")
    rank, ranks = place()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    tracker = None
    if rank == 0:
        tracker = need("xgboost.tracker", "model.kind xgboost").RabitTracker(n_workers=ranks, host_ip=address, port=port, sortby="task")
        tracker.start()
    with xgb.config_context(verbosity=0):
        collective = need("xgboost.collective", "model.kind xgboost")
        collective.init(
            dmlc_communicator="rabit", dmlc_tracker_uri=address, dmlc_tracker_port=port, dmlc_task_id=f"{rank:09d}", dmlc_timeout=_TIMEOUT_S,
            dmlc_retry=_TRIES,
        )  # fmt: skip
        yield
        collective.finalize()
    if tracker is not None:
        tracker.wait_for()


def agreed(wish: bool) -> bool:
    """Whether any process wishes it."""
    collective = need("xgboost.collective", "model.kind xgboost")
    return bool(collective.allreduce(np.array([int(wish)]), collective.Op.MAX)[0])
