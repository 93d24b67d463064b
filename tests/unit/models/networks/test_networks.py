"""Networks as modules: what they take, that a seed makes them, and that their graph is theirs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from tidemill.core.errors import ConfigError, DataError, Unsupported
from tidemill.core.load import load
from tidemill.models import native
from tidemill.models.base import MemoryMatrix
from tidemill.models.kinds import kind_of
from tidemill.models.networks.base import NetworkModel, Shape
from tidemill.models.networks.fitted import FittedNetwork
from tidemill.models.networks.inputs import Inputs
from tidemill.models.networks.quantiles import KNOTS, Quantiles

TASKS = {"binary": 2, "multiclass": 3, "regression": None}
TABLES = {"code": {"rows": 6, "width": 3}}

FEATURES = [
    ("mlp", {}),
    ("mlp", {"residual": True, "normalize": "batch", "activation": "relu", "width": 16}),
    ("mlp", {"normalize": "none", "activation": "gelu", "depth": 1}),
    ("dcn", {}),
    ("dcn", {"rank": 2, "structure": "stacked", "width": 16}),
    ("dcn", {"depth": 0}),
]
IMAGES = [
    ("image", {"height": 12, "width": 10, "mode": "L", "channels": 8}),
    ("image", {"height": 16, "width": 16, "channels": 8, "network": "mobile", "blocks": 2, "stem": 2}),
    ("image", {"height": 32, "width": 24, "channels": 8, "stages": 2, "stem": 4}),
]


def matrix(task: str, *, seed: int = 0, rows: int = 300) -> Any:
    """Numbers of which some are missing, and codes of categories."""
    rng = np.random.default_rng(seed)
    x_NF = np.column_stack([np.exp(rng.normal(size=rows) * 2), rng.normal(size=rows), rng.integers(0, 6, rows)]).astype(np.float32)
    x_NF[rng.random(rows) < 0.1, 1] = np.nan
    y_N = {"binary": rng.integers(0, 2, rows), "multiclass": rng.integers(0, 3, rows), "regression": 50 + 9 * rng.normal(size=rows)}[task]
    made: Any = MemoryMatrix(x_NF, y_N, names=["wide", "gaps", "code"])
    made.tables = TABLES
    return made


def fitted(kind: str, task: str, given: dict[str, Any], *, shape: Shape | None = None, seed: int = 0) -> FittedNetwork:
    """A network of random weights, its head larger than a fresh one's, so that its answers differ."""
    model: NetworkModel = load("model", kind)()
    params = model.Params(**given)
    shape = shape or model.shape(matrix(task), task=task, num_classes=TASKS[task])
    torch.manual_seed(seed)
    module = model.build(shape, params)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in ("head.weight", "model.classifier.weight"):
                parameter.normal_(std=1 / np.sqrt(parameter.shape[1]))
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    return FittedNetwork(model, shape, params, model.settled(state, params), num_classes=TASKS[task])


def answered(network: FittedNetwork, rows: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(network.to_onnx().SerializeToString(), providers=["CPUExecutionProvider"])
    reader = network.kind.reader(network.shape, network.params, None)
    (found,) = session.run(None, reader(rows))
    return np.asarray(found)


def close(network: FittedNetwork, rows: np.ndarray) -> None:
    expected = network.predict(rows)
    assert len(np.unique(expected.round(6))) > 1
    scale = max(1.0, float(np.abs(expected).max())) if network.task == "regression" else 1.0
    np.testing.assert_allclose(answered(network, rows) / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("kind", "given"), FEATURES)
def test_the_graph_of_features_answers_as_the_module(kind: str, given: dict[str, Any], task: str) -> None:
    x_NF = next(iter(matrix(task, seed=1).batches())).x_NF.copy()
    x_NF[:6, 0] = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40]
    x_NF[6] = np.nan
    x_NF[7:11, 2] = [99, -1, np.nan, 1e9]  # codes that no table has
    close(fitted(kind, task, given), x_NF)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("kind", "given"), IMAGES)
def test_the_graph_of_images_answers_as_the_module(kind: str, given: dict[str, Any], task: str) -> None:
    shape = Shape(task=task, num_outputs=3 if task == "multiclass" else 1, center=4.0, scale=2.0)
    network = fitted(kind, task, given, shape=shape)
    (axes,) = network.kind.axes(shape, network.params).values()
    close(network, np.random.default_rng(1).integers(0, 256, (5, *axes[1:]), np.uint8))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("tune", ["full", "lora", "head"])
def test_the_graph_of_texts_answers_as_the_module(tiny_encoder: Path, task: str, tune: str) -> None:
    shape = Shape(task=task, num_outputs=3 if task == "multiclass" else 1, center=4.0, scale=2.0, folder=str(tiny_encoder.parent))
    network = fitted("text", task, {"encoder": tiny_encoder.name, "max_length": 8, "tune": tune}, shape=shape)
    texts = ["", "the film", "never heard of", "\u4e2d\u6587", "a bad plot " * 50, "x" * 10_000]
    close(network, np.array(texts, object))
    long, cut = network.predict(np.array(["good " * 100, "good " * 6], object))
    np.testing.assert_allclose(long, cut, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_the_graph_of_a_decoder_answers_as_the_module_from_the_last_token(tiny_encoder: Path, task: str) -> None:
    shape = Shape(task=task, num_outputs=3 if task == "multiclass" else 1, center=4.0, scale=2.0, folder=str(tiny_encoder))
    network = fitted("decoder", task, {"tokenizer": "tokenizer.json", "max_length": 8, "width": 16, "depth": 2}, shape=shape)
    close(network, np.array(["", "the film", "never heard of", "a bad plot " * 50, "the film was so good"], object))
    alone, beside = network.predict(np.array(["bad"], object)), network.predict(np.array(["bad", "the film was so bad"], object))
    np.testing.assert_allclose(beside[:1], alone, atol=1e-5)  # what fills a short text is not its last token
    order = network.predict(np.array(["good bad film", "film good bad"], object))
    assert np.abs(order[0] - order[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "model.tokenizer: must name a tokenizer.json"),
        ({"tokenizer": "nowhere"}, "must hold tokenizer.json, has none"),
        ({"tokenizer": "tokenizer.json", "tied": True}, "model.tied: must be false where a text has one answer"),
    ],
)
def test_what_a_decoder_cannot_be_made_of_is_said(tiny_encoder: Path, given: dict[str, Any], says: str) -> None:
    kind = load("model", "decoder")()
    with pytest.raises(ConfigError, match=says):
        kind.build(Shape(task="binary", num_outputs=1, folder=str(tiny_encoder)), kind.Params(**given))


@pytest.mark.parametrize(("kind", "given"), [*FEATURES[:4], IMAGES[0]])
def test_a_seed_makes_a_network(kind: str, given: dict[str, Any]) -> None:
    shape = Shape(task="binary", num_outputs=1) if kind == "image" else None
    one, same, other = (fitted(kind, "binary", given, shape=shape, seed=seed).state for seed in (0, 0, 1))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_low_rank_updates_are_trained_alone_and_added_in_the_end(tiny_encoder: Path) -> None:
    kind = load("model", "text")()
    params = kind.Params(encoder=str(tiny_encoder), tune="lora", rank=2, max_length=8, dropout=0.0)
    shape = Shape(task="binary", num_outputs=1)
    torch.manual_seed(0)
    module = kind.build(shape, params)
    learned = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert learned
    assert all(name.endswith((".up", ".down")) or "classifier" in name for name in learned)
    inputs = {
        name: torch.from_numpy(ids) for name, ids in kind.reader(shape, params, None)(np.array(["a good film", "bad"], object)).items()
    }
    optimizer = torch.optim.AdamW([parameter for parameter in module.parameters() if parameter.requires_grad], 0.05)
    before = module(**inputs).detach()
    for _ in range(3):
        optimizer.zero_grad()
        module(**inputs).square().sum().backward()
        optimizer.step()
    module.eval()
    expected = module(**inputs).detach()
    assert not torch.allclose(before, expected, atol=1e-3)
    state = kind.settled({name: tensor.numpy() for name, tensor in module.state_dict().items()}, params)
    network = FittedNetwork(kind, shape, params, state, num_classes=2)
    np.testing.assert_allclose(network.score(np.array(["a good film", "bad"], object)), expected.numpy(), atol=1e-5)


def test_numbers_become_normal_and_gaps_are_told() -> None:
    whole = matrix("binary", rows=4000)
    shape = load("model", "mlp")().shape(whole, task="binary", num_classes=2)
    assert shape.quantiles.places == (0, 1)
    assert shape.quantiles.gaps == (1,)
    inputs = Inputs(shape, max_embedding=2)
    seen = inputs(torch.from_numpy(next(iter(whole.batches())).x_NF))
    assert seen.shape == (4000, 2 + 1 + 2) == (4000, inputs.width)
    assert seen[:, :2].mean(0).abs().max() < 0.05
    assert (seen[:, :2].var(0) - 1).abs().max() < 0.15
    np.testing.assert_array_equal(seen[:, 2].detach().numpy(), np.isnan(next(iter(whole.batches())).x_NF[:, 1]))


def test_quantiles_of_few_values_are_those_values() -> None:
    few = MemoryMatrix(np.array([[0, 7], [1, 7], [1, 7], [1, np.nan]], np.float32), np.zeros(4))
    quantiles = Quantiles.of(few, [0, 1])
    assert [len(line) for line in quantiles.knots] == [KNOTS, KNOTS]
    assert set(quantiles.knots[0]) == {0.0, 1.0}
    assert set(quantiles.values[1]) == {0.0}
    assert quantiles.gaps == (1,)


def test_a_class_without_rows_is_never_answered() -> None:
    network = fitted("mlp", "multiclass", {})
    network = FittedNetwork(network.kind, replace(network.shape, unseen=(1,)), network.params, network.state, num_classes=3)
    x_NF = next(iter(matrix("multiclass").batches())).x_NF
    assert (network.predict(x_NF)[:, 1] == 0).all()
    assert (answered(network, x_NF)[:, 1] == 0).all()


def test_a_module_that_loops_over_its_rows_is_refused() -> None:
    class Looping(torch.nn.Module):
        """Adds up as many rows as were traced."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            shift = 1.0 if float(features.nan_to_num().sum()) > 0 else -1.0
            return torch.where(features[:, :1] > shift, self.weight, -self.weight) * np.random.default_rng().normal()

    class Kind(NetworkModel):
        ref = "looping"

        def build(self, shape: Shape, params: Any) -> torch.nn.Module:
            return Looping()

    kind = Kind()
    shape = kind.shape(matrix("binary"), task="binary", num_classes=2)
    network = FittedNetwork(kind, shape, None, {"weight": np.ones(1, np.float32)}, num_classes=2)
    with pytest.raises(Unsupported, match="must answer as the network does"):
        network.to_onnx()


def test_a_network_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_of_test.py").write_text(
        "from torch import nn\n"
        "from tidemill.models.networks.inputs import Head, Inputs\n"
        "class Mine(nn.Module):\n"
        "    def __init__(self, shape, width):\n"
        "        super().__init__()\n"
        "        self.inputs = Inputs(shape, max_embedding=4)\n"
        "        self.hidden = nn.Linear(self.inputs.width, width)\n"
        "        self.head = Head(width, shape)\n"
        "    def forward(self, features):\n"
        "        return self.head(self.hidden(self.inputs(features)).tanh())\n"
        "def build(shape, *, width=8):\n"
        "    return Mine(shape, width)\n"
        "def wrong(shape):\n"
        "    return 7\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    kind: Any = kind_of("mine_of_test:build")
    params = kind.Params.from_tree({"width": 5}, "model", "test")
    shape = kind.shape(matrix("regression"), task="regression", num_classes=None)
    module = kind.build(shape, params)
    assert module.hidden.out_features == 5
    network = FittedNetwork(kind, shape, params, {name: t.numpy() for name, t in module.state_dict().items()}, num_classes=None)
    native.save(network, tmp_path / "native", kind=kind.ref)
    x_NF = next(iter(matrix("regression").batches())).x_NF
    np.testing.assert_array_equal(native.load(tmp_path / "native").predict(x_NF), network.predict(x_NF))
    close(network, x_NF)
    with pytest.raises(ConfigError, match=r"must give a torch\.nn\.Module, gives int"):
        kind_of("mine_of_test:wrong").build(shape, kind.Params())  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="must take shape and depth"):
        kind.build(shape, kind.Params(values={"depth": 2}))


def test_an_encoder_that_is_not_there_is_named(tmp_path: Path) -> None:
    kind = load("model", "text")()
    with pytest.raises(ConfigError, match=r"model\.encoder: .*nowhere must hold config\.json"):
        kind.preprocess(kind.Params(encoder="nowhere"), "text", tmp_path)


def test_a_target_of_one_class_is_refused() -> None:
    x_NF = np.zeros((4, 1), np.float32)
    with pytest.raises(DataError, match="at least two classes"):
        load("model", "mlp")().shape(MemoryMatrix(x_NF, np.zeros(4)), task="binary", num_classes=2)
