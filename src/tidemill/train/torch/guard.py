"""A loss that is no number, or suddenly many times the usual: which rows it came of, and whether the step counts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from tidemill.core.errors import DataError
from tidemill.core.events import Events
from tidemill.train.torch.watch import FaultConfig

if TYPE_CHECKING:
    from torch import Tensor

    from tidemill.train.torch.loader.step import MicroBatch, Step
    from tidemill.train.torch.objective import Objective

# Losses that a spike is held against, and how many there must be first.
RECENT = 64
LEAST = 16

# Steps left out one after the other that say that the weights are gone, not the rows.
MOST_IN_A_ROW = 20

# Rows that a message names.
NAMED = 10

Fault = Literal["nan", "spike"]


class Guard:
    """Looks at each step's loss and gradient norm; the same on all ranks, since the two numbers are."""

    def __init__(self, config: FaultConfig, *, events: Events) -> None:
        self._config = config
        self._events = events
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._in_a_row = 0

    @property
    def skips(self) -> bool:
        """Whether bad steps are left out."""
        return self._config.nan == "skip"

    def fault(self, loss: float, norm: float) -> Fault | None:
        """What is wrong with a step, if anything."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return "nan"
        if self._config.spike:
            if len(self._recent) >= LEAST and loss > self._config.spike * median(self._recent):
                return "spike"
            self._recent.append(loss)
        self._in_a_row = 0
        return None

    def handle(self, fault: Fault, *, step: int, at: Step, loss: float, norm: float, rows: Sequence[int]) -> bool:
        """Report a bad step; whether its gradient is used all the same.

        Raises:
            DataError: If a step without a number ends the run, by policy or because too many followed each other.
        """
        what = f"loss {loss:.4g}, gradient norm {norm:.4g}" if fault == "nan" else f"loss {loss:.4g}, {self._times(loss)} times the usual"
        named = ", ".join(map(str, rows[:NAMED])) + (f" and {len(rows) - NAMED} more" if len(rows) > NAMED else "")
        where = f"step {step} (epoch {at.epoch}, step {at.number} of it): {what}; training rows {named}"
        used = fault == "spike" and not self.skips
        self._in_a_row += 1
        if fault == "nan" and (not self.skips or self._in_a_row >= MOST_IN_A_ROW):
            raise DataError(
                f"the loss of every step must be a number, got {where}",
                hint="look at those rows, lower train.optimizer.learning_rate, "
                + ("or clip" if self.skips else 'or leave such steps out: train.fault.nan = "skip"'),
            )
        self._events.warn(f"train.{fault}", f"{where}; {'used all the same' if used else 'left out'}", step=step, rows=list(rows))
        return used

    def _times(self, loss: float) -> str:
        usual = median(self._recent)
        return f"{loss / usual:.3g}" if usual else "many"

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self._recent), "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent.extend(state["recent"])
        self._in_a_row = int(state["in_a_row"])


def suspects(micro: MicroBatch, scores: Tensor | None, objective: Objective) -> list[tuple[float, int]]:
    """How suspicious the rows of a micro-batch are, and their places in the split: infinitely where they hold what is no number.

    Args:
        scores: The network's for these rows; None where this rank has none.
    """
    import torch

    found = []
    held = [*micro.inputs.values(), micro.target, *([] if micro.weight is None else [micro.weight])]
    bad_N = torch.zeros(len(micro.rows), dtype=torch.bool)
    for tensor in held:
        if tensor.is_floating_point():
            bad_N |= ~torch.isfinite(tensor.cpu().flatten(1) if tensor.ndim > 1 else tensor.cpu()[:, None]).all(1)
    for i, row in enumerate(micro.rows.tolist()):
        if row < 0:
            continue
        loss = math.inf
        if not bad_N[i] and scores is not None:
            one = slice(i, i + 1)
            weight = None if micro.weight is None else micro.weight[one].to(scores.device)
            loss = float(objective(scores[one], micro.target[one].to(scores.device), weight)[0])
        found.append((loss if math.isfinite(loss) else math.inf, row))
    return found


def worst(found: Sequence[tuple[float, int]]) -> list[int]:
    """The rows to name: those that are no number, else the few of the largest loss."""
    broken = sorted(row for loss, row in found if loss == math.inf)
    return broken or [row for _, row in sorted(found, key=lambda one: (-one[0], one[1]))[: NAMED // 2]]
