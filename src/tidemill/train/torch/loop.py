"""The training loop of networks: the same sequence on one rank and on many.

What a rank holds of the model, how gradients meet and whose rows a rank reads is behind `Parallel` and `Loader`; every
decision here is taken from numbers that are the same on all ranks, or is the first rank's and told to the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tidemill.core.events import Events
from tidemill.core.ranks.pulse import pulse
from tidemill.train.torch.checkpoint import random_state, set_random_state
from tidemill.train.torch.config import NetworkConfig
from tidemill.train.torch.ema import RUNNING, Average, Weights
from tidemill.train.torch.group import agreed, gathered, summed
from tidemill.train.torch.guard import Fault, Guard, suspects, worst
from tidemill.train.torch.objective import Objective
from tidemill.train.torch.optim import Schedule, memory, optimizer, remember
from tidemill.train.torch.precision import LEAST_SCALE, LossScale
from tidemill.train.torch.record import Record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tidemill.train.torch.loader.step import Step
    from tidemill.train.torch.trace import Trace


class Steps(Protocol):
    """Rows as steps; which rows a step holds is a function of the epoch and its number alone."""

    @property
    def position(self) -> dict[str, Any]: ...
    def resume(self, position: Mapping[str, Any]) -> Any: ...
    def num_steps(self, epoch: int) -> int: ...
    def steps(self, epoch: int, start: int = 0) -> Generator[Step, None, None]: ...


class Parallel(Protocol):
    """What the model became on this rank."""

    parts: list[nn.Module]

    def forward_backward(self, step: Step, objective: Objective, *, scale: float = 1.0) -> float: ...
    def scores(self, inputs: Mapping[str, Tensor]) -> Tensor: ...
    def clip(self, max_norm: float, *, scale: float = 1.0) -> float: ...
    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]: ...


class Saving(Protocol):
    """Where checkpoints go."""

    def due(self, step: int) -> bool: ...
    def save(self, step: int, state: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> None: ...
    def restore(self, state: Mapping[str, Any]) -> Any: ...


# Called after each evaluation, on the first rank: its number, what was measured; True ends training.
OnRound = Callable[[int, Mapping[str, float]], bool]


@dataclass(kw_only=True)
class Progress:
    """Where a run stands."""

    epoch: int = 0
    number: int = 0
    """Steps of the epoch that are behind."""
    step: int = 0
    """Steps that are behind, over all epochs."""
    round: int = 0
    """Evaluations that are behind."""
    best: float | None = None
    """Lowest validation loss."""
    best_round: int | None = None
    stale: int = 0
    """Evaluations since the best."""
    judged: int = 0
    """Steps that were behind at the last evaluation."""
    skipped: int = 0
    """Steps that were left out for their loss."""
    overflows: int = 0
    """Steps that were left out because fp16 overflowed."""
    done: bool = False


class Loop:
    """Trains what `parallel` holds.

    Args:
        config: A resolved one.
        objective: What steps lower.
        judge: What evaluations measure; the objective without label smoothing.
        report: From the mean of `judge` to a metric: its name and value.
        trace: Watches the first steps.
        copies: Ranks that read the same rows: those of a tensor or pipeline group.
    """

    def __init__(
        self,
        parallel: Parallel,
        train: Steps,
        valid: Steps | None,
        *,
        config: NetworkConfig,
        objective: Objective,
        judge: Objective,
        report: Callable[[float], tuple[str, float]],
        record: Record,
        events: Events | None = None,
        on_round: OnRound | None = None,
        saving: Saving | None = None,
        copies: int = 1,
        trace: Trace | None = None,
    ) -> None:
        self.parallel, self._train, self._valid = parallel, train, valid
        self.config = config
        self._objective, self._judge, self._report = objective, judge, report
        self.record = record
        self._events = events or Events()
        self._on_round, self.saving, self._copies = on_round, saving, copies
        self._pulse, self._trace = pulse(), trace
        self.at = Progress()
        self.rounds: list[dict[str, float]] = []
        self._begun = False
        self.num_steps = num_steps(config, train)
        self.optimizer = optimizer(parallel.parts, config.optimizer)
        self.schedule = Schedule(self.optimizer, config.schedule, steps=self.num_steps)
        self.scale = LossScale(enabled=config.precision == "fp16")
        self.weights = Weights(parallel.named_parameters(), (pair for part in parallel.parts for pair in part.named_buffers()))
        self.average = Average(self.weights, decay=config.ema) if config.ema else None
        self.guard = Guard(config.fault, events=self._events)
        self.best = self.weights.copy() if valid is not None else None
        self._names = {id(weight): name for name, weight in parallel.named_parameters()}

    def run(self) -> Progress:
        """Train to the end and leave the weights that are to be kept in place.

        Raises:
            DataError: If the loss is no number, unless such steps are to be left out.
        """
        for part in self.parallel.parts:
            part.train()
        while not self.at.done and self.at.epoch < (self.config.epochs or 1) and self.at.step < self.num_steps:
            self._epoch()
        if self.at.judged < self.at.step:
            self._evaluate()
        self.at.done = True
        if self.best is not None and self.at.best_round is not None:
            self.weights.put(self.best)
        elif self.average is not None:
            self.average.swap()
        return self.at

    def resume(self) -> bool:
        """Go on from the last checkpoint; whether there was one. What evaluations before it measured is told again."""
        restored = self.saving.restore(self._state()) if self.saving is not None else None
        if restored is None:
            return False
        kept = restored.state
        remember(self.optimizer, kept["optimizer"]["groups"])
        self.schedule.load_state_dict(kept["schedule"])
        self.scale.load_state_dict(kept["scale"])
        self.guard.load_state_dict(kept["guard"])
        self.record.load_state_dict(kept["record"])
        if self.average is not None:
            self.average.steps = kept["average_steps"]
        self.at = Progress(**kept["at"])
        self.rounds = kept["rounds"]
        self._train.resume(kept["rows"])
        for number, measured in enumerate(self.rounds):
            if self._on_round is not None:
                self._on_round(number, measured)
        if restored.own is not None:
            set_random_state(restored.own["random"])
            for held, mine in zip(self._statistics(), restored.own["statistics"], strict=True):
                for name, value in mine.items():
                    held[name].copy_(value)
        return True

    def _save(self, saving: Saving) -> None:
        saving.save(self.at.step, self._state(), own={"random": random_state(), "statistics": self._statistics()})

    def _statistics(self) -> list[dict[str, Tensor]]:
        """Running statistics of norms follow the rows that a rank has seen: those of the weights, of their average and of the best, its own."""
        names = [name for name in self.weights.buffers if name.endswith(RUNNING)]
        averages = self.average.averages if self.average is not None else {}
        return [{name: held[name] for name in names if name in held} for held in (self.weights.buffers, averages, self.best or {})]

    def _state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, of all ranks."""
        return {
            "model": self.weights.tensors(),
            "best": self.best,
            "average": self.average.averages if self.average is not None else None,
            "average_steps": self.average.steps if self.average is not None else 0,
            "optimizer": memory(self.optimizer, self._names),
            "schedule": self.schedule.state_dict(),
            "scale": self.scale.state_dict(),
            "guard": self.guard.state_dict(),
            "record": self.record.state_dict(),
            "at": asdict(self.at),
            "rounds": self.rounds,
            "rows": self._train.position,
        }

    def _epoch(self) -> None:
        """The rest of an epoch, step by step."""
        config, parallel, at = self.config, self.parallel, self.at
        batches = self._train.steps(at.epoch, start=at.number)
        if self._trace is not None:
            batches = self._trace.steps(batches)
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        clip = config.clip or 0.0
        clock = time.perf_counter
        start = clock()
        try:
            for step in batches:
                waited_s = clock() - start
                if not self._begun:
                    self._begun = True
                    self.record.begin(step)
                buffers = {name: buffer.clone() for name, buffer in self.weights.buffers.items()} if self.guard.skips else None

                loss = parallel.forward_backward(step, self._objective, scale=self.scale.factor)
                norm = parallel.clip(clip, scale=self.scale.factor)
                used = self._counts(step, loss, norm, buffers)
                if used:
                    self.optimizer.step()
                rate = self.schedule.rate
                if used:
                    self.schedule.step()
                    if self.average is not None:
                        self.average.update()
                for weight in weights:
                    weight.grad = None

                at.step += 1
                at.number += 1
                self.record.step(
                    at.step,
                    epoch=at.epoch,
                    loss=loss,
                    norm=norm,
                    rate=rate,
                    rows=step.rows,
                    tokens=step.tokens,
                    waited_s=waited_s,
                    used=used,
                )
                self._pulse.step(at.step)
                if config.evaluate_every and at.step % config.evaluate_every == 0:
                    self._evaluate()
                if self.saving is not None and self.saving.due(at.step):
                    self._save(self.saving)
                if at.done or at.step >= self.num_steps:
                    break
                start = clock()
        finally:
            batches.close()  # its workers end with it
        if not at.done and at.number >= self._train.num_steps(at.epoch):
            at.epoch, at.number = at.epoch + 1, 0
            if not config.evaluate_every:
                self._evaluate()

    def _counts(self, step: Step, loss: float, norm: float, buffers: dict[str, Tensor] | None) -> bool:
        """Whether a step's gradient is used: not one that overflowed in fp16, nor one that the policy leaves out."""
        counts = self.scale.update(norm)
        if not counts and math.isfinite(loss) and self.scale.factor >= LEAST_SCALE:
            self.at.overflows += 1
            return False  # the scale was too large, the rows are well
        fault = self.guard.fault(loss, norm)
        if fault is None:
            return True
        return self._faulty(fault, step, loss, norm, buffers)

    def _faulty(self, fault: Fault, step: Step, loss: float, norm: float, buffers: dict[str, Tensor] | None) -> bool:
        """Name the rows of a bad step; whether its gradient is used all the same."""
        if buffers is not None:  # running statistics took the rows in already
            self.weights.put(buffers)
        found: list[tuple[float, int]] = []
        with self._judging():
            for micro in step.micro:
                found += suspects(micro, self.parallel.scores(micro.inputs), self._judge)
        rows = worst([one for part in gathered(found) for one in part])
        used = self.guard.handle(fault, step=self.at.step + 1, at=step, loss=loss, norm=norm, rows=rows)
        self.at.skipped += not used
        return used

    def _evaluate(self) -> None:
        """Judge the weights on the validation rows, keep them where they are the best so far, and decide whether to go on."""
        start = time.perf_counter()
        at, config = self.at, self.config
        measured: dict[str, float] = {}
        if self._valid is not None:
            if self.average is not None:
                self.average.swap()
            loss = self._validation_loss(self._valid)
            if math.isfinite(loss) and (at.best is None or loss < at.best):
                at.best, at.best_round, at.stale, self.best = loss, at.round, 0, self.weights.copy()
            else:
                at.stale += 1
            if self.average is not None:
                self.average.swap()
            name, value = self._report(loss)
            measured[f"valid_{name}"] = value
        since = self.record.round()
        if "loss" in since:
            name, value = self._report(since.pop("loss"))
            measured[f"train_{name}" if not config.label_smoothing else "train_smoothed_loss"] = value
        measured |= {**since, "learning_rate": self.schedule.rate, "epoch": at.epoch + (at.number > 0), "step": at.step}
        self.record.measured(at.step, measured)
        self.rounds.append(measured)
        told = self._on_round is not None and self._on_round(at.round, measured)
        at.done = agreed(told or 0 < (config.early_stopping or 0) <= at.stale)
        at.round, at.judged = at.round + 1, at.step
        self.record.pause(time.perf_counter() - start)

    def _validation_loss(self, valid: Steps) -> float:
        """The mean over all validation rows."""
        loss, weight = 0.0, 0.0
        with self._judging():
            for step in valid.steps(0):
                self._pulse.doing("evaluating")
                for micro in step.micro:
                    scores = self.parallel.scores(micro.inputs)
                    own = None if micro.weight is None else micro.weight.to(scores.device)
                    sums = self._judge(scores, micro.target.to(scores.device), own)
                    loss, weight = loss + float(sums[0]), weight + float(sums[1])
        loss, weight = summed([loss, weight], copies=self._copies)
        return loss / weight if weight else math.nan

    @contextmanager
    def _judging(self) -> Iterator[None]:
        import torch

        for part in self.parallel.parts:
            part.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for part in self.parallel.parts:
                part.train()


def num_steps(config: NetworkConfig, train: Steps) -> int:
    """Steps of the whole run; where epochs differ in steps, by the first."""
    steps = (config.epochs or 1) * train.num_steps(0)
    return min(steps, config.max_steps or steps)
