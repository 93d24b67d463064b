"""A text model from a Hugging Face folder: classification, or sentence embedding. Nothing is fetched, no code of the folder runs.

Pooling and normalisation, as a sentence-transformers folder states them, are in the graph. The tokenizer's own file
travels with the package. The independent path is a second copy of the model, run by torch on transformers' tokens.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.errors import DataError, Unsupported
from tidemill.core.load import need
from tidemill.core.schema import Column, Schema
from tidemill.packaging import merge
from tidemill.packaging.imports.source import Given, Imported
from tidemill.packaging.parity import FunctionPath

if TYPE_CHECKING:
    import pyarrow as pa

OPSET = 17
MAX_LENGTH = 512
INPUTS = ("input_ids", "attention_mask", "token_type_ids")

_POOLINGS = ("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens")
_REFERENCE_ROWS = 16


def read(folder: Path, given: Given) -> Imported:
    """The model in a folder with config.json, tokenizer.json and safetensors.

    Raises:
        DataError: If a file is missing or cannot be read, or the data has no text.
        Unsupported: If it does something else than classify or embed one text.
    """
    folder = Path(folder)
    config = _json(folder / "config.json")
    for name, what in (("tokenizer.json", "the tokenizer of the tokenizers library"), ("model.safetensors", "weights that hold no code")):
        if not (folder / name).is_file():
            raise DataError(f"{folder} must hold {name}, {what}", hint=f"save the {name.partition('.')[0]} again with save_pretrained")
    column = _text_column(given)
    classifies = any("ForSequenceClassification" in name for name in config.get("architectures") or [])
    head = Head.of(folder, config, classifies=classifies)
    tokenizer = _tokenizer(folder, config)
    labels = _labels(config, given) if classifies and head.kind == "classes" else None
    if classifies and head.kind == "classes" and len(labels or []) != int(_number_of_labels(config)):
        raise DataError(f"{folder / 'config.json'} must name every class, names {len(labels or [])} of {_number_of_labels(config)}")
    content = _exported(folder, head, tokenizer, labels, given)
    task = "embedding" if not classifies else "regression" if labels is None else "binary" if len(labels) == 2 else "multiclass"
    return Imported(
        model=f"Hugging Face {(config.get('architectures') or [config.get('model_type', 'model')])[0]}, {head}",
        task=task,
        classes=labels,
        schema=Schema((column,)),
        outputs=merge.outputs(labels, width=_width(content) if task == "embedding" else None),
        graphs={"model.onnx": content},
        graph="model.onnx",
        native=FunctionPath(Reference(folder, head, tokenizer, column.name), "the model run by torch on tokens of transformers"),
        kind="text",
        files={"tokenizer.json": folder / "tokenizer.json"},
        preprocess="text",
        preprocess_config={
            "column": column.name,
            "max_length": tokenizer["max_length"],
            "inputs": list(tokenizer["inputs"]),
            "pad_id": tokenizer["pad_id"],
        },
        limits=(f"Texts are cut off after {tokenizer['max_length']} tokens.",),
    )


class Head:
    """What follows the encoder: `classes` (softmax), `number`, or a pooled `embedding`."""

    def __init__(self, kind: str, poolings: tuple[str, ...] = (), *, normalize: bool = False) -> None:
        self.kind = kind
        self.poolings = poolings
        self.normalize = normalize

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any], *, classifies: bool) -> Head:
        if classifies:
            if config.get("problem_type") == "multi_label_classification":
                raise Unsupported(f"{folder} must predict one class for each text, predicts several at once")
            return cls("number" if _number_of_labels(config) == 1 else "classes")
        if not (folder / "modules.json").is_file():
            architectures = ", ".join(config.get("architectures") or ["no architecture"])
            if any("For" in name for name in config.get("architectures") or []):
                raise Unsupported(f"{folder} must classify or embed texts, its config names {architectures}")
            return cls("embedding", ("pooling_mode_mean_tokens",), normalize=False)
        modules = _json(folder / "modules.json")
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        strange = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
        if strange:
            raise Unsupported(f"{folder} must be of the modules Transformer, Pooling and Normalize, has {', '.join(strange)}")
        pooling = next((module for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), None)
        stated = _json(folder / pooling["path"] / "config.json") if pooling else {"pooling_mode_mean_tokens": True}
        other = [mode for mode, on in stated.items() if mode.startswith("pooling_mode_") and on is True and mode not in _POOLINGS]
        if other:
            raise Unsupported(f"{folder} must pool by cls, mean or max, pools by {', '.join(other)}")
        chosen = tuple(mode for mode in _POOLINGS if stated.get(mode))
        return cls("embedding", chosen or ("pooling_mode_mean_tokens",), normalize="Normalize" in kinds)

    def __str__(self) -> str:
        if self.kind != "embedding":
            return {"classes": "classification", "number": "one number"}[self.kind]
        pooled = " and ".join(mode.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for mode in self.poolings)
        return f"{pooled} pooling{', normalised' if self.normalize else ''}"

    def apply(self, torch: Any, answer: Any, attention_mask: Any) -> Any:
        """The head in torch, on what the encoder answers."""
        if self.kind == "classes":
            return torch.nn.functional.softmax(answer.logits, dim=-1)
        if self.kind == "number":
            return answer.logits.reshape(-1)
        states_BLD = answer.last_hidden_state
        mask_BL1 = attention_mask.unsqueeze(-1).to(states_BLD.dtype)
        count_B1 = mask_BL1.sum(1).clamp(min=1e-9)
        parts = {
            "pooling_mode_cls_token": lambda: states_BLD[:, 0],
            "pooling_mode_mean_tokens": lambda: (states_BLD * mask_BL1).sum(1) / count_B1,
            "pooling_mode_max_tokens": lambda: (states_BLD + (1 - mask_BL1) * -1e9).max(1).values,
            "pooling_mode_mean_sqrt_len_tokens": lambda: (states_BLD * mask_BL1).sum(1) / count_B1.sqrt(),
        }
        pooled = torch.cat([parts[mode]() for mode in self.poolings], dim=-1)
        return torch.nn.functional.normalize(pooled, p=2, dim=-1) if self.normalize else pooled


class Reference:
    """The model in torch, loaded for this alone, on tokens of transformers' own tokenizer."""

    def __init__(self, folder: Path, head: Head, tokenizer: Mapping[str, Any], column: str) -> None:
        self._folder, self._head, self._settings, self._column = folder, head, tokenizer, column
        self._model: Any = None
        self._tokenizer: Any = None

    def __call__(self, batch: pa.RecordBatch) -> np.ndarray:
        torch, transformers = need("torch", "importing a text model"), need("transformers", "importing a text model")
        if self._model is None:
            with _quiet():
                self._model = _loaded(self._folder, self._head)
                self._tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(self._folder / "tokenizer.json"))
                self._tokenizer.pad_token = self._settings["pad_token"]
        texts = ["" if text is None else text for text in batch[self._column].to_pylist()]
        made = []
        with torch.no_grad():
            for start in range(0, len(texts), _REFERENCE_ROWS):
                tokens = self._tokenizer(
                    texts[start : start + _REFERENCE_ROWS],
                    padding=True, truncation=True, max_length=self._settings["max_length"], return_tensors="pt",
                )  # fmt: skip
                tokens = {name: value for name, value in tokens.items() if name in self._settings["inputs"]}
                made.append(self._head.apply(torch, self._model(**tokens), tokens["attention_mask"]).numpy())
        return np.concatenate(made)


def _exported(folder: Path, head: Head, tokenizer: Mapping[str, Any], labels: list[Any] | None, given: Given) -> bytes:
    """The graph from token ids to the answer, by torch's TorchScript exporter."""
    need("torch", "importing a text model")
    onnx = need("onnx", "importing a text model")
    import torch

    names = list(tokenizer["inputs"])
    given.events.emit("import.exporting", f"exporting {folder.name}", level="progress")

    class Whole(torch.nn.Module):  # type: ignore[misc]
        """The encoder and its head, with inputs by position."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            inputs = dict(zip(names, tensors, strict=True))
            return head.apply(torch, self.model(**inputs), inputs["attention_mask"])

    output = merge.PREDICTION if labels is None else merge.PROBABILITY
    # Two texts of which one is shorter, so that the mask counts while the graph is traced.
    ids = torch.full((2, 7), int(tokenizer["pad_id"]) + 1, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    tensors = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    content = io.BytesIO()
    with _quiet():
        try:
            torch.onnx.export(
                Whole(_loaded(folder, head)),
                tuple(tensors[name] for name in names),
                content,
                input_names=names,
                output_names=[output],
                dynamic_axes={**{name: {0: "N", 1: "L"} for name in names}, output: {0: "N"}},
                opset_version=OPSET,
                dynamo=False,
            )
        except Exception as error:  # the exporter raises a family without a public root
            raise Unsupported(f"torch must be able to export the model of {folder}, cannot: {type(error).__name__}: {error}") from error
    model = onnx.load_from_string(content.getvalue())
    model.producer_name, model.producer_version = "tidemill", ""
    return merge.to_bytes(merge.with_labels(model, labels) if labels is not None else merge.checked(model))


def _loaded(folder: Path, head: Head) -> Any:
    """A fresh copy of the model, in float32, with plain attention."""
    torch, transformers = need("torch", "importing a text model"), need("transformers", "importing a text model")
    kind = transformers.AutoModel if head.kind == "embedding" else transformers.AutoModelForSequenceClassification
    try:
        model = kind.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{folder} must hold a model that transformers can load: {str(error).splitlines()[0]}") from error
    return model.eval()


def _tokenizer(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """How texts become tokens: most tokens, the graph's inputs, and what fills shorter texts."""
    tokenizers = need("tokenizers", "importing a text model")
    stated = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    sentence = _json(folder / "sentence_bert_config.json") if (folder / "sentence_bert_config.json").is_file() else {}
    positions = int(config.get("max_position_embeddings") or MAX_LENGTH)
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer"):
        positions -= 2  # these count positions from 2
    limits = [
        positions,
        MAX_LENGTH,
        int(sentence.get("max_seq_length") or MAX_LENGTH),
        int(min(stated.get("model_max_length") or MAX_LENGTH, 1e6)),
    ]
    pad = stated.get("pad_token") or "[PAD]"
    pad_token = pad["content"] if isinstance(pad, dict) else str(pad)
    try:
        pad_id = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(pad_token)
    except Exception as error:  # the library raises Exception itself
        raise DataError(f"{folder / 'tokenizer.json'} must be a tokenizer: {error}") from error
    if pad_id is None:
        pad_id = int(config.get("pad_token_id") or 0)
    inputs = [name for name in INPUTS if name != "token_type_ids" or int(config.get("type_vocab_size") or 0) > 1]
    return {"max_length": min(limits), "inputs": inputs, "pad_id": int(pad_id), "pad_token": pad_token}


def _text_column(given: Given) -> Column:
    """The column that holds the texts: the one called `text`, or the only one of strings.

    Raises:
        DataError: If there is none, or several could be it.
    """
    found = [column for column in given.features if column.type == "string"]
    named = [column for column in found if column.name == "text"]
    if len(named or found) != 1:
        shown = ", ".join(column.name for column in found) or "none"
        raise DataError(
            f"the data must hold one column of texts, or call it 'text'; has {shown}", hint="rename it, or name others with --key"
        )
    return (named or found)[0]


def _labels(config: Mapping[str, Any], given: Given) -> list[Any]:
    """Class names in the order of the logits; the target's own values where the config has only LABEL_0, LABEL_1, ..."""
    stated = {int(index): str(label) for index, label in (config.get("id2label") or {}).items()}
    names = [stated[index] for index in sorted(stated)] or [f"LABEL_{index}" for index in range(_number_of_labels(config))]
    known = given.labels()
    if known is None or all(label in names for label in known):
        return names
    if all(name == f"LABEL_{index}" for index, name in enumerate(names)) or all(isinstance(label, int) for label in known):
        if all(isinstance(label, int) and 0 <= label < len(names) for label in known):
            return list(range(len(names)))
        if len(known) == len(names):
            given.events.warn("import.labels", f"the model's classes are taken to be {known[:5]} in this order")
            return known
    raise DataError(f"target {given.target!r} must hold the model's classes {names}, holds {known[:5]}", field=given.target)


def _number_of_labels(config: Mapping[str, Any]) -> int:
    return len(config.get("id2label") or {}) or int(config.get("num_labels") or 2)


def _width(content: bytes) -> int:
    """Numbers in an embedding, found by running the graph on one text of one token."""
    from tidemill.core.graph import session

    runtime = session(content)
    inputs = {value.name: np.ones((1, 1), np.int64) for value in runtime.get_inputs()}
    return int(runtime.run([merge.PREDICTION], inputs)[0].shape[1])


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must be readable JSON: {error}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Loading and exporting talk much; what they say is for their own makers."""
    transformers = need("transformers", "importing a text model")
    bars = transformers.utils.logging.is_progress_bar_enabled()
    level = logging.getLogger("transformers").level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.utils.logging.disable_progress_bar()
        logging.getLogger("transformers").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("transformers").setLevel(level)
            if bars:
                transformers.utils.logging.enable_progress_bar()
