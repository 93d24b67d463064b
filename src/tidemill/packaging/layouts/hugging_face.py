"""A text network as a Hugging Face folder, which `transformers.pipeline("text-classification", model=FOLDER)` loads.

The weights are the graph's own, by the names that the encoder's library gave them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.core.artifact import write_json
from tidemill.core.errors import Unsupported
from tidemill.core.load import need
from tidemill.core.package import Package

# What the exporter puts before the library's own names.
PREFIX = "model/net.model."

_HEAD = ("classifier", "classifier.out_proj", "classifier.dense", "score")
_PURPOSE = "exporting to transformers"


def write(package: Package, folder: Path) -> list[str]:
    """Write config.json, model.safetensors and the tokenizer's files; what its users must know, a sentence each.

    Raises:
        Unsupported: If the package is no text network that classifies, or its graph has been changed since it was trained.
    """
    config_file = package.path / "config.json"
    if package.kind != "text" or package.classes is None or not config_file.is_file():
        raise Unsupported(
            f"layout transformers: needs a package of a text network that classifies, {package.name} is none",
            hint="triton takes any package",
        )
    classes = [str(label).lower() if isinstance(label, bool) else str(label) for label in package.classes]
    weights, link = _graph(package)
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if len(classes) == 2:
        weights = _two_outputs(weights, link)
    names = need("transformers.models.auto.modeling_auto", _PURPOSE).MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    config |= {
        "architectures": [names[config["model_type"]]],
        "id2label": dict(enumerate(classes)),
        "label2id": {name: place for place, name in enumerate(classes)},
        "problem_type": "single_label_classification",
    }
    config.pop("num_labels", None)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    need("safetensors.numpy", _PURPOSE).save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(package.path / "tokenizer.json", folder / "tokenizer.json")
    write_json(folder / "tokenizer_config.json", _tokenizer(package))
    return [
        f'transformers.pipeline("text-classification", model="{folder.name}") loads it',
        "texts are cut off only if asked: truncation=True",
    ]


def _graph(package: Package) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray] | None]:
    """The weights by name, and slope and offset of the two classes where the link has them."""
    model = need("onnx", _PURPOSE).load(str(package.path / "model.onnx"))
    to_array = need("onnx.numpy_helper", _PURPOSE).to_array
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {name.removeprefix(PREFIX): np.array(to_array(tensor)) for name, tensor in tensors.items() if name.startswith(PREFIX)}
    last = next((node for node in reversed(model.graph.node) if node.op_type == "Softmax" and "probability" in node.output), None)
    straight = last is not None and last.input[0] in ("model/score", "model/odds")
    if not straight or not any(name.endswith(".weight") for name in weights):
        raise Unsupported(
            f"layout transformers: needs the network's own weights and softmax, the graph of {package.name} has others",
            hint="leave out model.calibrate, or calibrate two classes by platt; export what was not compressed",
        )
    if last is not None and last.input[0] == "model/odds":
        return weights, (to_array(tensors["model/slope"]).reshape(2), to_array(tensors["model/offset"]).reshape(2))
    return weights, None


def _two_outputs(weights: dict[str, np.ndarray], link: tuple[np.ndarray, np.ndarray] | None) -> dict[str, np.ndarray]:
    """The head with a score for each of two classes whose softmax is the link's answer."""
    slope_2, offset_2 = link if link is not None else (np.array([-0.5, 0.5], np.float32), np.zeros(2, np.float32))
    head = next(name for name in _HEAD if f"{name}.weight" in weights and len(weights[f"{name}.weight"]) == 1)
    made = dict(weights)
    made[f"{head}.weight"] = np.ascontiguousarray(slope_2[:, None] * weights[f"{head}.weight"], np.float32)
    bias = weights.get(f"{head}.bias", np.zeros(1, np.float32))
    made[f"{head}.bias"] = np.asarray(slope_2 * bias + offset_2, np.float32)
    return made


def _tokenizer(package: Package) -> dict[str, Any]:
    settings = package.manifest["signature"]["preprocess_config"]
    tokenizer = need("tokenizers", _PURPOSE).Tokenizer.from_file(str(package.path / "tokenizer.json"))
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": settings["max_length"],
        "pad_token": tokenizer.id_to_token(settings["pad_id"]),
        "model_input_names": settings["inputs"],
    }
