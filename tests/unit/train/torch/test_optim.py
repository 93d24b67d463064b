from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tidemill.core.errors import ConfigError  # noqa: E402
from tidemill.train.torch.config import NetworkConfig, OptimizerConfig, ScheduleConfig, resolve  # noqa: E402
from tidemill.train.torch.optim import Schedule, groups, memory, optimizer, rate  # noqa: E402


def config(**given: Any) -> OptimizerConfig:
    return resolve(NetworkConfig(optimizer=OptimizerConfig(**given)), {}).optimizer


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, 4)
        self.norm = nn.LayerNorm([2, 4])  # a matrix, and yet a norm
        self.mix = nn.Conv2d(1, 1, 3)
        self.head = nn.Linear(4, 10)
        self.head.weight = self.tokens.weight
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)


def test_biases_norms_and_embeddings_do_not_decay() -> None:
    model = Tied()
    names = {id(weight): name for name, weight in model.named_parameters()}
    decayed, others = groups([model])
    assert [names[id(weight)] for weight in decayed] == ["mix.weight"]
    assert sorted(names[id(weight)] for weight in others) == ["head.bias", "mix.bias", "norm.bias", "norm.weight", "tokens.weight"]


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_a_first_step_is_the_librarys_own(name: str) -> None:
    if name == "lamb":
        library = pytest.importorskip("pytorch_optimizer")
    torch.manual_seed(0)
    ours, theirs = nn.Linear(6, 3, bias=False), nn.Linear(6, 3, bias=False)
    theirs.load_state_dict(ours.state_dict())
    made = {
        "adamw": lambda: torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.01),
        "sgd": lambda: torch.optim.SGD(theirs.parameters(), lr=0.1, weight_decay=0.01, momentum=0.9),
        "lamb": lambda: library.Lamb(theirs.parameters(), lr=0.1, weight_decay=0.01, weight_decouple=False),
    }[name]()
    own = optimizer([ours], config(name=name, learning_rate=0.1))
    for _ in range(3):
        x = torch.randn(8, 6)
        for model, one in ((ours, own), (theirs, made)):
            one.zero_grad()
            model(x).square().sum().backward()
            one.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)


def test_making_an_optimizer_changes_no_weight() -> None:
    model = nn.Linear(4, 4)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    made = optimizer([model], config(learning_rate=0.1))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    kept = memory(made, {id(weight): name for name, weight in model.named_parameters()})
    assert all(not tensor.any() for moments in kept["weights"].values() for tensor in moments.values())
    assert {group["lr"] for group in kept["groups"]} == {0.1}


def test_a_network_without_weights_to_learn_is_refused() -> None:
    with pytest.raises(ConfigError, match="weights to learn"):
        optimizer([Tied().frozen], config())


@pytest.mark.parametrize(
    ("kind", "warmup", "floor", "expected"),
    [
        ("cosine", 4.0, 0.0, {0: 0.25, 3: 1.0, 4: 1.0, 12: 0.5, 19: (1 + math.cos(math.pi * 15 / 16)) / 2, 20: 0.0, 99: 0.0}),
        ("cosine", 0.2, 0.1, {0: 0.25, 12: 0.55, 20: 0.1}),
        ("linear", 0.0, 0.0, {0: 1.0, 5: 0.75, 10: 0.5, 20: 0.0}),
        ("linear", 10.0, 0.5, {4: 0.5, 15: 0.75, 20: 0.5}),
        ("constant", 2.0, 0.0, {0: 0.5, 1: 1.0, 20: 1.0}),
    ],
)
def test_the_rate_follows_its_formula(kind: Any, warmup: float, floor: float, expected: dict[int, float]) -> None:
    share = rate(ScheduleConfig(kind=kind, warmup=warmup, floor=floor), steps=20)
    assert {step: share(step) for step in expected} == pytest.approx(expected)


def test_the_schedule_drives_every_group() -> None:
    made = optimizer([Tied()], config(learning_rate=0.2))
    plan = Schedule(made, ScheduleConfig(kind="linear", warmup=2.0), steps=6)
    seen = []
    for _ in range(6):
        seen.append([group["lr"] for group in made.param_groups])
        made.step()
        plan.step()
    assert seen == [pytest.approx([value, value]) for value in (0.1, 0.2, 0.2, 0.15, 0.1, 0.05)]
