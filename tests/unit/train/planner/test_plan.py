"""Plans: what is legal, what fits, what must rise with what, and what is said of the rest."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.errors import ConfigError, NotFound
from tidemill.train.planner.collectives import NAMES, Line, Measured
from tidemill.train.planner.devices import DEVICES, device
from tidemill.train.planner.layout import Impossible, Layout, layouts
from tidemill.train.planner.memory import PRECISIONS, rank_memory
from tidemill.train.planner.network import Perceptron, Transformer
from tidemill.train.planner.plan import plan
from tidemill.train.planner.stages import stages
from tidemill.train.planner.timing import Running, step_time

SMALL = Transformer(hidden=2048, layers=24, heads=16, vocabulary=51200, sequence=2048)
LARGE = Transformer(hidden=8192, layers=80, heads=64, vocabulary=51200, sequence=2048)
H100 = DEVICES["h100"]
BF16 = PRECISIONS["bf16"]


def test_the_best_comes_first_and_every_layout_is_answered_for() -> None:
    made = plan(LARGE, H100, ranks=64, batch=128)
    times = [choice.time.total_s for choice in made.choices]
    assert times == sorted(times)
    room = H100.memory_bytes
    assert all(choice.memory.total < room for choice in made.choices)
    assert all(choice.layout.ranks == 64 and choice.layout.batch == 128 for choice in made.choices)
    asked = {_axes(one.layout if isinstance(one, Impossible) else one) for one in layouts(LARGE, ranks=64, batch=128, node_size=8)}
    answered = [_axes(choice.layout) for choice in made.choices] + [_axes(refusal.layout) for refusal in made.refused]
    assert set(answered) == asked
    assert len(answered) == len(set(answered))


def test_why_layouts_fall_out() -> None:
    why = {refusal.layout.text: refusal.why for refusal in plan(LARGE, H100, ranks=64, batch=64).refused}
    assert why["data 4 x tensor 16"] == "tensor 16 crosses nodes of 8"
    assert why["data 2 x pipeline 32"] == "80 layers must be divisible by pipeline 32"
    assert why["data 64"].startswith("needs ")
    assert why["data 64"].endswith(" GiB of 75.2")
    odd = plan(LARGE, H100, ranks=64, batch=40)
    assert {r.layout.text: r.why for r in odd.refused}["data 64"] == "batch 40 must be divisible by data x shard 64"
    few = plan(LARGE, H100, ranks=16, batch=8)
    assert {r.layout.text: r.why for r in few.refused}["data 4 x pipeline 4"] == "2 rows of a rank are fewer micro-batches than pipeline 4"


def test_nothing_fits() -> None:
    made = plan(LARGE, DEVICES["a100-40"], ranks=1, batch=1)
    assert not made.choices
    assert len(made.refused) == 1


def test_mfu_and_rate_are_of_the_step() -> None:
    best = plan(SMALL, H100, ranks=8, batch=64).choices[0]
    assert best.units_per_s == pytest.approx(64 * 2048 / best.time.total_s)
    assert best.mfu == pytest.approx(64 * SMALL.model_flops() / best.time.total_s / (8 * 989.4e12))
    assert 0.1 < best.mfu < 0.58


def test_the_bubble_by_hand() -> None:
    """Equal stages without communication: (p - 1) / m of the computing."""
    network = Transformer(hidden=1024, layers=8, heads=8, vocabulary=1, sequence=1024, learned_positions=False)
    blocks = stages(network, tensor=1, pipeline=4)
    assert [(stage.index, stage.alike) for stage in blocks] == [(0, 1), (1, 2), (3, 1)]
    fast = replace(H100, link_bandwidth=1e30, node_bandwidth=1e30)
    took = step_time(network, Layout(pipeline=4, micro_batch=1, micro_batches=16), fast, precision=BF16)
    assert took.bubble_s / took.compute_s == pytest.approx(3 / 16, rel=0.05)
    parts = step_time(network, Layout(pipeline=4, micro_batch=1, micro_batches=16, interleave=2), fast, precision=BF16)
    assert parts.bubble_s / parts.compute_s == pytest.approx(3 / 32, rel=0.05)


def test_what_does_not_divide_goes_to_the_middle() -> None:
    found = stages(replace(SMALL, layers=126), tensor=1, pipeline=16)
    sizes = [sum(count for block, count in stage if block.name == "layer") for stage in found for _ in range(stage.alike)]
    assert sizes == [7, *[8] * 14, 7]


def test_bytes_by_hand() -> None:
    layout = Layout(data=4, tensor=2, micro_batch=2, micro_batches=3)
    sent = step_time(SMALL, layout, H100, precision=BF16).bytes_sent
    held = SMALL.blocks(2)
    assert sent["data"] == pytest.approx(2 * 3 / 4 * 4 * sum(block.held(2) for block in held))
    hidden = 2 * 2048 * 2048 * 2  # rows, tokens, width, bytes
    assert sent["tensor"] == pytest.approx(3 * 2 * (24 * 2 + 2) * hidden)  # forward and backward: two sums a layer, one at either end
    assert sent["pipeline"] == 0


def test_measured_lines_take_the_place_of_the_data_sheet() -> None:
    slow = Measured(ranks=2, backend="gloo", lines={name: Line(alpha_s=1e-3, bandwidth=1e8) for name in NAMES})
    layout = Layout(data=8, micro_batch=8)
    assert step_time(SMALL, layout, H100, precision=BF16, measured=slow).data_s > 50 * step_time(SMALL, layout, H100, precision=BF16).data_s


def test_a_perceptron_is_planned_in_rows() -> None:
    made = plan(Perceptron(inputs=100, widths=[512, 512]), H100, ranks=4, batch=4096, precision="fp32")
    assert made.to_json()["choices"][0]["rows_per_s"] > 0
    assert {refusal.why for refusal in made.refused if refusal.layout.tensor > 1} == {"a perceptron has no tensor plan"}


@pytest.mark.parametrize(("ranks", "batch", "why"), [(0, 1, "ranks: must be at least 1"), (1, 0, "batch: must be at least 1")])
def test_a_wrong_question(ranks: int, batch: int, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        plan(SMALL, H100, ranks=ranks, batch=batch)


def test_unknown_names() -> None:
    with pytest.raises(NotFound, match="did you mean 'h100'"):
        device("h1000")
    with pytest.raises(NotFound, match="precision 'fp8'"):
        plan(SMALL, H100, ranks=1, batch=1, precision="fp8")


def test_this_machine_is_looked_at() -> None:
    here = device("cpu")
    assert 1e8 < here.flops["fp32"] < 1e14
    assert here.memory_bytes > 1e8


# What must rise with what.

axes = st.sampled_from([1, 2, 4, 8])
shapes = st.builds(
    lambda heads, width, layers, sequence: Transformer(hidden=heads * width, layers=layers, heads=heads, vocabulary=512, sequence=sequence),
    st.sampled_from([8, 16]),
    st.sampled_from([16, 64, 128]),
    st.sampled_from([8, 16, 24]),
    st.sampled_from([32, 512, 2048]),
)
made_layouts = st.builds(
    Layout,
    data=axes,
    shard=axes,
    tensor=axes,
    pipeline=axes,
    stage=st.sampled_from([1, 2, 3]),
    micro_batch=st.sampled_from([1, 2, 5]),
    micro_batches=st.sampled_from([8, 16]),
    recompute=st.booleans(),
    schedule=st.sampled_from(["1f1b", "gpipe"]),
)


@given(shapes, made_layouts)
@settings(max_examples=60, deadline=None)
def test_memory_and_time_are_sums_of_parts_that_none_is_below_zero(network: Transformer, layout: Layout) -> None:
    memory, time = rank_memory(network, layout, BF16), step_time(network, layout, H100, precision=BF16)
    for part in (memory.parameters, memory.gradients, memory.optimizer, memory.activations, memory.buffers):
        assert part >= 0
        assert math.isfinite(part)
    assert min(time.compute_s, time.tensor_s, time.pipeline_s, time.bubble_s, time.data_s, time.optimizer_s) >= 0
    assert time.total_s > 0


@given(shapes, made_layouts)
@settings(max_examples=60, deadline=None)
def test_what_takes_more_memory(network: Transformer, layout: Layout) -> None:
    base = rank_memory(network, layout, BF16)
    assert rank_memory(network, replace(layout, micro_batch=2 * layout.micro_batch), BF16).total > base.total
    assert rank_memory(network, replace(layout, shard=2 * layout.shard), BF16).optimizer < base.optimizer
    stage = [rank_memory(network, replace(layout, shard=8, stage=stage), BF16) for stage in (1, 2, 3)]
    assert [m.parameters + m.gradients for m in stage] == sorted((m.parameters + m.gradients for m in stage), reverse=True)
    plain = rank_memory(network, replace(layout, recompute=False), BF16)
    again = rank_memory(network, replace(layout, recompute=True), BF16)
    assert again.activations <= plain.activations
    gpipe = rank_memory(network, replace(layout, schedule="gpipe", micro_batches=16), BF16)
    assert rank_memory(network, replace(layout, schedule="1f1b", micro_batches=16), BF16).activations <= gpipe.activations


@given(shapes, made_layouts)
@settings(max_examples=60, deadline=None)
def test_what_takes_longer(network: Transformer, layout: Layout) -> None:
    def took(layout: Layout, on: str = "h100", **how: bool) -> float:
        return step_time(network, layout, DEVICES[on], precision=BF16, running=Running(**how)).total_s

    assert took(replace(layout, micro_batches=2 * layout.micro_batches)) > took(layout)
    # More computing may hide more of what is sent: as long then, but for rounding.
    rounding = 1 + 1e-9
    assert took(replace(layout, recompute=True)) * rounding >= took(replace(layout, recompute=False))
    assert took(layout, fused=False) * rounding >= took(layout)
    assert took(layout, overlap_data=False) * rounding >= took(layout)
    assert took(layout, overlap_tensor=True) <= took(layout) * rounding
    assert took(layout, on="h100-96-500w") * rounding >= took(layout)
    assert took(layout, on="h200") <= took(layout) * rounding


def _axes(layout: Layout) -> tuple[int, ...]:
    return layout.data, layout.shard, layout.tensor, layout.pipeline, layout.stage
