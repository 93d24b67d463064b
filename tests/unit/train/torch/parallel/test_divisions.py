"""What a module says about how it may be divided, and what is said where it cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tidemill.core.errors import ConfigError, Unsupported
from tidemill.models.networks.decoder import DecoderParams, Transformer
from tidemill.train.torch.parallel import pipeline, plan, tensor
from tidemill.train.torch.parallel.layout import Layout, ParallelConfig
from tidemill.train.torch.parallel.parallel import parallelize


def decoder(**params: Any) -> Transformer:
    return Transformer(61, DecoderParams(**{"depth": 4, "width": 32, "heads": 4, "hidden": 48, **params}))


def changed(**said: Any) -> Transformer:
    module = decoder()
    for name, value in said.items():
        setattr(module, name, value)
    return module


def test_patterns_mean_whole_pieces_of_names() -> None:
    found = plan.tensor_plan(decoder())
    assert found["layers.3.attention.query"] == "colwise"
    assert found["head"] == "colwise_gather_output"
    assert len(found) == 2 + 4 * 7
    assert "layers.0.feed.gate" not in plan.tensor_plan(decoder(activation="gelu"))


def test_a_pattern_without_a_part_is_refused_with_near_names() -> None:
    with pytest.raises(
        ConfigError, match=r"tp_plan: must name a part of Transformer, got 'layers.\*.attn.query'.*'layers.\*.attention.query'"
    ):
        plan.tensor_plan(changed(tp_plan={"layers.*.attn.query": "colwise"}))
    with pytest.raises(ConfigError, match="shard_units: must name a part"):
        plan.shard_units(changed(shard_units=["blocks.*"]))
    with pytest.raises(ConfigError, match="split_points: must name a part"):
        plan.stages(changed(split_points="layer"), 2)


def test_a_module_without_a_plan_is_told_what_one_looks_like() -> None:
    with pytest.raises(ConfigError, match=r"needs a network with a tp_plan, Linear has none; such as tp_plan = "):
        plan.tensor_plan(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"needs a network with split_points, Linear has none; such as split_points = "):
        plan.stages(nn.Linear(2, 2), 2)


def test_unknown_styles_name_the_known() -> None:
    with pytest.raises(Unsupported, match=r"tp_plan: 'packed_colwise' is not built.*colwise, rowwise"):
        tensor.check(decoder(), {"head": "packed_colwise"}, 2)


@pytest.mark.parametrize(
    ("styles", "size", "said"),
    [
        ({"layers.0.attention.query": "colwise"}, 8, "must divide the 4 heads of Transformer, got 8"),
        ({"layers.0.norm": "colwise"}, 2, "colwise must name a Linear or an Embedding, layers.0.norm is a RMSNorm"),
        ({"layers.0.odd": "colwise"}, 2, "must divide the 5 rows of layers.0.odd.weight, got 2"),
        ({"layers.0.odd": "rowwise"}, 4, "must divide the 6 columns of layers.0.odd.weight, got 4"),
    ],
)
def test_what_ranks_do_not_divide_is_refused(styles: dict[str, str], size: int, said: str) -> None:
    module = decoder()
    module.layers[0].norm, module.layers[0].odd = nn.RMSNorm(4), nn.Linear(6, 5)
    with pytest.raises(ConfigError) as caught:
        tensor.check(module, styles, size)
    assert said in str(caught.value)


def test_layers_are_units_and_tables_are_not() -> None:
    module = decoder()
    module.tables = nn.ModuleList([nn.Embedding(3, 2)])
    assert plan.shard_units(module) == [f"layers.{place}" for place in range(4)]
    assert plan.shard_units(changed(shard_units=["layers.*.feed"])) == [f"layers.{place}.feed" for place in range(4)]


@pytest.mark.parametrize(
    ("points", "count", "starts"),
    [
        ("layers", 2, [0, 2]),
        ("layers", 3, [0, 1, 2]),
        ("layers", 4, [0, 1, 2, 3]),
        (["layers.1"], 2, [0, 1]),
        (["layers.1", "layers.3"], 3, [0, 1, 3]),
    ],
)
def test_a_pipeline_cuts_evenly_or_where_it_is_told(points: Any, count: int, starts: list[int]) -> None:
    assert plan.stages(changed(split_points=points), count) == ("layers", starts)


@pytest.mark.parametrize(
    ("points", "count", "said"),
    [
        ("layers", 5, "must be at most the 4 layers of layers, got 5"),
        ("embed", 2, "must name a ModuleList, 'embed' is a Embedding"),
        (["layers.1"], 3, "must be 2 for a pipeline of 3 stages"),
        (["layers.2", "layers.1"], 3, "must rise"),
        (["layers.0"], 2, "must rise from the second layer on"),
        (["head"], 2, "must name members of one ModuleList"),
    ],
)
def test_cuts_that_cannot_be_are_refused(points: Any, count: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan.stages(changed(split_points=points), count)
    assert said in str(caught.value)


def test_stages_run_after_each_other_are_the_module() -> None:
    """What leaves one stage goes into the next, in one process."""
    torch.manual_seed(0)
    inputs = {"input_ids": torch.randint(0, 61, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.int64)}
    whole = decoder()
    expected, hidden, weights = whole(**inputs), [], 0
    layers, starts = plan.stages(whole, 3)
    home = pipeline.homes(whole, layers, starts)
    assert home == {"embed": 0, "rotary": 0, "layers.0": 0, "layers.1": 1, "layers.2": 2, "layers.3": 2, "norm": 2, "head": 2}
    for index in range(3):
        part, flow = decoder(), pipeline.Flow()
        part.load_state_dict(whole.state_dict())
        stage = pipeline.Stage(pipeline.cut(part, home, index, flow), flow, torch.no_grad)
        flow.inputs = [inputs]
        hidden = [stage(*hidden, place=torch.tensor([0]))]
        weights += sum(weight.numel() for weight in stage.parameters())
    torch.testing.assert_close(hidden[0], expected, rtol=0, atol=0)
    assert weights == sum(weight.numel() for weight in whole.parameters())


def test_a_weight_around_the_layers_is_refused() -> None:
    module = decoder()
    module.bias = nn.Parameter(torch.zeros(1))
    with pytest.raises(ConfigError, match="every weight must lie in a part before, in or after 'layers', bias lies around it"):
        pipeline.homes(module, "layers", [0, 2])


def test_one_rank_runs_the_module_itself() -> None:
    """Nothing is wrapped, and no process group is needed."""
    module = decoder()
    made = parallelize(lambda: module, Layout.of(ParallelConfig(), ranks=1), device=torch.device("cpu"))
    assert made.parts == [module]
    assert type(module) is Transformer
    state = made.full_state()
    assert state is not None
    assert list(state) == list(module.state_dict())
    assert state["head.weight"].data_ptr() != module.head.weight.data_ptr()


def test_a_launch_of_another_size_is_refused() -> None:
    layout = Layout.of(ParallelConfig(data=2), ranks=2)
    with pytest.raises(ConfigError, match="data 2 = 2 ranks, but the launch has 1"):
        parallelize(decoder, layout, device=torch.device("cpu"))
