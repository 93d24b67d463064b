"""Counts of parameters, FLOP and activations against numbers from papers and from a pencil."""

from __future__ import annotations

import pytest

from tidemill.core.errors import ConfigError
from tidemill.train.planner.layout import Layout
from tidemill.train.planner.memory import Precision, saved
from tidemill.train.planner.network import Perceptron, Transformer, sized

GPT3 = Transformer(hidden=12288, layers=96, heads=96, vocabulary=51200, sequence=2048)
HALF = Precision(name="fp16", parameter=2, gradient=2, optimizer=12, compute=2, reduce=2)


def test_parameters_by_the_formula_of_megatron() -> None:
    """Narayanan et al. 2021, equation 2: P = 12 l h^2 (1 + 13 / 12h + (V + s) / 12lh), without the last norm's 2h."""
    h, layers, words, s = 12288, 96, 51200, 2048
    expected = 12 * layers * h * h * (1 + 13 / (12 * h) + (words + s) / (12 * layers * h))
    assert GPT3.parameters == pytest.approx(expected + 2 * h, rel=1e-12)
    assert round(GPT3.parameters / 1e9, 1) == 174.6


@pytest.mark.parametrize(
    ("shape", "billions"),
    [
        ({"hidden": 4096, "layers": 32, "heads": 32, "ffn": 14336}, 8.03),
        ({"hidden": 8192, "layers": 80, "heads": 64, "ffn": 28672}, 70.55),
        ({"hidden": 16384, "layers": 126, "heads": 128, "ffn": 53248}, 405.85),
    ],
)
def test_parameters_of_llama(shape: dict[str, int], billions: float) -> None:
    llama = Transformer(
        vocabulary=128256, sequence=8192, kv_heads=8, gated=True, biases=False, learned_positions=False, tied=False, **shape
    )  # fmt: skip
    assert round(llama.parameters / 1e9, 2) == billions


def test_flop_by_the_formula_of_megatron() -> None:
    """Narayanan et al. 2021, appendix: 72 B s l h^2 (1 + s / 6h + V / 12lh) without recomputation."""
    h, layers, words, s = 12288, 96, 51200, 2048
    expected = 72 * s * layers * h * h * (1 + s / (6 * h) + words / (12 * layers * h))
    assert GPT3.model_flops() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tensor", [1, 2, 8])
@pytest.mark.parametrize("along_sequence", [False, True])
def test_activations_of_a_layer(tensor: int, along_sequence: bool) -> None:
    """Korthikanti et al. 2022, table 2: sbh (10 + 24/t + 5as/ht), and sbh/t (34 + 5as/h) along the sequence too."""
    network = Transformer(hidden=1024, layers=2, heads=16, vocabulary=1000, sequence=512, flash=False, dropout=True)
    layer = network.blocks(tensor)[1]
    layout = Layout(tensor=tensor, micro_batch=4, sequence_parallel=along_sequence)
    s, b, h, a = 512, 4, 1024, 16
    scores = 5 * a * s / h
    expected = s * b * h * ((34 + scores) / tensor if along_sequence else 10 + 24 / tensor + scores / tensor)
    masks = 2 * s * b * h  # the two masks outside of the scores, which lie along the sequence too
    got = saved(layer, layout, HALF) - (masks * (1 - 1 / tensor) if along_sequence else 0)
    assert got == pytest.approx(expected, rel=1e-12)


def test_recomputed_layers_keep_their_input_alone() -> None:
    layer = GPT3.blocks(1)[1]
    assert saved(layer, Layout(micro_batch=2, recompute=True), HALF) == 2 * 2048 * 2 * 12288


def test_a_perceptron() -> None:
    mlp = Perceptron(inputs=3, widths=[4, 5], outputs=2, norms=False)
    assert mlp.parameters == (3 * 4 + 4) + (4 * 5 + 5) + (5 * 2 + 2)
    assert mlp.model_flops() == 3 * 2 * (3 * 4 + 4 * 5 + 5 * 2)


@pytest.mark.parametrize("parameters", [1.3e8, 1.3e9, 7e9, 70e9, 405e9, 1e12])
def test_a_size_becomes_a_shape(parameters: float) -> None:
    made = sized(parameters)
    assert made.parameters == pytest.approx(parameters, rel=0.1)
    assert 30 <= made.hidden / made.layers <= 250
    assert made.hidden % made.heads == 0


@pytest.mark.parametrize("parameters", [10.0, 1e30])
def test_a_size_that_no_decoder_has(parameters: float) -> None:
    with pytest.raises(ConfigError, match="parameters: must be"):
        sized(parameters)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layers": 0}, "layers: must be at least 1"),
        ({"heads": 3}, "heads: must divide hidden"),
        ({"kv_heads": 5}, "kv_heads: must divide heads"),
    ],
)
def test_a_shape_that_is_none(change: dict[str, int], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Transformer(**{"hidden": 256, "layers": 2, "heads": 4, "vocabulary": 100, "sequence": 8, **change})


@pytest.mark.parametrize(
    ("tensor", "pipeline", "why"),
    [(3, 1, "heads must be divisible by tensor 3"), (1, 5, "96 layers must be divisible by pipeline 5"), (1, 97, "fewer than pipeline 97")],
)
def test_splits_that_cannot_be(tensor: int, pipeline: int, why: str) -> None:
    shape = Transformer(hidden=1280, layers=96, heads=10, vocabulary=100, sequence=8) if tensor == 3 else GPT3
    assert why in str(shape.illegal(tensor, pipeline))
