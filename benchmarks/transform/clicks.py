"""The made click logs of examples/clicks as a data artifact, and the same work on them in scikit-learn."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler

from tidemill.core.schema import Schema

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "clicks"))
from made_clicks import NUMBERS, TEXTS, clicked, table

FILE_ROWS = 1_000_000

# The same work as scikit-learn's imputer with indicator and scaler, and its ordinal encoder.
FEATURES: dict[str, Any] = {
    **{name: [{"op": "impute", "indicator": False}, "standardize"] for name in NUMBERS},
    **{name: [{"op": "vocabulary", "min_count": 1}] for name in TEXTS},
}


def artifact(rows: int, cache: Path) -> Path:
    """What the stage `data` leaves of so many rows with the target `click`: `train/` and `schema.json`; made once.

    Files hold 1,000,000 rows each (the last one fewer), in row groups as the engine writes them; larger tables begin with
    the files of the smaller ones.
    """
    folder = cache / f"clicks-{rows}"
    (folder / "train").mkdir(parents=True, exist_ok=True)
    (cache / "clicks").mkdir(exist_ok=True)
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        size = min(FILE_ROWS, rows - start)
        file = cache / "clicks" / f"part-{number:05d}-{size}.parquet"
        if not file.exists():
            made = table(size, seed=number)
            made = made.append_column("click", clicked(made, seed=number))
            pq.write_table(made, cache / ".partial", row_group_size=131_072, compression="zstd", compression_level=1)
            (cache / ".partial").rename(file)
        if not (folder / "train" / file.name).exists():
            os.link(file, folder / "train" / file.name)
    schema = Schema.from_arrow(pq.read_schema(file))
    tree = {"columns": schema.to_json(), "target": "click", "task": "binary", "classes": [0, 1], "keys": [], "weight": None}
    (folder / "schema.json").write_text(json.dumps({**tree, "rows": {"train": rows}}), encoding="utf-8")
    return folder


def column_transformer() -> ColumnTransformer:
    """The peer: the same work in scikit-learn."""
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    texts = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2, dtype=np.float32)
    return ColumnTransformer([("numbers", numbers, NUMBERS), ("texts", texts, TEXTS)])


def check_equal(description: dict[str, Any], ours: np.ndarray, peer: ColumnTransformer, theirs: np.ndarray) -> None:
    """The same numbers, and the same category behind every code; ours are ranks by frequency, theirs by spelling."""
    names = description["names"]
    for i, name in enumerate(NUMBERS):
        np.testing.assert_allclose(ours[:, names.index(name)], theirs[:, i], rtol=1e-4, atol=1e-5)
    for i, (name, spelled) in enumerate(zip(TEXTS, peer.named_transformers_["texts"].categories_, strict=True)):
        ranked = description["columns"][name][0]["fitted"]["categories"]
        rank = {word: code for code, word in enumerate(ranked, 1)}
        as_ours = np.array([rank.get(word, 0) for word in spelled] + [len(ranked) + 1, 0], np.float32)
        codes = theirs[:, len(NUMBERS) + i].astype(np.int64)  # -1 unknown, -2 null: the last two entries from the end
        np.testing.assert_array_equal(ours[:, names.index(name)], as_ours[codes])
