"""Which runtime and precision serve a package: what the contract allows, and nothing quicker."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from tidemill.core.contract import ContractConfig, Rounding
from tidemill.core.errors import ConfigError, ContractViolation, Unsupported
from tidemill.core.events import Event, Events
from tidemill.core.graph import IR_VERSION, OPSETS, Arrays
from tidemill.core.package import Package, Predictor, write
from tidemill.core.precision import measure_precision
from tidemill.core.runtimes.openvino import OpenVino, has_bf16
from tidemill.packaging import gate
from tidemill.packaging.imports import package_model
from tidemill.serve.choice import choose
from tidemill.serve.model import Model
from tidemill.testing.packages import tiny_package
from tidemill.testing.runtime import VOCABULARY, encoder

rounds = pytest.mark.skipif(not has_bf16(), reason="this processor does not compute in bf16")
PARITY = {"name": "parity", "measure": "parity.max_difference", "relation": "<=", "limit": 1e-5}

Make = Callable[..., Package]


@pytest.fixture
def texts(tmp_path: Path) -> Make:
    """A text package of a small encoder, with a promise of precision where one is given."""

    def make(**promised: float) -> Package:
        tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
        tokenizer.pre_tokenizer = Whitespace()
        promises = [PARITY, *(p for p in ContractConfig(precision=Rounding(**promised)).promises() if p["measure"].startswith("precision"))]
        config = {"column": "text", "max_length": 32, "inputs": ["input_ids", "attention_mask"], "pad_id": 0}
        return write(
            tmp_path / "texts",
            name="texts",
            task="embedding",
            signature={
                "kind": "text",
                "inputs": [{"name": "text", "type": "string", "nullable": True}],
                "outputs": [{"name": "prediction", "type": "float32", "shape": [-1, 32]}],
                "preprocess": "text",
                "preprocess_config": config,
                "example": {"text": "w1 w2 w3 w44 w17 w9 w30"},
            },
            files={"model.onnx": encoder(), "tokenizer.json": tokenizer.to_str().encode()},
            documents={"contract.json": {"promises": promises}},
            lineage={},
            graph="model.onnx",
        )

    return make


def of(package: Package, seen: list[Event] | None = None, **asked: Any) -> tuple[str, str]:
    chosen = choose(package, events=Events((seen if seen is not None else []).append), **asked)
    try:
        return chosen.predictor.runtime.name, chosen.predictor.runtime.precision
    finally:
        chosen.predictor.close()


def test_nothing_is_rounded_without_a_promise(texts: Make) -> None:
    package = texts()
    assert of(package) == ("onnxruntime", "fp32")
    assert of(package, runtime="openvino") == ("openvino", "fp32")
    assert of(package, precision="fp32") == ("onnxruntime", "fp32")


@rounds
def test_a_promise_that_holds_here_is_used_and_entered_once(texts: Make) -> None:
    package, seen = texts(min_cosine=0.99), list[Event]()
    assert of(package, seen) == ("openvino", "bf16")
    assert [event.kind for event in seen] == ["serve.precision_measured"]
    known = Package.open(package.path).evidence()["precision"]
    assert known["precision"] == "bf16"
    assert known["runtime"].startswith("openvino ")
    assert 0.99 <= known["min_cosine"] < 1
    assert known["max_difference"] > 1e-5
    assert of(Package.open(package.path), seen) == ("openvino", "bf16")
    assert len(seen) == 1, "what was measured on such hardware is not measured again"
    assert Package.open(package.path).identity == package.identity


@rounds
def test_what_was_compiled_to_measure_does_not_stay(texts: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Predictor] = []

    def noted(measured: Predictor, reference: Predictor, inputs: Arrays) -> dict[str, Any]:
        used.extend((measured, reference))
        return measure_precision(measured, reference, inputs)

    monkeypatch.setattr("tidemill.serve.choice.measure_precision", noted)
    chosen = choose(texts(min_cosine=0.99))
    example = chosen.predictor.variants(chosen.package.example, 2)
    assert len(used) == 2
    for predictor in used:
        with pytest.raises(RuntimeError, match="closed"):
            predictor.run(example)
    assert len(chosen.predictor.run(example).prediction) == 2
    chosen.predictor.close()


@rounds
def test_what_a_device_took_long_to_compile_stays(texts: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Predictor] = []

    def noted(measured: Predictor, reference: Predictor, inputs: Arrays) -> dict[str, Any]:
        used.append(measured)
        return measure_precision(measured, reference, inputs)

    monkeypatch.setattr("tidemill.serve.choice.measure_precision", noted)
    monkeypatch.setattr(OpenVino, "device", "cuda")
    chosen = choose(texts(min_cosine=0.99))
    assert used == [chosen.predictor]
    chosen.predictor.close()


@rounds
def test_a_promise_that_does_not_hold_is_served_in_fp32_or_refused(texts: Make) -> None:
    package, seen = texts(max_difference=1e-7), list[Event]()
    assert of(package, seen) == ("onnxruntime", "fp32")
    assert [event.kind for event in seen] == ["serve.precision_measured", "serve.precision_broken"]
    assert "precision" not in Package.open(package.path).evidence()
    with pytest.raises(ContractViolation, match="precision max_difference: promised <= 1e-07, measured"):
        of(package, precision="bf16")


@rounds
def test_bf16_without_a_promise_is_held_to_parity(texts: Make) -> None:
    with pytest.raises(ContractViolation, match="parity of bf16 in openvino"):
        of(texts(), precision="bf16")


@rounds
def test_the_model_says_what_answers_and_how_far_it_is_off(texts: Make) -> None:
    model = Model(texts(min_cosine=0.99))
    model.keep_contract(accept_latency=False, events=Events())
    info = model.info()
    assert (info["framework"].split()[0], info["precision"], info["device"]) == ("openvino", "bf16", "cpu")
    promise = next(one for one in info["contract"] if one["name"] == "precision min_cosine")
    assert promise["kept"] is True
    assert promise["measured"] < 1
    exact = Model(model.package, precision="fp32")
    exact.keep_contract(accept_latency=False, events=Events())
    assert exact.info()["framework"].startswith("onnxruntime ")
    assert next(one for one in exact.info()["contract"] if one["name"] == "precision min_cosine")["kept"] is None
    text = model.signature.from_records([{"text": "w5 w6"}])
    assert np.abs(model.answer(text).prediction - exact.answer(text).prediction).max() < 0.03
    model.close()
    exact.close()


def test_raw_columns_stay_with_onnx_runtime(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "tiny")
    assert of(package) == ("onnxruntime", "fp32")
    with pytest.raises(Unsupported, match="runtime openvino takes features, tiny has one graph"):
        of(package, runtime="openvino")
    with pytest.raises(ConfigError, match=r"serve.precision: must be auto, fp32 or bf16, got 'int8'"):
        of(package, precision="int8")
    with pytest.raises(Unsupported, match="onnxruntime computes in fp32"):
        of(package, runtime="onnxruntime", precision="bf16")


def test_a_network_on_features_answers_the_same_in_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LATENCY_S", 0.01)
    rng = np.random.default_rng(5)
    sample = pa.table({name: pa.array(rng.normal(size=300)) for name in ("a", "b", "c")})
    package = package_model(network(tmp_path, rng), data=sample, target=None, name="net", out=tmp_path / "net")
    one, other = choose(package), choose(package, runtime="openvino")
    assert other.predictor.runtime.name == "openvino"
    inputs = one.predictor.signature.from_arrow(sample)
    assert np.abs(one.predictor.run(inputs).values - other.predictor.run(inputs).values).max() < 1e-5
    batch = sample.combine_chunks().to_batches()[0]
    assert np.array_equal(other.predictor.arrow(batch).values, other.predictor.run(inputs).values)
    assert other.evidence is not None
    assert other.evidence["max_difference"] < 1e-5


def network(folder: Path, rng: np.random.Generator) -> Path:
    """An ONNX file of two layers over three numbers."""
    node = helper.make_node
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Tanh", ["h"], ["t"]), node("MatMul", ["t", "v"], ["y"])]
    constants = {"w": rng.normal(size=(3, 8)).astype(np.float32), "v": rng.normal(size=(8, 1)).astype(np.float32)}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = folder / "net.onnx"
    opsets = [helper.make_opsetid("", OPSETS[""])]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString())
    return path


@pytest.mark.parametrize(("cores", "threads"), [(0, 3), (1, 1), (2, 2)])
def test_a_text_has_the_cores_that_its_process_may_count_on(texts: Make, cores: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    model = Model(texts(), cores=cores, runtime="onnxruntime", precision="fp32")
    assert model.threads == threads
    model.close()
