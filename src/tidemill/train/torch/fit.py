"""From a kind of network, its rows and its project to ranks, and back to weights. One rank runs in this process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill.core.errors import DataError
from tidemill.core.events import Event, Events
from tidemill.core.launcher import RankJob, Resources
from tidemill.core.load import load, need
from tidemill.core.project import to_plain
from tidemill.models.base import Matrix, OnRound
from tidemill.train.torch.config import NetworkConfig, Training, resolve
from tidemill.train.torch.sources import described


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a fit leaves."""

    shape: Any
    """What the data told the network."""
    state: Mapping[str, Any]
    """The module's weights and buffers by name, on the CPU."""
    best_round: int | None
    """The evaluation whose weights these are, from 0; None where there were no validation rows."""


def fit(
    kind: Any,
    train: Matrix,
    valid: Matrix | None,
    *,
    task: str,
    num_classes: int | None,
    params: Any,
    seed: int,
    threads: int,
    on_round: OnRound | None = None,
    training: Training | None = None,
) -> Trained:
    """Train a network on the ranks that `[train] parallel` says.

    Args:
        kind: A `models.networks.base.Network`.
        threads: Of all ranks on a machine together.
        training: What the project says; the defaults where None.

    Raises:
        DataError: If there are no rows, or the loss is no number.
        MissingDependency: If the extra [torch] is not installed.
    """
    need("torch", "training a network")
    from tidemill.train.torch.rank import Job

    training = training or Training()
    config = resolve(training.config, getattr(kind, "defaults", {}))
    shape = kind.shape(train, task=task, num_classes=num_classes)
    if not train.num_rows:
        raise DataError("a network must have rows to learn from, got none")
    valid = valid if valid is not None and valid.num_rows else None
    ranks = config.parallel.ranks
    made = training.folder
    with _folder(made, needed=ranks > 1) as folder:
        on_disk = None if ranks == 1 else folder
        classes = task != "regression"
        job = Job(
            kind=kind,
            shape=shape,
            params=params,
            config=config,
            train=described(train, on_disk, split="train", classes=classes),
            valid=described(valid, on_disk, split="valid", classes=classes) if valid is not None else None,
            seed=seed,
            folder=str(folder) if folder is not None else None,
            profile=str(training.profile) if training.profile is not None else None,
            tensorboard=str(training.project / config.tensorboard) if config.tensorboard else None,
        )
        trained = _here(job, training, threads, on_round) if ranks == 1 else _launched(job, training, threads, on_round)
    if made is not None:
        shutil.rmtree(made, ignore_errors=True)  # it was there to go on from
    return trained


def _here(job: Any, training: Training, threads: int, on_round: OnRound | None) -> Trained:
    import torch

    from tidemill.train.torch.rank import train

    before = torch.get_num_threads()
    torch.set_num_threads(max(threads, 1))
    try:
        with torch.random.fork_rng(enabled=True):
            result = train(job, events=training.events, on_round=on_round)
    finally:
        torch.set_num_threads(before)
    told = {"speed": result.speed, "steps": result.steps, "progress": to_plain(result.progress), "profile": result.profile}
    _report(training, job.config, told)
    return Trained(shape=job.shape, state=result.state or {}, best_round=result.progress.best_round)


def _launched(job: Any, training: Training, threads: int, on_round: OnRound | None) -> Trained:
    import torch

    from tidemill.train.torch.rank import WEIGHTS

    config: NetworkConfig = job.config
    folder, ranks = Path(job.folder), config.parallel.ranks
    arguments = {**{name: to_plain(value) for name, value in vars(job).items()}, "kind": job.kind.ref}
    events = Events(_Hearing(on_round, training.events))
    outcome = load("launcher", training.launcher)().run(
        RankJob(
            target="tidemill.train.torch.rank:run", arguments=arguments, folder=folder, restarts=config.fault.restarts,
            hang_s=config.fault.hang_s, paths=(str(training.project),), events=events,
        ),
        ranks,
        Resources(threads=max(1, threads // ranks), gpus=1.0 if torch.cuda.is_available() else 0.0),
    )  # fmt: skip
    told = outcome.results[0]
    for failure in outcome.failures:
        training.events.warn("train.restarted", f"started again after {failure}")
    _report(training, config, {**told, "restarts": outcome.restarts})
    state = need("safetensors.torch", "a network").load_file(folder / WEIGHTS)
    return Trained(shape=job.shape, state=state, best_round=told["progress"]["best_round"])


def _report(training: Training, config: NetworkConfig, told: Mapping[str, Any]) -> None:
    """Leave with the project what a fit was: `training` and `steps`, the same each time; `speed`, `profile` and `restarts` of this run."""
    progress = told["progress"]
    kept = {key: progress[key] for key in ("step", "round", "skipped", "overflows")}
    training.report.update({**told, "training": {"config": to_plain(config), **kept}})
    if told["profile"]:
        training.events.emit("train.profiled", told["profile"]["said"], **told["profile"])


class _Hearing:
    """Hears ranks: evaluations go to `on_round`, each once though a restart measures some again; the rest to the project's events."""

    def __init__(self, on_round: OnRound | None, events: Events) -> None:
        self._on_round, self._events = on_round, events
        self._next = 0

    def __call__(self, event: Event) -> None:
        if event.kind != "train.measured":
            self._events.emit(event.kind, event.message, level=event.level, **event.fields)
        elif event.fields["number"] >= self._next:
            self._next = event.fields["number"] + 1
            if self._on_round is not None:
                self._on_round(event.fields["number"], event.fields["measured"])


@contextmanager
def _folder(given: Path | None, *, needed: bool) -> Iterator[Path | None]:
    """Where the run leaves what it needs: the folder that was given, else one that goes with the run, where one is needed."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
    elif needed:
        with tempfile.TemporaryDirectory(prefix="tidemill-ranks-") as folder:
            yield Path(folder)
    else:
        yield None
