"""The decoder: what a token sees, and its graph."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from tidemill.core.errors import ConfigError
from tidemill.core.graph import OPSETS
from tidemill.models.networks.base import Shape
from tidemill.models.networks.decoder import Decoder, DecoderParams, Rotary, Transformer, _turned


def network(**params: Any) -> Transformer:
    torch.manual_seed(0)
    made = Decoder().build(
        Shape(task="next_token", num_outputs=61), DecoderParams(**{"depth": 2, "width": 32, "heads": 4, "hidden": 48, **params})
    )
    assert isinstance(made, Transformer)
    return made.eval()


IDS = torch.randint(0, 61, (3, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_token_sees_none_that_come_later() -> None:
    module = network()
    changed = IDS.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 61
    first, second = module(IDS), module(changed)
    torch.testing.assert_close(first[:, :5], second[:, :5])
    assert not torch.allclose(first[:, 5:], second[:, 5:])


@torch.no_grad()
def test_padding_is_not_seen_on_either_side() -> None:
    module = network()
    alone = module(IDS[:1, :6])
    after = torch.cat([IDS[:1, :6], IDS[1:2, :3]], dim=1)
    torch.testing.assert_close(module(after, torch.tensor([[1] * 6 + [0] * 3]))[:, :6], alone)
    before = torch.cat([IDS[1:2, :3], IDS[:1, :6]], dim=1)
    scores = module(before, torch.tensor([[0] * 3 + [1] * 6]))
    torch.testing.assert_close(scores[:, 3:], alone, rtol=1e-4, atol=1e-5)  # positions are relative
    assert scores.isfinite().all()


def test_a_turn_keeps_lengths_and_tells_only_distance() -> None:
    turn = Rotary(8)(torch.arange(20))
    query, key = torch.randn(2, 8), torch.randn(2, 8)
    turned_query, turned_key = (_turned(one[:, None].expand(2, 20, 8), turn) for one in (query, key))
    torch.testing.assert_close(turned_query.norm(dim=-1), query.norm(dim=-1)[:, None].expand(2, 20))
    products = torch.einsum("nqw,nkw->nqk", turned_query, turned_key)
    torch.testing.assert_close(products[:, 3, 1], products[:, 15, 13], rtol=1e-4, atol=1e-5)


def test_a_tied_head_is_one_weight() -> None:
    tied, free = network(tied=True), network()
    assert tied.head.weight is tied.embed.weight
    assert sum(weight.numel() for weight in free.parameters()) - sum(weight.numel() for weight in tied.parameters()) == 61 * 32


def test_width_and_heads_must_go_together() -> None:
    with pytest.raises(ConfigError, match=r"model.width: must be a multiple of 2 x model.heads, got width 36 with heads 4"):
        network(width=36)


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_its_graph_answers_as_it_does(activation: str) -> None:
    module, content = network(activation=activation), io.BytesIO()
    mask = (torch.arange(9)[None, :] < torch.tensor([[9], [4], [7]])).long()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (IDS, mask), content, input_names=["input_ids", "attention_mask"], output_names=["score"],
            dynamic_axes={"input_ids": {0: "N", 1: "L"}, "attention_mask": {0: "N", 1: "L"}, "score": {0: "N", 1: "L"}},
            opset_version=OPSETS[""], dynamo=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(content.getvalue(), providers=["CPUExecutionProvider"])
    for rows, length in ((3, 9), (2, 5), (1, 1)):
        given = {"input_ids": IDS[:rows, :length], "attention_mask": mask[:rows, :length]}
        (found,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        with torch.no_grad():
            expected = module(**given).numpy()
        assert np.abs(found - expected).max() < 1e-5
