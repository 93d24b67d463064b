"""The rows of a fit, named so that any rank can open them: artifacts by their folders, other matrices as arrays on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.artifact import Artifact
from tidemill.models.base import Matrix
from tidemill.models.weights import Reweighted
from tidemill.train.matrix import OUTPUT

if TYPE_CHECKING:
    from tidemill.train.torch.loader.source import Source


def described(matrix: Matrix, folder: Path | None, *, split: str, classes: bool) -> dict[str, Any]:
    """What `opened` opens a matrix by; plain values, but for arrays where `folder` is None.

    Args:
        folder: Where arrays go if they must be on disk.
        split: What the arrays' folder is called.
        classes: Whether targets are classes.
    """
    inner, class_weight = (matrix.matrix, matrix.weight_K.tolist()) if isinstance(matrix, Reweighted) else (matrix, None)
    if hasattr(inner, "made_from"):
        data, features, name = inner.made_from
        return {
            "kind": getattr(inner, "reads", "features"), "data": str(data.path), "features": str(features.path),
            "split": name, "class_weight": class_weight,
        }  # fmt: skip
    return _arrays(matrix, None if folder is None else folder / split, classes=classes)


def opened(description: Mapping[str, Any], *, seed: int) -> Source:
    """The source of a description."""
    if description["kind"] == "arrays":
        from tidemill.train.torch.loader.arrays import ArraySource

        held = {name: np.load(array, mmap_mode="r") if isinstance(array, str) else array for name, array in description["arrays"].items()}
        return ArraySource({OUTPUT: held[OUTPUT]}, held["target"], held.get("weight"), seed=seed)
    data, features = (Artifact.open(Path(description[part])) for part in ("data", "features"))
    if description["kind"] == "features":
        from tidemill.train.torch.loader.table import TableSource

        return TableSource(data, features, description["split"], class_weight=description["class_weight"])
    from tidemill.train.rows import source

    return source(data, features, description["split"], class_weight=description["class_weight"], seed=seed)


def _arrays(matrix: Matrix, folder: Path | None, *, classes: bool) -> dict[str, Any]:
    y_N, weight_N = matrix.targets()
    made = {"target": y_N.astype(np.int64 if classes else np.float32)}
    if weight_N is not None:
        made["weight"] = weight_N.astype(np.float32)
    if folder is None:
        made[OUTPUT] = np.concatenate([batch.x_NF for batch in matrix.batches()])
        return {"kind": "arrays", "arrays": made}
    folder.mkdir(parents=True, exist_ok=True)
    place = np.lib.format.open_memmap(folder / f"{OUTPUT}.npy", "w+", np.float32, (matrix.num_rows, matrix.num_features))
    first = 0
    for batch in matrix.batches():
        place[first : (first := first + len(batch.x_NF))] = batch.x_NF
    place.flush()
    for name, array in made.items():
        np.save(folder / f"{name}.npy", array)
    return {"kind": "arrays", "arrays": {name: str(folder / f"{name}.npy") for name in (OUTPUT, *made)}}
