"""N ranks against one: the same losses, gradients, norms and weights, however a network is divided."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

TRAIN = str(Path(__file__).parent / "divided.py") + ":train"

# What rounding may do to 20 steps of float32, relative to the norm of what is compared.
CLOSE = 1e-5
# What bfloat16, of 8 bits, may do to 20 steps: losses are sums of many errors of up to 0.4 %, gradients of few weights are not.
BF16 = {"losses": 0.01, "norms": 0.02, "after": 0.05}

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def run(ranks: Any) -> Run:
    """Trains under a layout; what one rank does is done once."""
    alone: dict[str, list[dict[str, Any]]] = {}

    def trained(parallel: Mapping[str, Any], **said: Any) -> list[dict[str, Any]]:
        count = math.prod(parallel.get(axis, 1) for axis in ("data", "shard", "tensor", "pipeline"))
        if parallel:
            return ranks.run(TRAIN, ranks=count, timeout_s=240, parallel=parallel, **said)  # type: ignore[no-any-return]
        key = json.dumps(said, sort_keys=True)
        if key not in alone:
            alone[key] = ranks.run(TRAIN, ranks=1, parallel={}, **said)
        return alone[key]

    return trained


def far(found: np.ndarray, expected: np.ndarray, floor: float = 1e-30) -> float:
    return float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), floor))


def apart(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How far each tensor is off, relative to itself; one that is next to nothing (a bias of attention's keys has no gradient but
    rounding) to a thousandth of all."""
    floor = 1e-3 * math.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in expected.values()))
    return {name: far(value, expected[name], floor) for name, value in found.items()}


def distances(found: list[dict[str, Any]], expected: dict[str, Any]) -> dict[str, float]:
    """The largest relative difference of each kind of result, over all ranks, steps and weights."""
    gradients: dict[str, float] = {}
    for one in found:
        for place, gradient in enumerate(one["gradients"]):
            for name, value in apart(gradient, expected["gradients"][place]).items():
                gradients[name] = max(gradients.get(name, 0.0), value)
    assert set(gradients) == set(expected["gradients"][0])
    assert list(found[0]["after"]) == list(expected["after"])
    assert all(one["after"] is None for one in found[1:])
    assert len({tuple(one["losses"]) for one in found}) == 1
    assert len({tuple(one["norms"]) for one in found}) == 1
    return {
        "before": max(far(found[0]["before"][name], value) for name, value in expected["before"].items()),
        "losses": max(abs(a - b) / abs(b) for one in found for a, b in zip(one["losses"], expected["losses"], strict=True)),
        "norms": max(abs(a - b) / abs(b) for one in found for a, b in zip(one["norms"], expected["norms"], strict=True)),
        "gradients": max(gradients.values()),
        "after": max(apart(found[0]["after"], expected["after"]).values()),
        "scores": max(far(one["scores"], expected["scores"]) for one in found),
    }


def hold(run: Run, parallel: Mapping[str, Any], **said: Any) -> None:
    measured = distances(run(parallel, **said), run({}, **said)[0])
    print(json.dumps({"layout": dict(parallel), **said, **{name: float(f"{value:.1e}") for name, value in measured.items()}}))
    assert measured["before"] == 0.0
    assert max(measured.values()) < CLOSE, measured


LAYOUTS = [
    {"data": 2},
    {"data": 4},
    {"shard": 2},
    {"shard": 2, "shard_stage": 2},
    {"shard": 4, "shard_stage": 1},
    {"data": 2, "shard": 2, "shard_stage": 2},
    {"pipeline": 2},
    {"pipeline": 2, "schedule": "gpipe"},
    {"data": 2, "pipeline": 2},
]
# Divided layers go through DTensor's dispatch, which takes a CPU longer than the products of so small a network.
LONG = [
    {"data": 4, "shard": 2},
    {"shard": 2, "shard_stage": 1},
    {"shard": 4},
    {"shard": 4, "shard_stage": 2},
    {"data": 2, "shard": 2, "shard_stage": 1},
    {"data": 2, "shard": 2},
    {"tensor": 4},
    {"shard": 2, "tensor": 2},
    {"shard": 2, "tensor": 2, "shard_stage": 2},
    {"shard": 2, "pipeline": 2},
    {"data": 2, "tensor": 2},
    {"tensor": 2, "pipeline": 2},
    {"data": 2, "tensor": 2, "pipeline": 2},
    {"shard": 2, "tensor": 2, "pipeline": 2},
    {"data": 2, "shard": 2, "pipeline": 2},
    {"shard": 2, "tensor": 2, "recompute": True, "offload": True},
]


def named(layout: Mapping[str, Any]) -> str:
    return "-".join(f"{name}{value}" for name, value in layout.items())


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
def test_decoder(run: Run, layout: dict[str, Any]) -> None:
    hold(run, layout)


@pytest.mark.parametrize("layout", [{"tensor": 2}, {"data": 2, "tensor": 2, "pipeline": 2}, {"shard": 2, "tensor": 2}], ids=named)
def test_decoder_in_divided_layers_for_some_steps(run: Run, layout: dict[str, Any]) -> None:
    hold(run, layout, steps=4)


@pytest.mark.long
@pytest.mark.parametrize("layout", [*LONG, {"tensor": 2}], ids=named)
def test_decoder_in_every_layout(run: Run, layout: dict[str, Any]) -> None:
    hold(run, layout)


@pytest.mark.parametrize("layout", [{"pipeline": 4}, pytest.param({"pipeline": 4, "schedule": "gpipe"}, marks=pytest.mark.long)], ids=named)
def test_decoder_in_four_stages(run: Run, layout: dict[str, Any]) -> None:
    hold(run, layout, micro=4)


@pytest.mark.parametrize("layout", [{"data": 2}, {"shard": 2}, {"pipeline": 2, "schedule": "gpipe"}], ids=named)
def test_without_accumulation(run: Run, layout: dict[str, Any]) -> None:
    hold(run, layout, micro=1)


@pytest.mark.parametrize("layout", [{"data": 2}, {"shard": 2}, {"pipeline": 2}], ids=named)
def test_adamw(run: Run, layout: dict[str, Any]) -> None:
    hold(run, layout, optimizer="adamw", steps=8)


@pytest.mark.parametrize("layout", [{"recompute": True}, {"shard": 2, "recompute": True}, {"pipeline": 2, "recompute": True}], ids=named)
def test_computing_layers_again_changes_nothing(run: Run, layout: dict[str, Any]) -> None:
    hold(run, layout, steps=4)


def test_offload_changes_nothing(run: Run) -> None:
    hold(run, {"shard": 2, "offload": True}, steps=4)


def test_scaled_losses_leave_the_same_gradients(run: Run) -> None:
    for layout in ({"data": 2}, {"pipeline": 2}):
        measured = distances(run(layout, scale=1024.0, steps=4), run({}, steps=4)[0])
        assert max(measured.values()) < CLOSE, (layout, measured)


@pytest.mark.parametrize("layout", [{"data": 2}, {"shard": 2}], ids=named)
def test_tied_weights(run: Run, layout: dict[str, Any]) -> None:
    hold(run, layout, params={"tied": True}, steps=8)


def test_tied_weights_in_divided_layers(run: Run) -> None:
    hold(run, {"tensor": 2}, params={"tied": True}, steps=4)


def test_tied_weights_on_two_stages_are_refused(run: Run) -> None:
    with pytest.raises(Exception, match=r"a weight must lie on one stage, embed.weight \(stage 0\) and head.weight \(stage 1\)"):
        run({"pipeline": 2}, params={"tied": True})


@pytest.mark.parametrize("layout", [{"data": 2}, {"shard": 2}, {"pipeline": 2}, {"tensor": 2}, {"tensor": 2, "pipeline": 2}], ids=named)
def test_a_module_of_a_users_own(run: Run, layout: dict[str, Any]) -> None:
    hold(run, layout, network="own", steps=8)


@pytest.mark.parametrize("layout", [{"shard": 2}, {"tensor": 2}, {"pipeline": 2}], ids=named)
def test_a_decoder_that_answers_once_for_a_text(run: Run, layout: dict[str, Any]) -> None:
    hold(run, layout, network="reader", steps=8)


def test_a_norm_by_position(run: Run) -> None:
    hold(run, {"tensor": 2}, network="by_position", steps=4)


@pytest.mark.parametrize(
    "layout", [{"data": 2}, {"shard": 2}, pytest.param({"shard": 4, "shard_stage": 2}, marks=pytest.mark.long)], ids=named
)
@pytest.mark.parametrize("network", ["mlp", "dcn"])
def test_networks_over_features(run: Run, network: str, layout: dict[str, Any]) -> None:
    hold(run, layout, network=network)


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_network_over_texts(run: Run, encoder: Path, tune: str) -> None:
    for layout in ({"data": 2}, {"shard": 2}):
        hold(run, layout, network="text", params={"encoder": str(encoder), "tune": tune})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder as Hugging Face writes it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("encoder")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}
    transformers.BertModel(transformers.BertConfig(**shape, max_position_embeddings=32)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    "layout", [{"data": 2}, {"shard": 2}, {"pipeline": 2}, pytest.param({"data": 2, "pipeline": 2}, marks=pytest.mark.long)], ids=named
)
def test_bf16_stays_within_its_band(run: Run, layout: dict[str, Any]) -> None:
    found = run(layout, precision="bf16")
    measured = distances(found, run({}, precision="bf16")[0])
    assert all(measured[name] < bound for name, bound in BF16.items()), measured
    from_fp32 = distances(found, run({})[0])
    assert from_fp32["losses"] > CLOSE  # it is another arithmetic
    assert all(from_fp32[name] < bound for name, bound in BF16.items()), from_fp32


def test_the_norm_is_that_of_the_whole_gradient(run: Run) -> None:
    """Before clipping: a bound of 0 leaves the gradient as it is."""
    for layout in ({}, {"data": 2, "shard": 2}, {"pipeline": 2}):
        found = run(layout, max_norm=0.0, steps=1)
        pieces = {name: value for one in found for name, value in one["gradients"][0].items()}
        whole = math.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in pieces.values()))
        assert found[0]["norms"][0] == pytest.approx(whole, rel=1e-6)


def test_a_clipped_gradient_has_the_bound_as_its_norm(run: Run) -> None:
    found = run({"shard": 2}, max_norm=0.5, steps=1)
    assert found[0]["norms"][0] > 0.5
    clipped = math.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in found[0]["gradients"][0].values()))
    assert clipped == pytest.approx(0.5, rel=1e-5)


def test_a_mean_of_the_means_of_micro_batches_would_be_seen(run: Run) -> None:
    """The checks above can fail: what is divided by each micro-batch's own weight is far off."""
    measured = distances(run({"data": 2}, wrong="micro", steps=2), run({}, steps=2)[0])
    assert measured["gradients"] > 1_000 * CLOSE
