"""Made click logs: 13 numeric columns with nulls and 26 text columns with 286,000 distinct values in all, frequencies as Zipf."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler

from tidemill.core.schema import Schema

NUMBERS = [f"n{i}" for i in range(13)]
TEXTS = [f"c{i}" for i in range(26)]
VOCABULARY = 286_000
FILE_ROWS = 1_000_000

# The same work as scikit-learn's imputer with indicator and scaler, and its ordinal encoder.
FEATURES: dict[str, Any] = {
    **{name: [{"op": "impute", "indicator": False}, "standardize"] for name in NUMBERS},
    **{name: [{"op": "vocabulary", "min_count": 1}] for name in TEXTS},
}


def table(rows: int, seed: int = 0) -> pa.Table:
    """Rows, at least 110,000 for every value to occur."""
    random = np.random.default_rng(seed)
    values = np.random.default_rng(1)
    columns = {}
    for name in NUMBERS:
        columns[name] = pa.array(np.exp(random.normal(size=rows) * 2).astype(np.float32), mask=random.random(rows) < 0.1)
    for name, size in zip(TEXTS, _sizes(), strict=True):
        # 8 hexadecimal digits, all different.
        words = np.array([f"{word:08x}" for word in values.choice(2**32, size * 2).tolist()])
        words = np.array(list(dict.fromkeys(words.tolist()))[:size], object)
        weights = 1 / np.arange(1, size + 1) ** 1.05
        places = random.choice(size, rows, p=weights / weights.sum()).astype(np.int32)
        once = random.permutation(rows)[:size]
        places[once] = np.arange(size)
        null = random.random(rows) < 0.02
        null[once] = False
        columns[name] = pa.DictionaryArray.from_arrays(pa.array(places, mask=null), pa.array(words)).dictionary_decode()
    return pa.table(columns)


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


def clicked(made: pa.Table, seed: int) -> pa.Array:
    """Whether each row is clicked: on two numbers, their product, and an effect of each category of four columns."""
    numbers = [np.log(np.nan_to_num(made[name].to_numpy(), nan=1.0)) / 2 for name in NUMBERS[:2]]
    score = 0.6 * numbers[0] - 0.4 * numbers[0] * numbers[1] - 1.5
    for name in ("c5", "c10", "c15", "c20"):
        coded = made[name].combine_chunks().dictionary_encode()
        effect = np.array([int(word, 16) % 101 / 50 - 1 for word in coded.dictionary.to_pylist()] + [0.0])
        score += 0.7 * effect[coded.indices.fill_null(len(effect) - 1).to_numpy()]
    random = np.random.default_rng([seed, 1])
    return pa.array((random.random(len(made)) < 1 / (1 + np.exp(-score))).astype(np.int64))


def column_transformer() -> ColumnTransformer:
    """The peer: the same work in scikit-learn."""
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    texts = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2, dtype=np.float32)
    return ColumnTransformer([("numbers", numbers, NUMBERS), ("texts", texts, TEXTS)])


def _sizes() -> list[int]:
    """Distinct values by column: from a handful to a tenth of all."""
    shares = np.geomspace(4, 100_000, len(TEXTS))
    sizes = np.maximum(3, shares * VOCABULARY / shares.sum()).astype(int)
    sizes[-1] += VOCABULARY - sizes.sum()
    return [int(size) for size in sizes]
