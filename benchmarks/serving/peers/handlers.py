"""What every peer computes: the same model code for all, from requests' records or from a protocol's tensors to answers.

The environment says what to load: WORKLOAD, FOLDER (of the workload), THREADS (of one worker), RUNTIME (`onnx` runs the package's graph on
ready numbers too, in place of XGBoost).
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

WORKLOAD = os.environ["WORKLOAD"]
FOLDER = Path(os.environ["FOLDER"])
PACKAGE = FOLDER / "package"
THREADS = int(os.environ["THREADS"])
SIGNATURE = json.loads((PACKAGE / "tidemill.json").read_text(encoding="utf-8"))["signature"]
COLUMNS = {column["name"]: column["type"] for column in SIGNATURE["inputs"]}
NUMBERS = [name for name, kind in COLUMNS.items() if kind != "string"]
TEXTS = [name for name, kind in COLUMNS.items() if kind == "string"]
TENSORS = {"tabular-numbers": [(len(NUMBERS), False)], "tabular-row": [(len(NUMBERS), False), (len(TEXTS), True)], "text": [(1, True)]}[
    WORKLOAD
]
"""Of each tensor of the inference protocol: values a row, and whether they are texts."""
ANSWER_SIZE = 384 if WORKLOAD == "text" else 1


class Model(ABC):
    """Answers [N, ANSWER_SIZE] float32."""

    def records(self, records: list[dict[str, Any]]) -> np.ndarray:
        """For requests' JSON objects."""
        numbers = [[record[name] for name in NUMBERS] for record in records]
        texts = [[record[name] for name in TEXTS] for record in records]
        given = {"tabular-numbers": [numbers], "tabular-row": [numbers, texts], "text": [texts]}[WORKLOAD]
        return self.tensors(
            *(np.array(values, object if is_text else np.float32) for values, (_, is_text) in zip(given, TENSORS, strict=True))
        )

    @abstractmethod
    def tensors(self, *tensors: np.ndarray) -> np.ndarray:
        """For tensors as `TENSORS` has them."""


class Booster(Model):
    """Ready numbers, by XGBoost itself."""

    def __init__(self) -> None:
        import xgboost

        self._booster = xgboost.Booster(model_file=FOLDER / "model.json")
        self._booster.set_param({"nthread": THREADS})
        self._booster.feature_names = None

    def tensors(self, *tensors: np.ndarray) -> np.ndarray:
        return self._booster.inplace_predict(tensors[0]).reshape(-1, 1)


class Graph(Model):
    """Raw columns, by the package's graph in ONNX Runtime: one input [N, 1] for each."""

    def __init__(self) -> None:
        self._session = session("full.onnx")

    def tensors(self, *tensors: np.ndarray) -> np.ndarray:
        inputs = dict(zip(NUMBERS, np.hsplit(tensors[0], len(NUMBERS)), strict=True))
        if TEXTS:
            inputs |= dict(zip(TEXTS, np.hsplit(tensors[1], len(TEXTS)), strict=True))
        return self._session.run(["probability"], inputs)[0][:, 1:]


class Embedder(Model):
    """Texts to embeddings, by the package's tokenizer and graph, which pools and normalises."""

    def __init__(self) -> None:
        from tokenizers import Tokenizer

        self._session = session("model.onnx")
        self._tokenizer = Tokenizer.from_file(str(PACKAGE / "tokenizer.json"))
        self._tokenizer.enable_truncation(SIGNATURE["preprocess_config"]["max_length"])
        self._tokenizer.enable_padding(pad_id=SIGNATURE["preprocess_config"]["pad_id"])

    def tensors(self, *tensors: np.ndarray) -> np.ndarray:
        encoded = self._tokenizer.encode_batch(tensors[0].reshape(-1).tolist())
        values = {
            "input_ids": [one.ids for one in encoded],
            "attention_mask": [one.attention_mask for one in encoded],
            "token_type_ids": [one.type_ids for one in encoded],
        }
        return self._session.run(
            ["prediction"], {name: np.array(values[name], np.int64) for name in SIGNATURE["preprocess_config"]["inputs"]}
        )[0]


def load() -> Model:
    if WORKLOAD == "text":
        return Embedder()
    return Booster() if WORKLOAD == "tabular-numbers" and os.environ.get("RUNTIME") != "onnx" else Graph()


def session(graph: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(PACKAGE / graph, options, providers=["CPUExecutionProvider"])


def answer(value: np.ndarray) -> Any:
    """One row's answer, for JSON: a number, or the embedding."""
    return value.tolist() if ANSWER_SIZE > 1 else float(value[0])
