"""What a run says of itself while it goes: loss, gradient norm and rate by step, speed, one calm line.

Numbers that the same run has again (`steps`) are kept apart from measured time (`speed`): the first belong to the
artifact, the second to the machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidemill.core.events import Events
from tidemill.core.load import need
from tidemill.train.torch.speed import Work, memory_mb

if TYPE_CHECKING:
    from tidemill.train.torch.loader.step import Step

# Lines of a whole run, about, and how often the live line moves.
LINES = 500
TELL_S = 0.2


class Record:
    """Gathers steps into lines. Called once a step on every rank; only the first tells.

    Args:
        steps: Steps of the whole run.
        work: From a first step to what it costs and what the machine could do, for MFU; None says nothing of it.
        board: Folder for TensorBoard.
    """

    def __init__(
        self,
        *,
        epochs: int,
        steps: int,
        events: Events,
        work: Callable[[Step], Work | None] | None = None,
        board: Path | None = None,
    ) -> None:
        self.lines: list[dict[str, Any]] = []
        self._work: Work | None
        self._every = max(1, math.ceil(steps / LINES))
        self._epochs, self._num_steps = epochs, steps
        self._events = events
        self._count, self._work = work, None
        self._board = _writer(board) if board is not None else None
        self._window = _Sums()
        self._round = _Sums()
        self._whole = _Sums()
        self._begun = self._lapped = self._told = time.perf_counter()
        self._outside = 0.0

    def begin(self, step: Step) -> None:
        """Count what a step like this one costs; time begins behind it."""
        if self._count is not None:
            self._work, self._count = self._count(step), None
        self._begun = self._lapped = time.perf_counter()

    def step(
        self, number: int, *, epoch: int, loss: float, norm: float, rate: float, rows: int, tokens: int, waited_s: float, used: bool
    ) -> None:
        """Take a step in; `number` counts from 1, `waited_s` is how long the step waited for its rows."""
        for sums in (self._window, self._round):
            sums.take(loss, norm, rows, tokens, waited_s, used=used)
        now = time.perf_counter()
        if number % self._every == 0 or number == self._num_steps:
            self._line(number, epoch, rate, now)
        if now - self._told >= TELL_S:
            self._told = now
            self._tell(number, epoch, now)

    def round(self) -> dict[str, float]:
        """Means of the steps since the last call: loss and gradient norm."""
        means = self._round.means()
        self._round = _Sums()
        return means

    def measured(self, number: int, values: Mapping[str, float]) -> None:
        """Take an evaluation in."""
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, number)

    def pause(self, seconds: float) -> None:
        """Leave out of the speed what was no training, such as an evaluation."""
        self._outside += seconds

    def speed(self) -> dict[str, float]:
        """What was measured over all steps so far: a figure of this machine."""
        seconds = time.perf_counter() - self._begun - self._outside
        whole = self._whole.plus(self._window)
        return _speed(whole, seconds, self._work) if whole.steps and seconds > 0 else {}

    def close(self) -> None:
        """End what writes in the background."""
        if self._board is not None:
            self._board.close()

    def state_dict(self) -> dict[str, Any]:
        return {"lines": self.lines, "window": self._window.to_json(), "round": self._round.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lines = [dict(line) for line in state["lines"]]
        self._window, self._round = _Sums(**state["window"]), _Sums(**state["round"])

    def _line(self, number: int, epoch: int, rate: float, now: float) -> None:
        line = {"step": number, "epoch": epoch, **self._window.means(), "learning_rate": rate}
        self.lines.append(line)
        if self._board is not None:
            measured = _speed(self._window, max(now - self._lapped, 1e-9), self._work)
            for key, value in {**line, **measured}.items():
                if key != "step":
                    self._board.add_scalar(f"step/{key}", value, number)
        self._whole = self._whole.plus(self._window)
        self._window = _Sums()
        self._lapped = now

    def _tell(self, number: int, epoch: int, now: float) -> None:
        speed = self.speed()
        left_s = (now - self._begun) / max(self._whole.steps + self._window.steps, 1) * (self._num_steps - number)
        loss = (self._window if self._window.steps else self._round).means().get("loss", math.nan)
        unit = "tokens_per_s" if "tokens_per_s" in speed else "rows_per_s"
        said = f"epoch {epoch + 1} of {self._epochs}, loss {loss:.4g}, {speed.get(unit, 0):,.0f} {unit.split('_', maxsplit=1)[0]}/s"
        self._events.emit(
            "train.step", f"{said}, {_left(left_s)} left", level="progress", step=number, epoch=epoch, loss=loss, **speed
        )  # fmt: skip


class _Sums:
    """Sums over steps."""

    def __init__(
        self, steps: int = 0, used: int = 0, loss: float = 0.0, norm: float = 0.0, rows: int = 0, tokens: int = 0, waited_s: float = 0.0
    ) -> None:
        self.steps, self.used, self.loss, self.norm = steps, used, loss, norm
        self.rows, self.tokens, self.waited_s = rows, tokens, waited_s

    def take(self, loss: float, norm: float, rows: int, tokens: int, waited_s: float, *, used: bool) -> None:
        self.steps += 1
        self.rows += rows
        self.tokens += tokens
        self.waited_s += waited_s
        if used:  # a step that was left out may have no loss
            self.used += 1
            self.loss += loss
            self.norm += norm

    def plus(self, other: _Sums) -> _Sums:
        own, its = self.to_json(), other.to_json()
        return _Sums(**{key: own[key] + its[key] for key in own})

    def means(self) -> dict[str, float]:
        return {"loss": self.loss / self.used, "grad_norm": self.norm / self.used} if self.used else {}

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def _speed(sums: _Sums, seconds: float, work: Work | None) -> dict[str, float]:
    found = {"steps_per_s": sums.steps / seconds, "rows_per_s": sums.rows / seconds, "data_wait": min(sums.waited_s / seconds, 1.0)}
    if sums.tokens:
        found["tokens_per_s"] = sums.tokens / seconds
    if work is not None:
        found["mfu"] = work.share(rows=sums.rows, tokens=sums.tokens, seconds=seconds)
    found["memory_mb"] = memory_mb()
    return {key: float(f"{value:.4g}") for key, value in found.items()}


def _left(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _writer(folder: Path) -> Any:
    """TensorBoard's writer.

    Raises:
        MissingDependency: If the extra [tensorboard] is not installed.
    """
    need("tensorboard", "train.tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
