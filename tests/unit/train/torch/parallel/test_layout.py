"""How ranks are laid out, and what is refused before any is started."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tidemill.core.errors import ConfigError
from tidemill.core.project import build
from tidemill.train.torch.parallel.layout import AXES, Layout, ParallelConfig


def test_every_rank_has_a_place_of_its_own() -> None:
    layout = Layout.of(ParallelConfig(data=2, shard=3, tensor=2, pipeline=2), ranks=24, micro_batches=2)
    places = [tuple(layout.coordinates(rank).values()) for rank in range(24)]
    assert places == sorted(set(places))
    assert list(layout.coordinates(0)) == list(AXES)
    assert [layout.rank_of(**layout.coordinates(rank)) for rank in range(24)] == list(range(24))


def test_ranks_of_a_tensor_or_pipeline_group_read_the_same_rows() -> None:
    layout = Layout.of(ParallelConfig(data=2, shard=2, tensor=2, pipeline=2), ranks=16, micro_batches=2)
    assert layout.readers == 4
    for rank in range(16):
        at = layout.coordinates(rank)
        assert layout.reader(rank) == at["data"] * 2 + at["shard"]
    assert {layout.reader(rank) for rank in range(16)} == {0, 1, 2, 3}


def test_ranks_beside_each_other_divide_layers() -> None:
    layout = Layout.of(ParallelConfig(data=2, tensor=2), ranks=4)
    assert [layout.coordinates(rank)["tensor"] for rank in range(4)] == [0, 1, 0, 1]


def test_a_product_that_is_not_the_launch_is_refused_with_all_factors() -> None:
    with pytest.raises(ConfigError, match=r"^data 2 x tensor 3 x pipeline 2 = 12 ranks, but the launch has 8$"):
        Layout.of(ParallelConfig(data=2, tensor=3, pipeline=2), ranks=8, micro_batches=2)
    with pytest.raises(ConfigError, match=r"^data 1 = 1 ranks, but the launch has 2$"):
        Layout.of(ParallelConfig(), ranks=2)


def test_a_pipeline_needs_micro_batches() -> None:
    with pytest.raises(ConfigError, match=r"train.accumulate: must be at least the 4 stages .*, got 3"):
        Layout.of(ParallelConfig(pipeline=4), ranks=4, micro_batches=3)
    assert Layout.of(ParallelConfig(pipeline=4, schedule="gpipe"), ranks=4).micro_batches == 1


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"data": 0}, "train.parallel.data: must be in 1..65536, got 0"),
        ({"shard_stage": 4}, "train.parallel.shard_stage: must be in 1..3, got 4"),
        ({"schedule": "1b1f"}, "train.parallel.schedule: must be one of 1f1b, gpipe, got '1b1f'"),
        ({"tensr": 2}, "did you mean 'train.parallel.tensor'"),
        ({"offload": True}, "train.parallel.offload: needs train.parallel.shard of at least 2, got 1"),
    ],
)
def test_wrong_settings_are_named(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(ParallelConfig, tree, path="train.parallel")
    assert said in str(caught.value)


def test_a_layout_needs_no_torch() -> None:
    code = "import sys, tidemill.train.torch.parallel.layout; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
