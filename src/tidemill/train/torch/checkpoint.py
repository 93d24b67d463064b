"""States of a run that it can go on from: sharded, written in the background, whole or not there at all.

A state is a tree of dicts and lists. Its leaves are tensors, of which a DTensor is saved by the ranks that hold its parts
and a plain tensor by the first rank that has it, and JSON values, which are the first rank's. What differs by rank goes
into `own`, a tree as well.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.artifact import PARTIAL, disk_errors, replace_folder, sweep
from tidemill.core.errors import ConfigError, NotFound, Unavailable
from tidemill.core.ranks.pulse import pulse
from tidemill.train.torch.tree import at, joined, objects, split

if TYPE_CHECKING:
    from torch import Tensor

STATE = "state"
# What the process groups of checkpoints are called.
GROUP = "checkpoint"

# Of what counts seconds, the ranks look at the first one's clock at most every so many steps.
_MOST_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often a run is saved, and how many of its states stay."""

    every_steps: int = field(default=0, metadata={"min": 0, "max": 1_000_000_000})
    """Save after so many steps; 0 goes by `every_s` alone."""
    every_s: float = field(default=300.0, metadata={"min": 0.0, "max": 86_400.0})
    """Save after so many seconds; 0 goes by `every_steps` alone."""
    keep: int = field(default=2, metadata={"min": 1, "max": 1000})
    """How many of the newest stay."""
    asynchronous: bool = True
    """Write in the background while training goes on; a step waits only for a copy in memory."""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What `Checkpoints.restore` found beside tensors, which are filled in place."""

    step: int
    state: Any
    """The tree, its JSON values as they were saved."""
    own: Any | None
    """What this rank saved as its own; None where another number of ranks saved it."""
    ranks: int
    """How many ranks saved it."""


class Checkpoints:
    """The checkpoints of a run in a folder that all ranks see, each a folder `step-<n>`.

    All ranks make one, and call each method at the same place. A kill at any moment leaves the newest finished one as it is.

    Args:
        folder: Holds nothing else; made if needed. What a killed run left unfinished there goes.
    """

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        from torch import distributed

        self._folder, self._config = folder, config
        many = distributed.is_available() and distributed.is_initialized()
        self._rank: int = distributed.get_rank() if many else 0
        self._ranks: int = distributed.get_world_size() if many else 1
        # Operations of the background must not come between those of training, nor of `due`: each has a group of its own.
        self._group: Any = distributed.new_group(backend="gloo", group_desc=GROUP) if many else None
        self._clock: Any = distributed.new_group(backend="gloo", group_desc=GROUP) if many else None
        self._own = f"own-{self._rank}"
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._saved_at = self._looked_at = time.monotonic()
        self._looked_step, self._look_step = 0, 1
        if self._rank == 0:
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                sweep(folder)
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized", category=UserWarning)

    def due(self, step: int) -> bool:
        """Whether to save after step `step`, the same on all ranks: seconds are by the first one's clock."""
        if self._config.every_steps and step % self._config.every_steps == 0:
            return True
        if not self._config.every_s or step < self._look_step:
            return False
        now = time.monotonic()
        step_s = (now - self._looked_at) / max(1, step - self._looked_step)
        rest_s = self._config.every_s - (now - self._saved_at)
        # Seldom, for ranks have to talk about it: at half of the way that is left.
        ahead = min(_MOST_STEPS, max(1, int(rest_s / 2 / max(step_s, 1e-6)), (step - self._looked_step) // 2)) if rest_s > 0 else 0
        ahead = min(ahead, max(1, 2 * step))
        ahead = self._agreed(ahead)
        self._looked_at, self._looked_step, self._look_step = now, step, step + max(1, ahead)
        return ahead == 0

    def save(self, step: int, state: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> None:
        """Save the state after step `step`; in the background a copy of it, so that training may go on at once.

        Waits for an earlier one that is still being written.

        Args:
            state: The tree; an object with `state_dict` and `load_state_dict` stands for its state.
            own: This rank's own, such as states of random numbers.

        Raises:
            Unavailable: If it, or the one before, could not be written.
        """
        self.wait()
        tensors, plain = split(state, STATE)
        mine, own_plain = split(own or {}, self._own)
        tensors |= mine | {f"{self._own}.json": _to_bytes(own_plain)}
        facts = {"step": step, "ranks": self._ranks, "state": plain}
        self._saved_at = time.monotonic()
        if not self._config.asynchronous:
            with pulse().patient("saving"):
                self._write(step, tensors, facts)
            return
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="tidemill-checkpoint")
        self._writing = self._writer.submit(self._write, step, _copied(tensors), facts)

    def wait(self) -> None:
        """Return when what was saved is on the disk.

        Raises:
            Unavailable: If it could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            with pulse().patient("saving"):
                writing.result()

    def close(self) -> None:
        """Wait for what is being written, and let go of threads; no more is saved."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.shutdown()

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, ascending."""
        found = (re.fullmatch(r"step-(\d+)", path.name) for path in self._folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match is not None)

    def latest(self) -> int | None:
        """The newest checkpoint's step; None where there is none."""
        return max(self.steps(), default=None)

    def restore(self, state: Mapping[str, Any], *, step: int | None = None) -> Restored | None:
        """Fill the tensors of `state` in place, on any number of ranks and any mesh; None where nothing was saved yet.

        Args:
            state: A tree like the saved one; its tensors are overwritten, and its objects given what they saved.
            step: Which checkpoint; the newest by default.

        Raises:
            NotFound: If `step` names none.
            ConfigError: If the tree has other tensors than the saved one: another model or optimizer.
        """
        from torch.distributed import checkpoint

        from tidemill.train.torch.storage import Reader, empty, read_index

        self.wait()
        wanted = self.latest() if step is None else step
        if wanted is None:
            return None
        folder = self._path(wanted)
        if not folder.is_dir():
            raise NotFound("checkpoint", str(wanted), [str(known) for known in self.steps()])
        index = read_index(folder)
        saved, same = index["tensors"], index["ranks"] == self._ranks
        tensors, _ = split(state, STATE)
        parts = dict(objects(state, STATE))
        # What an object makes only when it is used first, such as an optimizer's moments, and what is this rank's own.
        later = (*(f"{path}/" for path in parts), *((f"{self._own}/", f"{self._own}.json") if same else ()))
        tensors |= {name: empty(told) for name, told in saved.items() if name not in tensors and name.startswith(later)}
        _check(folder, tensors, saved)
        with pulse().patient("restoring"):
            checkpoint.load(
                tensors, storage_reader=Reader(str(folder)), planner=_load_planner(), process_group=self._group, no_dist=self._group is None
            )  # fmt: skip
        for path, part in parts.items():
            part.load_state_dict(joined(at(index["state"], path), tensors.__getitem__))
        self._saved_at = self._looked_at = time.monotonic()
        self._looked_step, self._look_step = wanted, wanted + 1
        return Restored(
            step=wanted,
            state=joined(index["state"], tensors.__getitem__),
            own=joined(_from_bytes(tensors[f"{self._own}.json"]), tensors.__getitem__) if same else None,
            ranks=index["ranks"],
        )

    def _write(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.api import CheckpointException

        from tidemill.train.torch.storage import Writer

        partial = self._folder / f"{PARTIAL}{self._path(step).name}"
        try:
            checkpoint.save(
                tensors, storage_writer=Writer(partial, facts), planner=_save_planner(), process_group=self._group, no_dist=self._group is None
            )  # fmt: skip
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            disk = next((cause for cause in causes if isinstance(cause, OSError) and not isinstance(cause, ConnectionError)), None)
            if disk is None:  # a rank is gone: the next attempt may save
                raise RuntimeError(f"the checkpoint of step {step} was cut short: {causes[0] if causes else error}") from error
            raise Unavailable(
                f"the checkpoint of step {step} must be written to {self._folder}: {disk}", hint="what was saved before is kept"
            ) from error
        if self._rank == 0:
            with disk_errors(self._folder):
                replace_folder(partial, self._path(step))
                self._prune()

    def _prune(self) -> None:
        """Remove all but the newest; under another name first, so that a kill leaves none by halves."""
        for step in self.steps()[: -self._config.keep]:
            gone = self._folder / f"{PARTIAL}old-{step}"
            self._path(step).rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:09d}"

    def _agreed(self, value: int) -> int:
        if self._ranks == 1:
            return value
        import torch
        from torch import distributed

        told = torch.tensor([value])
        distributed.broadcast(told, src=0, group=self._clock)
        return int(told)


def random_state() -> dict[str, Any]:
    """The states of this process's generators of random numbers: Python's, NumPy's, torch's and that of its device."""
    import torch

    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - what libraries draw from
    return {
        "python": random.getstate(),
        "numpy": (
            str(kind),
            torch.from_numpy(np.array(keys, np.int64)),
            *(float(one) if isinstance(one, float) else int(one) for one in rest),
        ),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on drawing where `random_state` was taken."""
    import torch

    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002 - what libraries draw from
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in memory, which training does not write to."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    stager = DefaultStager(StagingOptions(False, False, False, False))
    try:
        copied: dict[str, Tensor] = stager.stage(tensors)
        return copied
    finally:
        stager.close()


def _check(folder: Path, tensors: Mapping[str, Tensor], saved: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of something else.

    Raises:
        ConfigError: If names, shapes or types of tensors differ.
    """
    known = {name for name in saved if name.startswith(f"{STATE}/")}
    wanted = {name for name in tensors if name.startswith(f"{STATE}/")}
    wrong = [f"{name} is missing" for name in sorted(wanted - known)] + [f"{name} has no place" for name in sorted(known - wanted)]
    for name in sorted(wanted & known):
        here = str(tensors[name].dtype).removeprefix("torch."), list(tensors[name].size())
        there = saved[name]["dtype"], saved[name]["size"]
        if here != there:
            wrong.append(f"{name} is {there[0]} {there[1]}, not {here[0]} {here[1]}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ConfigError(
            f"{folder} must be a checkpoint of this model and optimizer: {'; '.join(wrong[:3])}{more}",
            hint="train from the start, in another folder",
        )


def _save_planner() -> Any:
    from torch.distributed.checkpoint import DefaultSavePlanner

    # Of what several ranks hold, the first one's: buffers may differ until the next step tells the others.
    return DefaultSavePlanner(flatten_state_dict=False, dedup_save_to_lowest_rank=True)


def _load_planner() -> Any:
    from torch.distributed.checkpoint import DefaultLoadPlanner

    return DefaultLoadPlanner(flatten_state_dict=False)


def _to_bytes(plain: Any) -> Tensor:
    import torch

    return torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8)


def _from_bytes(text: Tensor) -> Any:
    return json.loads(text.numpy().tobytes())
