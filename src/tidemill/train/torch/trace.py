"""A torch profiler trace of some steps, and where such a step goes, in words."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from tidemill.train.torch.loader.step import Step

# Steps that pass first, those that only warm the profiler up, and those that are kept.
BEFORE, WARM, KEPT = 5, 2, 10

WAIT, FORWARD = "tidemill: data wait", "tidemill: forward"
COMMUNICATION = re.compile(r"c10d::|_c10d_functional::|gloo:|nccl:")

# Where more of a step than this goes, something can be done about it.
_MUCH = 0.15
_ADVICE = {
    "data wait": "rows come too slowly: more train.loader.workers, a larger train.loader.cache_mib, or features that cost less",
    "communication": "ranks wait for each other: larger steps, or fewer ranks on the axis that speaks most",
    "optimizer": "weights are many for so few rows: a larger train.batch_size",
    "rest": "the network is small for its steps: a larger train.batch_size, or train.compile = true",
}

Span = tuple[float, float]


class Trace:
    """Watches a run's first steps on one rank.

    Args:
        path: The trace, for chrome://tracing or ui.perfetto.dev.
    """

    def __init__(self, path: Path, parts: Sequence[nn.Module]) -> None:
        import torch
        from torch import profiler

        self._path, self._steps = path, 0
        self._open: list[Any] = []
        self._hooks = [
            hook
            for part in parts
            for hook in (part.register_forward_pre_hook(self._enter), part.register_forward_hook(self._leave, always_call=True))
        ]
        kinds = [profiler.ProfilerActivity.CPU] + [profiler.ProfilerActivity.CUDA] * torch.cuda.is_available()
        plan = profiler.schedule(wait=BEFORE, warmup=WARM, active=KEPT, repeat=1)
        self._profiler = profiler.profile(activities=kinds, schedule=plan, on_trace_ready=self._ready)
        self.report: dict[str, Any] = {}
        """`step_ms`, the `shares` of it, and a sentence, `said`; empty until enough steps have passed."""
        self._profiler.start()

    def steps(self, batches: Generator[Step, None, None]) -> Generator[Step, None, None]:
        """The same steps, the wait for each marked."""
        from torch.profiler import record_function

        try:
            while True:
                with record_function(WAIT):
                    step = next(batches, None)
                if step is None:
                    return
                yield step
                self._step()
        finally:
            batches.close()

    def close(self) -> None:
        """End it, though it may have seen too few steps."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _step(self) -> None:
        self._steps += 1
        if self._profiler is not None:
            self._profiler.step()
            if self._steps >= BEFORE + WARM + KEPT:
                self.close()

    def _enter(self, *_: Any) -> None:
        from torch.profiler import record_function

        self._open.append(record_function(FORWARD))
        self._open[-1].__enter__()

    def _leave(self, *_: Any) -> None:
        self._open.pop().__exit__(None, None, None)

    def _ready(self, profiler: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self._path))
        events = [(event.name, (event.time_range.start, event.time_range.end)) for event in profiler.events()]
        self.report = {**summary(events), "trace": str(self._path)}


def summary(events: Sequence[tuple[str, Span]]) -> dict[str, Any]:
    """Where the steps among a profiler's events went, each moment counted once; empty where there is no whole step.

    Communication beside computing costs nothing, so that only what nothing hides counts as such.

    Args:
        events: Name, and begin and end in microseconds.
    """
    steps = [span for name, span in events if name.startswith("ProfilerStep")]
    if not steps:
        return {}
    whole = sum(end - start for start, end in steps)
    computing = joined(span for name, span in events if name.startswith("aten::"))
    spoken = joined(span for name, span in events if COMMUNICATION.match(name))
    marked: Mapping[str, list[Span]] = {
        "data wait": joined(span for name, span in events if name == WAIT),
        "communication": without(spoken, computing),
        "optimizer": joined(span for name, span in events if name.startswith("Optimizer.")),
        "backward": joined(span for name, span in events if name.startswith("autograd::engine::evaluate_function")),
        "forward": joined(span for name, span in events if name == FORWARD),
    }
    shares, taken = {}, without([(-1e30, 1e30)], joined(steps))
    for phase, spans in marked.items():
        own = without(spans, taken)
        shares[phase] = round(sum(end - start for start, end in own) / whole, 4)
        taken = joined([*taken, *own])
    shares["rest"] = round(max(0.0, 1 - sum(shares.values())), 4)
    step_ms = whole / len(steps) / 1000
    return {"step_ms": round(step_ms, 3), "shares": shares, "hidden": _hidden(spoken, computing, whole), "said": _said(step_ms, shares)}


def joined(spans: Iterable[Span]) -> list[Span]:
    """The same time without overlaps, in order."""
    made: list[Span] = []
    for start, end in sorted(spans):
        if made and start <= made[-1][1]:
            made[-1] = made[-1][0], max(made[-1][1], end)
        else:
            made.append((start, end))
    return made


def without(spans: Iterable[Span], others: Sequence[Span]) -> list[Span]:
    """What of `spans` is in none of `others`; both in order and without overlaps."""
    made: list[Span] = []
    first = 0
    for start, end in spans:
        while first < len(others) and others[first][1] <= start:
            first += 1
        place = first
        while place < len(others) and others[place][0] < end:
            if others[place][0] > start:
                made.append((start, others[place][0]))
            start = max(start, others[place][1])
            place += 1
        if start < end:
            made.append((start, end))
    return made


def _hidden(spoken: list[Span], computing: list[Span], whole: float) -> float:
    """Share of a step in which ranks speak beside computing."""
    alone = sum(end - start for start, end in without(spoken, computing))
    return round((sum(end - start for start, end in spoken) - alone) / whole, 4)


def _said(step_ms: float, shares: Mapping[str, float]) -> str:
    parts = [f"{phase} {share:.0%}" for phase, share in sorted(shares.items(), key=lambda one: -one[1]) if share >= 0.005]
    advice = next((_ADVICE[phase] for phase in _ADVICE if shares[phase] > _MUCH * (2 if phase == "rest" else 1)), None)
    return f"a step takes {step_ms:.3g} ms: {', '.join(parts)}" + (f"; {advice}" if advice else "")
