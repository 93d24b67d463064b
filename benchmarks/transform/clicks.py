"""Made click logs: 13 numeric columns with nulls and 26 text columns with 286,000 distinct values in all, frequencies as Zipf."""

from __future__ import annotations

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


def parquet(rows: int, cache: Path) -> Path:
    """A folder of Parquet files of 1,000,000 rows each (the last one fewer), made once; larger tables begin with the smaller ones."""
    folder = cache / f"clicks-{rows}"
    files = []
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        files.append(cache / "clicks" / f"part-{number:03d}-{min(FILE_ROWS, rows - start)}.parquet")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        if not files[-1].exists():
            temporary = files[-1].with_suffix(".partial")
            made = table(min(FILE_ROWS, rows - start), seed=number)
            pq.write_table(made, temporary, row_group_size=131_072, compression="zstd", compression_level=1)
            temporary.rename(files[-1])
    folder.mkdir(exist_ok=True)
    for file in files:
        if not (folder / file.name).exists():
            os.link(file, folder / file.name)
    return folder


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
