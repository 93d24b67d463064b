"""Fitted estimators as skops files: numbers and names of types, no code; the same estimator gives the same bytes."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

from tidemill.core.errors import DataError
from tidemill.core.load import need

# What is written as a file's time, since an archive must have one.
_NO_TIME = (1980, 1, 1, 0, 0, 0)


def write(path: Path, estimator: Any) -> None:
    """Write a fitted estimator. What skops names by places in memory is named by its order instead."""
    given = zipfile.ZipFile(io.BytesIO(need("skops.io", "saving a scikit-learn model").dumps(estimator)))
    schema = json.loads(given.read("schema.json"))
    places: dict[int, int] = {}
    files: dict[str, str] = {}
    _rename(schema, places, files)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, old in sorted((new, old) for old, new in files.items()):
            made.writestr(zipfile.ZipInfo(name, _NO_TIME), given.read(old), zipfile.ZIP_DEFLATED)
        made.writestr(zipfile.ZipInfo("schema.json", _NO_TIME), json.dumps(schema), zipfile.ZIP_DEFLATED)


def read(path: Path) -> Any:
    """The estimator that `write` left.

    Raises:
        DataError: If it cannot be read, or holds other types than scikit-learn's and plain ones.
    """
    skops = need("skops.io", "loading a scikit-learn model")
    try:
        untrusted = skops.get_untrusted_types(file=path)
        strange = [name for name in untrusted if not name.startswith(("sklearn.", "numpy.", "scipy."))]
        if not strange:
            return skops.load(path, trusted=untrusted)
    except Exception as error:  # a damaged archive raises what its zip or JSON reader raises
        raise DataError(f"{path} must hold an estimator of this scikit-learn: {type(error).__name__}: {error}") from error
    raise DataError(f"{path} must hold scikit-learn's own types, holds {', '.join(strange)}")


def _rename(node: Any, places: dict[int, int], files: dict[str, str]) -> None:
    if isinstance(node, list):
        for item in node:
            _rename(item, places, files)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("__id__"), int):
        node["__id__"] = places.setdefault(node["__id__"], len(places) + 1)
    if isinstance(node.get("file"), str):
        old = node["file"]
        node["file"] = files.setdefault(old, f"{len(files) + 1}{Path(old).suffix}")
    for value in node.values():
        _rename(value, places, files)
