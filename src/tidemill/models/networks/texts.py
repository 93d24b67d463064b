"""What networks that read texts have in common: one column, through a tokenizer, as token ids and a mask."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tidemill.core.artifact import hash_file
from tidemill.core.load import need
from tidemill.core.project import to_plain
from tidemill.core.schema import NULL_STRING
from tidemill.models import base
from tidemill.models.networks.base import NetworkModel, Reader, Shape

INPUTS = ("input_ids", "attention_mask")
TOKENIZER = "tokenizer.json"


class TextNetwork(NetworkModel):
    """A network over `input_ids` and `attention_mask`, int64 [N, L]. Its parameters have `column` and `max_length`."""

    reads: ClassVar[str] = "text"
    embeds: ClassVar[bool] = False
    predict_rows: ClassVar[int] = 32
    double: ClassVar[bool] = False

    files: ClassVar[tuple[str, ...]] = (TOKENIZER,)
    """What it is made of beside its weights, and is kept with them."""

    @abstractmethod
    def source(self, params: Any, folder: Path) -> Path:
        """Where the files lie; `folder` is the project's.

        Raises:
            ConfigError: If one is missing.
        """

    @abstractmethod
    def vocabulary(self, source: Path) -> int:
        """How many tokens there are."""

    def pad_id(self, source: Path) -> int:
        """The token that fills shorter texts; the mask hides it."""
        del source
        return 0

    def preprocess(self, params: Any, column: str, folder: Path) -> dict[str, Any]:
        """`config`: what `Tokenize` is told; `files`: what lies beside it; `loading`: what a loader wants to know."""
        source = self.source(params, folder)
        facts = {"column": column, "max_length": params.max_length, "inputs": list(INPUTS), "pad_id": self.pad_id(source)}
        return {"config": facts, "files": {name: source / name for name in self.files}, "loading": {"vocabulary": self.vocabulary(source)}}

    def content(self, params: Any, folder: Path) -> dict[str, str]:
        """Hashes of the files."""
        source = self.source(params, folder)
        return {name: hash_file(source / name) for name in self.files}

    def told(self, train: base.Matrix) -> dict[str, Any]:
        folder = getattr(self.training, "project", None) or Path()
        return {"preprocess": to_plain(getattr(train, "layout", {})), "folder": str(Path(folder).resolve())}

    def reader(self, shape: Shape, params: Any, folder: Path | None) -> Reader:
        """By transformers' tokenizer, another path than the package's."""
        transformers = need("transformers", "a text network")
        source = folder or self.source(params, Path(shape.folder))
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(source / TOKENIZER))
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.pad_id(source))

        def read(texts_N: np.ndarray) -> dict[str, np.ndarray]:
            texts = ["" if text is None or text == NULL_STRING else text for text in texts_N.ravel().tolist()]
            made = tokenizer(texts, padding=True, truncation=True, max_length=params.max_length, return_tensors="np")
            return {name: np.asarray(made[name], np.int64) for name in INPUTS}

        return read

    def axes(self, shape: Shape, params: Any) -> dict[str, list[str | int]]:
        del shape, params
        return {name: ["N", "L"] for name in INPUTS}

    def trial(self, shape: Shape, params: Any) -> np.ndarray:
        del shape
        words = ["a", "the", "film", "is", "not", "good", "bad", "never", "saw", "thing", "7", "!", "\u4e2d\u6587", "\u00e9t\u00e9"]
        random = np.random.default_rng(0)
        lengths = [0, 1, 2, 5, 17, 2 * params.max_length]
        return np.array([" ".join(random.choice(words, length).tolist()) for length in lengths], object)

    def keep(self, shape: Shape, params: Any, folder: Path | None) -> list[Path]:
        source = folder or self.source(params, Path(shape.folder))
        return [source / name for name in self.files]
