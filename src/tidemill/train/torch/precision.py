"""What matrix products are computed in, and the scale that keeps small gradients of fp16 from vanishing."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

# The scale and its rule are those of torch.amp.GradScaler.
FIRST_SCALE = 65_536.0
BACKOFF = 0.5
GROWTH = 2.0
GROWTH_STEPS = 2_000

# A gradient that overflows even so is no number for another reason.
LEAST_SCALE = 2.0**-14


@dataclass(frozen=True)
class Precision:
    """What `[train] precision` means on a device: weights fp32, matrix products and convolutions in less."""

    name: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: str = "cpu"
    """Type of the device, such as cpu or cuda."""

    @property
    def param_dtype(self) -> torch.dtype | None:
        """What sharded weights are gathered in; None leaves them fp32."""
        import torch

        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Around each forward."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        import torch

        cast: contextlib.AbstractContextManager[Any] = torch.autocast(self.device, dtype=self.param_dtype)
        return cast


class LossScale:
    """Dynamic loss scaling: down at once where a gradient overflows, up again after many steps without.

    The rule of torch.amp.GradScaler. That one looks at the gradients of its own rank; this goes by the global norm, which is
    the same number on all ranks, so that all of them step or none, whatever they hold of the model.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.factor = FIRST_SCALE if enabled else 1.0
        self._steps = 0

    def update(self, norm: float) -> bool:
        """Take note of a step's gradient norm; whether the step counts, False where the gradient overflowed."""
        if not self.enabled:
            return True
        if not math.isfinite(norm):
            self.factor *= BACKOFF
            self._steps = 0
            return False
        self._steps += 1
        if self._steps == GROWTH_STEPS:
            self.factor *= GROWTH
            self._steps = 0
        return True

    def state_dict(self) -> dict[str, float]:
        return {"factor": self.factor, "steps": self._steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.factor, self._steps = float(state["factor"]), int(state["steps"])
