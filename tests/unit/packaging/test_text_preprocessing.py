"""Texts as tokens: the same as the tokenizers library gives, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tidemill.core.errors import DataError
from tidemill.core.graph import IR_VERSION, OPSETS
from tidemill.core.package import PREPROCESSED_ROWS, Predictor, write
from tidemill.core.schema import NULL_STRING
from tidemill.packaging.text import Tokenize

WORDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4, "bad": 5, "航空": 6}
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def texts(*values: str) -> dict[str, np.ndarray]:
    return {"text": np.array(values, object).reshape(-1, 1)}


def test_tokens_mask_and_padding(folder: Path) -> None:
    made = Tokenize(folder, column="text", max_length=8, inputs=INPUTS)(texts("good bad", "航空", "odd"))
    assert made["input_ids"].tolist() == [[2, 4, 5, 3], [2, 6, 3, 0], [2, 1, 3, 0]]
    assert made["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]]
    assert made["token_type_ids"].tolist() == [[0] * 4] * 3
    assert {array.dtype for array in made.values()} == {np.dtype(np.int64)}


def test_a_long_text_is_cut_off_with_its_end_token(folder: Path) -> None:
    made = Tokenize(folder, column="text", max_length=4, inputs=INPUTS)(texts("good " * 50))
    assert made["input_ids"].tolist() == [[2, 4, 4, 3]]


def test_lengths_are_brought_to_multiples_up_to_the_most(folder: Path) -> None:
    tokenize = Tokenize(folder, column="text", max_length=7, inputs=INPUTS)
    tokenize.pad_to(4)
    made = tokenize(texts("good", "bad good bad"))
    assert made["input_ids"].tolist() == [[2, 4, 3, 0, 0, 0, 0], [2, 5, 4, 5, 3, 0, 0]]
    assert made["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]]
    assert [tokenize(texts("good " * count))["input_ids"].shape[1] for count in (0, 2, 3, 9)] == [4, 4, 7, 7]


def test_null_is_the_empty_text(folder: Path) -> None:
    tokenize = Tokenize(folder, column="text", max_length=8, inputs=INPUTS)
    assert tokenize(texts(NULL_STRING))["input_ids"].tolist() == tokenize(texts(""))["input_ids"].tolist() == [[2, 3]]


def test_only_what_the_graph_takes_is_made(folder: Path) -> None:
    assert list(Tokenize(folder, column="text", max_length=8, inputs=["input_ids"])(texts("good"))) == ["input_ids"]


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json must be a tokenizer"):
        Tokenize(tmp_path, column="text", max_length=8, inputs=INPUTS)


def test_many_texts_come_back_in_their_order(folder: Path, tmp_path: Path) -> None:
    """The graph adds up token ids, so that every text has its own answer."""
    nodes = [
        helper.make_node("ReduceSum", ["input_ids", "axis"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["prediction"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [None, None])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, [None])],
        [numpy_helper.from_array(np.int64([1]), "axis")],
    )
    opsets = [helper.make_opsetid(*item) for item in OPSETS.items()]
    content = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
    assert isinstance(onnx.load_from_string(content), onnx.ModelProto)
    signature = {
        "kind": "text",
        "inputs": [{"name": "review", "type": "string", "nullable": True}],
        "outputs": [{"name": "prediction", "type": "float32"}],
        "preprocess": "text",
        "preprocess_config": {"column": "review", "max_length": 64, "inputs": ["input_ids"]},
    }
    files = {"model.onnx": content, "tokenizer.json": folder / "tokenizer.json"}
    package = write(
        tmp_path / "package", name="t", task="regression", signature=signature, files=files, documents={}, lineage={}, graph="model.onnx"
    )
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, 3 * PREPROCESSED_ROWS + 5).tolist()
    found = Predictor(package).records([{"review": "good " * count} for count in counts]).prediction
    assert found.tolist() == [2 + 3 + 4 * count for count in counts]
    assert Predictor(package).records([{"review": None}]).prediction.tolist() == [5]
    assert Predictor(package).records([]).prediction.shape == (0,)
