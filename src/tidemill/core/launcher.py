"""Where ranks run: N processes that do one job together, started, watched, named when they fail, and stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from tidemill.core.errors import Unavailable
from tidemill.core.events import Events

Cause = Literal["ended", "killed", "error", "hung", "lost"]


@dataclass(frozen=True, kw_only=True)
class RankJob:
    """What every rank runs: `function(arguments)`, with the variables of torchrun in its environment.

    Those are RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT, and TORCHELASTIC_RESTART_COUNT, which
    counts attempts. After a failure all ranks are stopped and start again with the same arguments: what the function keeps in
    a folder, it finds there.
    """

    target: str
    """`module:function`; it takes the arguments and returns None or a JSON value."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """JSON values."""
    folder: Path
    """Folder of the run, which every machine sees: logs, heartbeats and results of each attempt."""
    restarts: int = 0
    """How often all ranks start again after a failure, from 0."""
    hang_s: float = 30.0
    """Seconds without progress after which a rank counts as hung; ten times as long before its first step, and while it said to be patient."""
    paths: Sequence[str] = ()
    """Folders in which modules are looked for first."""
    events: Events = field(default_factory=Events, compare=False)
    """Hears what ranks tell and what becomes of them."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each rank may take."""

    threads: int = 1
    """Threads of a rank, at least 1 (OMP_NUM_THREADS)."""
    gpus: float = 0.0
    """GPUs of a rank; 0 is none."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Which rank ended an attempt, where, and what it did last."""

    rank: int
    host: str
    attempt: int
    cause: Cause
    """ended: with a code; killed: by a signal; error: the function raised; hung: no progress; lost: its machine is gone."""
    detail: str
    """The code, the signal's name, the error, or for how long nothing came."""
    step: int | None
    """The last step that it told of."""
    collective: str | None
    """The last collective operation that it entered."""
    doing: str
    """What it was at."""
    after_s: float
    """Seconds from its last sign of progress to the moment when it was named."""
    log: Path
    """What it printed."""

    def __str__(self) -> str:
        where = f"rank {self.rank} on {self.host}"
        done = "no step" if self.step is None else f"step {self.step}"
        last = f", last collective {self.collective}" if self.collective else ""
        return f"{where} {_SAID[self.cause].format(self.detail)} (last step: {done}, {self.doing}{last})"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended that ended well."""

    ranks: int
    results: Sequence[Any]
    """What each rank's function returned, by rank."""
    failures: Sequence[Failure] = ()
    """What ended earlier attempts."""

    @property
    def restarts(self) -> int:
        return len(self.failures)


class RanksFailed(Unavailable):
    """A job did not end well, however often it was started; `failures` has one entry an attempt."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        last = failures[-1]
        again = f", after {len(failures) - 1} restarts" if len(failures) > 1 else ""
        super().__init__(f"all ranks must finish: {last}{again}", hint=f"what it printed: {last.log}")
        self.failures = list(failures)


class Launcher(Protocol):
    """Starts ranks. May be called from several threads, each with a folder of its own; `run` blocks until all ranks have ended.

    Whatever way `run` is left, by its end, an error, an interrupt or the death of this process, no rank stays behind.
    """

    def run(self, job: RankJob, ranks: int, resources: Resources) -> Outcome:
        """Run `ranks` ranks of the job to their end.

        Raises:
            TidemillError: What a rank raised, if it is one of these: it would raise it again, so nothing is restarted.
            RanksFailed: If ranks fail or hang more often than `job.restarts`.
            Unavailable: If there is no room for so many ranks.
        """


_SAID: Mapping[str, str] = {
    "ended": "ended with code {0}",
    "killed": "was killed by {0}",
    "error": "raised {0}",
    "hung": "made no progress {0}",
    "lost": "was lost: {0}",
}
