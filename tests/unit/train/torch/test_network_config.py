from __future__ import annotations

from typing import Any

import pytest

from tidemill.core.errors import ConfigError
from tidemill.core.project import build, to_plain
from tidemill.train.config import TrainConfig
from tidemill.train.torch.config import NetworkConfig, resolve


def train(**tree: Any) -> TrainConfig:
    made: TrainConfig = build(TrainConfig, tree, path="train")
    return made


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"precision": "fp8"}, r"train\.precision: must be one of fp32, bf16, fp16"),
        ({"ema": 1.0}, r"train\.ema: must be in"),
        ({"epochs": 0}, r"train\.epochs: must be in 1"),
        ({"optimizer": {"name": "adam"}}, r"train\.optimizer\.name: must be one of adamw, lamb, sgd"),
        ({"optimizer": {"momentum": 0.5}}, r"train\.optimizer\.momentum: is for sgd, got train\.optimizer\.name 'adamw'"),
        ({"optimizer": {"name": "sgd", "betas": [0.9, 0.99]}}, r"train\.optimizer\.betas: is for adamw and lamb"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, r"train\.optimizer\.betas: must be two shares"),
        ({"optimizer": {"betas": [0.9]}}, r"train\.optimizer\.betas: must be two shares"),
        ({"schedule": {"kind": "step"}}, r"train\.schedule\.kind: must be one of"),
        ({"batch_size": 8, "batch_tokens": 512}, r"train\.batch_tokens: must stand without train\.batch_size, got 512 and 8"),
        (
            {"batch_size": 15, "accumulate": 4, "parallel": {"data": 2, "shard": 2}},
            r"train\.batch_size: must give each micro-batch a row, got 15 rows for data 2 x shard 2 x accumulate 4 = 16 micro-batches",
        ),
        ({"parallel": {"pipeline": 4}, "accumulate": 2}, r"train\.accumulate: must be at least the 4 stages"),
        ({"worker": 1}, r"train\.worker: is not a known key"),
    ],
)
def test_what_cannot_be_is_named_with_all_its_factors(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        train(**tree)


def test_the_network_says_what_the_project_leaves_open() -> None:
    defaults = {"epochs": 3, "batch_size": 32, "optimizer": {"learning_rate": 5e-5, "weight_decay": 0.1}}
    made = resolve(train(epochs=7, optimizer={"learning_rate": 1e-4}), defaults)
    assert (made.epochs, made.batch_size) == (7, 32)
    assert (made.optimizer.learning_rate, made.optimizer.weight_decay, made.optimizer.betas) == (1e-4, 0.1, (0.9, 0.999))
    assert made.optimizer.momentum is None
    assert made.schedule.warmup == 0.05


def test_a_budget_of_tokens_goes_over_the_networks_own_batch() -> None:
    made = resolve(train(batch_tokens=4096), {"batch_size": 32})
    assert (made.batch_size, made.batch_tokens) == (None, 4096)


def test_what_the_network_says_is_held_against_the_layout() -> None:
    with pytest.raises(ConfigError, match=r"got 2 rows for data 4 x shard 1 x accumulate 1 = 4"):
        resolve(train(parallel={"data": 4}), {"batch_size": 2})


@pytest.mark.parametrize("optimizer", [{}, {"name": "sgd", "momentum": 0.0}, {"name": "lamb", "betas": [0.8, 0.9]}])
def test_a_resolved_config_goes_through_json(optimizer: dict[str, Any]) -> None:
    made = resolve(build(NetworkConfig, {"optimizer": optimizer}, path="train"), {})
    assert build(NetworkConfig, to_plain(made), path="train") == made


def test_ranks_are_told_nothing_of_the_rest_of_the_section() -> None:
    assert type(resolve(TrainConfig(batch_rows=512), {})) is NetworkConfig
