"""`[train] fault`: what happens when ranks fail, hang, or the loss goes wrong."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Literal

from tidemill.core.ranks.pulse import Collective, pulse
from tidemill.train.torch.checkpoint import GROUP

# Operations that are remembered, of all groups together.
_RECORDED = 256


@dataclass(frozen=True, kw_only=True)
class FaultConfig:
    """What happens when ranks fail, hang, or the loss goes wrong."""

    restarts: int = field(default=3, metadata={"min": 0, "max": 1000})
    """How often all ranks start again from the last checkpoint after one failed or hung."""
    hang_s: float = field(default=30.0, metadata={"min": 1.0, "max": 86_400.0})
    """Seconds without progress after which a rank counts as hung and is named; more than the longest micro-batch takes."""
    nan: Literal["stop", "skip"] = "stop"
    """A loss or gradient norm that is no number: stop the run, or leave the step out and go on; its rows are named either way."""
    spike: float = field(default=0.0, metadata={"min": 0.0, "max": 1e9})
    """A loss of so many times the median of recent ones counts as a spike, handled as `nan` says; 0 looks for none."""


def watch_collectives() -> None:
    """Let this rank's heartbeats tell its last collective operation, from torch's own flight recorder.

    Call before the first process group is made. Where this torch has no such recorder, heartbeats tell of steps alone.
    """
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(_RECORDED))
    pulse().collective = last_collective


def last_collective() -> Collective | None:
    """The last one that training entered; those of checkpoints in the background do not count."""
    import torch
    from torch import distributed

    if not distributed.is_available():
        return None
    recorded = getattr(torch._C._distributed_c10d, "_dump_fr_trace_json", None)
    if recorded is None:
        return None
    entries = json.loads(recorded(includeCollectives=True, onlyActive=False)).get("entries", [])
    training = [entry for entry in entries if GROUP not in entry["process_group"]]
    if not training:
        return None
    last = training[-1]
    return Collective(last["profiling_name"], int(last["record_id"]) + 1, not last["retired"])
