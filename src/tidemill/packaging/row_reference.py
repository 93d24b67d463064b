"""The independent path of networks that read texts or images: their own tokenizer or NumPy's pixels, then the weights in torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.load import load
from tidemill.packaging import image_reference
from tidemill.packaging.image_config import ImageConfig

if TYPE_CHECKING:
    import pyarrow as pa

REFERENCE_ROWS = 256


def row_reference(layout: Mapping[str, Any], features: Path, native: Path) -> Callable[[pa.RecordBatch], np.ndarray]:
    """From raw rows to what the network in `native` predicts.

    Args:
        layout: What `features.json` says.
        features: The folder that it lies in.
        native: The fitted network.
    """
    fitted = load("reference", "model")(native)
    column = layout["preprocess_config"]["column"]
    declared = features / "image.json"
    config = ImageConfig.of(json.loads(declared.read_text(encoding="utf-8"))) if layout["preprocess"] == "image" else None

    def answer(batch: pa.RecordBatch) -> np.ndarray:
        values, made = batch[column].to_pylist(), []
        for start in range(0, len(values), REFERENCE_ROWS):
            part = values[start : start + REFERENCE_ROWS]
            rows = np.array(part, object) if config is None else np.stack([image_reference.prepare(value, config) for value in part])
            made.append(np.asarray(fitted.predict(rows)))
        return np.concatenate(made)

    return answer
