"""The runtime torch keeps the contract of runtimes on ranks that divide a network, which answers as NumPy does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from tidemill.core.errors import ConfigError, DataError, Unsupported
from tidemill.core.graph import IR_VERSION, OPSETS
from tidemill.core.runtime import RanksConfig, open_runtime
from tidemill.core.runtimes.torch_ranks import SCORE
from tidemill.testing.runtime import HIDDEN, check_runtime, weights

BUILD = "encoder_of_ranks:build"
MODULE = '''
import torch
from torch import nn

class Encoder(nn.Module):
    """Embed, mix, attend to each other, mean over the mask, normalise."""

    tp_plan = {"mix": "colwise_gather_output", "layers.*": "colwise_gather_output"}

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(50, 16), nn.Linear(16, 32, bias=False)
        self.layers = nn.ModuleList([nn.Linear(32, 32, bias=False)])

    def forward(self, input_ids, attention_mask):
        x, mask = torch.tanh(self.mix(self.embed(input_ids))), attention_mask.float()
        shares = (x @ x.transpose(1, 2) / 32**0.5 + (mask[:, None] - 1) * 1e4).softmax(-1)
        x = self.layers[0](shares @ x) * mask[..., None]
        pooled = x.sum(1) / mask.sum(1, keepdim=True)
        return pooled / pooled.norm(dim=1, keepdim=True)

def build(shape):
    return Encoder()
'''


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a network of one's own, as a package carries it."""
    (tmp_path / "encoder_of_ranks.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "network"
    folder.mkdir()
    table, first, second = weights()
    state = {"embed.weight": table, "mix.weight": first.T, "layers.0.weight": second.T}
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, folder / "weights.safetensors")
    facts = {"shape": {"task": "regression", "num_outputs": HIDDEN}, "params": {"values": {}}, "num_classes": None}
    (folder / "network.json").write_text(json.dumps({**facts, "best_round": None, "importance": []}), encoding="utf-8")
    (folder / "kind.json").write_text(json.dumps({"kind": BUILD, "inputs": ["input_ids", "attention_mask"]}), encoding="utf-8")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", HIDDEN]) for name in (SCORE, "prediction")]
    graph = helper.make_graph([helper.make_node("Identity", [SCORE], ["prediction"])], "link", values[:1], values[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSETS[""])], ir_version=IR_VERSION)
    (folder / "link.onnx").write_bytes(made.SerializeToString())
    return folder


@pytest.mark.slow
def test_it_keeps_the_contract_of_runtimes(network: Path) -> None:
    check_runtime("torch", network, model=network, ranks=RanksConfig(tensor=2, build=BUILD))


def test_a_package_does_not_say_which_code_runs(network: Path) -> None:
    with pytest.raises(ConfigError, match=rf"parallel\.build: must be '{BUILD}' to let .*, got None"):
        open_runtime("torch", network)


def test_a_graph_is_not_for_it(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"runs networks that PyTorch trained, got a graph; onnxruntime runs every graph"):
        open_runtime("torch", b"graph")
    with pytest.raises(DataError, match="must hold a network for the runtime torch"):
        open_runtime("torch", tmp_path)


def test_ranks_are_for_runtimes_that_run_on_them() -> None:
    with pytest.raises(ConfigError, match="runtime onnxruntime runs in one process, got tensor 2 x pipeline 1; torch runs on ranks"):
        open_runtime("onnxruntime", b"", ranks=RanksConfig(tensor=2))


def test_what_cannot_be_divided_is_refused_with_what_is_missing(network: Path) -> None:
    with pytest.raises(ConfigError, match=r"^parallel\.pipeline: needs a network with split_points, Encoder has none"):
        open_runtime("torch", network, ranks=RanksConfig(pipeline=2, build=BUILD))
