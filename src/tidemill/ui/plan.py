"""A plan as lines of a terminal: the best layouts with their memory and speed, then why the others fall out."""

from __future__ import annotations

from collections.abc import Sequence

from tidemill.train.planner.devices import GIB
from tidemill.train.planner.measuring import Survey
from tidemill.train.planner.plan import Choice, Plan, Refusal
from tidemill.ui.format import milliseconds, number, percent, seconds, size

HEADS = ("layout", "micro-batches", "weights", "gradients", "optimizer", "activations", "buffers")


def heading(plan: Plan) -> str:
    """What was planned, in a line."""
    network, device = plan.network, plan.device
    room = f"{device.memory_bytes / GIB:.0f} GiB" + (" shared" if device.generation == "cpu" else " each")
    return (
        f"{network.kind} of {number(network.parameters, digits=3)} parameters, {number(plan.batch)} rows a step in {plan.precision.name},"
        f" on {plan.ranks} x {device.name} ({room})"
    )


def columns(plan: Plan, *, most: int) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of the best layouts; memory of the fullest rank by part, and in all in the unit that the head says."""
    shown = plan.choices[:most]
    unit, scale = ("GiB", GIB) if max((choice.memory.total for choice in shown), default=GIB) >= GIB else ("MiB", 2**20)
    heads = [*HEADS, unit, "step", "bubble", f"{plan.network.unit}/s", "MFU", "dear"]
    return heads, [_line(choice, scale) for choice in shown]


def advice(plan: Plan) -> str:
    """The best layout as keys of a project file."""
    if not plan.choices:
        return "nothing fits; more ranks, shorter rows, or a device with more memory"
    layout = plan.choices[0].layout
    axes = {axis: getattr(layout, axis) for axis in ("data", "shard", "tensor", "pipeline") if getattr(layout, axis) > 1}
    keys = [f"{name} = {value}" for name, value in axes.items()]
    keys += [f"shard_stage = {layout.stage}"] if layout.shard > 1 and layout.stage != 3 else []
    keys += ["recompute = true"] if layout.recompute else []
    parallel = f", parallel = {{ {', '.join(keys)} }}" if keys else ""
    return f"[train] batch_size = {plan.batch}, accumulate = {layout.micro_batches}{parallel}"


def reasons(refused: Sequence[Refusal], *, most: int) -> list[str]:
    """Layouts that fall out, those of one reason together: what cannot be first, then what does not fit, the nearest first."""
    cannot: dict[str, list[str]] = {}
    for refusal in refused:
        if refusal.need_bytes is None:
            cannot.setdefault(refusal.why, []).append(refusal.layout.text)
    lines = [f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {why}" for why, names in cannot.items()]
    large = sorted((refusal for refusal in refused if refusal.need_bytes is not None), key=lambda refusal: refusal.need_bytes or 0.0)
    return [*_first(lines, most), *_first([f"{refusal.layout.text}: {refusal.why}" for refusal in large], most)]


def _first(lines: Sequence[str], most: int) -> list[str]:
    return [*lines[:most], *([f"... and {len(lines) - most} more; --json has them all"] if len(lines) > most else [])]


def collectives_heading(found: Survey) -> str:
    """What was measured, in a line."""
    return f"{found.measured.ranks} ranks over {found.measured.backend}; time of a call by bytes of the tensor, median of the slowest rank"


def collective_columns(found: Survey) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of what was measured: times by size, and the line through them."""
    sizes = sorted({point.num_bytes for point in found.points})
    took = {(point.name, point.num_bytes): point.seconds for point in found.points}
    heads = ["collective", *(_binary(num) for num in sizes), "latency", "bandwidth"]
    return heads, [
        [name, *(milliseconds(1e3 * took[name, num]) for num in sizes), milliseconds(1e3 * line.alpha_s), f"{size(line.bandwidth)}/s"]
        for name, line in found.measured.lines.items()
    ]


def _line(choice: Choice, scale: float) -> list[str]:
    layout, memory, time = choice.layout, choice.memory, choice.time
    parts = (memory.parameters, memory.gradients, memory.optimizer, memory.activations, memory.buffers, memory.total)
    return [
        layout.text,
        f"{layout.micro_batches} x {layout.micro_batch}" + (" recomputed" if layout.recompute else ""),
        *(_in_unit(part / scale) for part in parts),
        seconds(time.total_s),
        percent(time.bubble_s / time.total_s, digits=0),
        number(round(choice.units_per_s)),
        percent(choice.mfu, digits=0),
        choice.dear,
    ]


def traffic(choice: Choice) -> str:
    """What a rank sends in a step, by axis."""
    sent = [f"{axis} {size(num)}" for axis, num in choice.time.bytes_sent.items() if num]
    return f"a rank sends in a step: {', '.join(sent)}" if sent else "a rank sends nothing"


def _in_unit(value: float) -> str:
    return f"{value:,.1f}" if value >= 0.05 else "0"


def _binary(num_bytes: int) -> str:
    for unit, scale in (("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= scale:
            return f"{num_bytes // scale} {unit}"
    return f"{num_bytes} B"
