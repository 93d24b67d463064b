"""Made click logs: 13 numeric columns with nulls, 26 text columns with 286,000 distinct values in all, and whether it was clicked.

The categories of a column are as frequent as Zipf says. What is clicked depends on two numbers, their product, and an effect
of each category of four columns, from 28 to 12,569 categories; the rest is noise, so that the best possible answer is known.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

NUMBERS = [f"n{i}" for i in range(13)]
TEXTS = [f"c{i}" for i in range(26)]
TELLING = ("c5", "c10", "c15", "c20")
VOCABULARY = 286_000


def table(rows: int, seed: int = 0) -> pa.Table:
    """Rows, at least 110,000 for every value to occur."""
    random = np.random.default_rng(seed)
    values = np.random.default_rng(1)
    columns = {}
    for name in NUMBERS:
        columns[name] = pa.array(np.exp(random.normal(size=rows) * 2).astype(np.float32), mask=random.random(rows) < 0.1)
    for name, size in zip(TEXTS, sizes(), strict=True):
        # 8 hexadecimal digits, all different.
        words = np.array([f"{word:08x}" for word in values.choice(2**32, size * 2).tolist()])
        words = np.array(list(dict.fromkeys(words.tolist()))[:size], object)
        weights = 1 / np.arange(1, size + 1) ** 1.05
        places = random.choice(size, rows, p=weights / weights.sum()).astype(np.int32)
        once = random.permutation(rows)[:size]
        places[once] = np.arange(len(once))
        null = random.random(rows) < 0.02
        null[once] = False
        columns[name] = pa.DictionaryArray.from_arrays(pa.array(places, mask=null), pa.array(words)).dictionary_decode()
    return pa.table(columns)


def clicked(made: pa.Table, seed: int) -> pa.Array:
    """Whether each row is clicked, 0 or 1."""
    random = np.random.default_rng([seed, 1])
    return pa.array((random.random(len(made)) < chances(made)).astype(np.int64))


def chances(made: pa.Table) -> np.ndarray:
    """The probability that each row is clicked, which no model knows."""
    numbers = [np.log(np.nan_to_num(made[name].to_numpy(), nan=1.0)) / 2 for name in NUMBERS[:2]]
    score = 0.6 * numbers[0] - 0.4 * numbers[0] * numbers[1] - 1.5
    for name in TELLING:
        coded = made[name].combine_chunks().dictionary_encode()
        effect = np.array([int(word, 16) % 101 / 50 - 1 for word in coded.dictionary.to_pylist()] + [0.0])
        score += 0.7 * effect[coded.indices.fill_null(len(effect) - 1).to_numpy()]
    return np.asarray(1 / (1 + np.exp(-score)))


def sizes() -> list[int]:
    """Distinct values by column: from a handful to a tenth of all."""
    shares = np.geomspace(4, 100_000, len(TEXTS))
    found = np.maximum(3, shares * VOCABULARY / shares.sum()).astype(int)
    found[-1] += VOCABULARY - found.sum()
    return [int(size) for size in found]
