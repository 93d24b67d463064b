"""The steps of `features.select` one after the other, and what is told and written of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.core.events import Events
from tidemill.core.project import to_plain
from tidemill.features.select.selector import Dropped, Matrix, Narrowed, Step


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the steps left out."""

    reasons: Mapping[str, str]
    """Each feature that is left out, and why."""
    description: Mapping[str, Any]
    """`selected` of features.json: the steps with what they saw, the features with who left them out."""


def select(steps: Sequence[Step], matrix: Matrix, *, seed: int, threads: int, events: Events) -> Selection:
    """Let each step leave out features of those that its predecessors left in; one that would leave out all leaves out none."""
    dropped: dict[str, Dropped] = {}
    by: dict[str, str] = {}
    said: list[dict[str, Any]] = []
    for step in steps:
        found = step.selector.select(matrix, seed=seed, threads=threads)
        if len(found) == matrix.num_features:
            events.warn("features.selected", f"{step.op} would leave out every feature, so it leaves out none", op=step.op)
            found = {}
        before = matrix.num_features
        if found:
            matrix = Narrowed(matrix, [name for name in matrix.names if name not in found])
        dropped |= found
        by |= dict.fromkeys(found, step.op)
        said.append({"op": step.op, "params": to_plain(step.selector), "before": before, "after": matrix.num_features})
        shown = ", ".join(list(found)[:5]) + (", ..." if len(found) > 5 else "")
        events.emit(
            "features.selected",
            f"{step.op} leaves out {len(found)} of {before} features" + (f": {shown}" if found else ""),
            **{**said[-1], "dropped": {name: one.reason for name, one in found.items()}},
        )
    return Selection(
        reasons={name: f"{by[name]}: {one.reason}" for name, one in dropped.items()},
        description={
            "steps": said,
            "dropped": {name: {"by": by[name], "reason": one.reason, "value": one.value} for name, one in dropped.items()},
        },
    )
