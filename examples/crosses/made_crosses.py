"""Made click logs in which it matters who is shown what: pairs of categories by the million, each with a taste of its own.

What is clicked depends on three things, and on nothing else, so that the best possible answer is known:

- **alone**: an effect of each category of four columns, of the hour, the place on the page and the price;
- **small**: steps and pairs of few values, as trees find them: the place by device, dear things at night, new things on a phone;
- **crosses**: segment x item and site x campaign. Each category has four hidden numbers, drawn at random, and a pair adds the product of
  its two vectors: a matrix of rank 4 over 1,500,000 pairs, most of which no row has. Factorisation machines and networks of
  embeddings are made for such a matrix, by construction; `crosses = 0` leaves it out.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

SEGMENTS, ITEMS, CAMPAIGNS, SITES = 1_500, 1_000, 100, 400
DEVICES = ("desktop", "phone", "tablet", "tv")
RANK = 4

# Standard deviation of the log-odds that each part brings, over rows.
ALONE, SMALL, CROSSES = 0.8, 0.4, 0.8
MEAN = -1.5


def table(rows: int, seed: int = 0) -> pa.Table:
    """Rows: four columns of categories, as frequent as a power of their rank says, a device and four numbers."""
    random = np.random.default_rng([seed, 1])
    item = drawn(random, ITEMS, rows)
    price = np.exp(random.normal(size=rows) * 0.5 + np.random.default_rng(2).normal(size=ITEMS)[item]).round(2)
    return pa.table(
        {
            "segment": names("s", SEGMENTS).take(pa.array(drawn(random, SEGMENTS, rows))),
            "item": names("i", ITEMS).take(pa.array(item)),
            "campaign": names("c", CAMPAIGNS).take(pa.array(item % CAMPAIGNS)),
            "site": names("w", SITES).take(pa.array(drawn(random, SITES, rows))),
            "device": pa.array(DEVICES).take(pa.array(random.choice(len(DEVICES), rows, p=[0.4, 0.45, 0.1, 0.05]))),
            "hour": pa.array(random.integers(0, 24, rows)),
            "place": pa.array(random.integers(1, 9, rows)),
            "price": pa.array(price, mask=random.random(rows) < 0.05),
            "days": pa.array(random.exponential(30, rows).round(1)),
        }
    )


def clicked(made: pa.Table, *, crosses: float = CROSSES, seed: int = 0) -> pa.Array:
    """Whether each row is clicked, 0 or 1."""
    random = np.random.default_rng([seed, 2])
    return pa.array((random.random(len(made)) < chances(made, crosses=crosses)).astype(np.int64))


def chances(made: pa.Table, *, crosses: float = CROSSES) -> np.ndarray:
    """The probability that each row is clicked, which no model knows."""
    score = MEAN + ALONE * alone(made) + SMALL * small(made) + crosses * crossed(made)
    return np.asarray(1 / (1 + np.exp(-score)))


def alone(made: pa.Table) -> np.ndarray:
    """What each column brings by itself; mean about 0, deviation about 1, as in the other two parts."""
    hidden = np.random.default_rng(3)
    score = sum(hidden.normal(size=size)[places(made, name)] for name, size in CATEGORIES.items())
    log_price = np.log(np.nan_to_num(made["price"].to_numpy(), nan=1.0))
    score += np.sin(2 * np.pi * (number(made, "hour") - 15) / 24) - 0.25 * (number(made, "place") - 4.5) - 0.5 * log_price
    return np.asarray(score / 2.4)


def small(made: pa.Table) -> np.ndarray:
    """Pairs and steps of few values."""
    hidden = np.random.default_rng(4)
    device = np.array([DEVICES.index(name) for name in made["device"].to_pylist()])
    score = hidden.normal(size=(len(DEVICES), 8))[device, number(made, "place") - 1]
    night = (number(made, "hour") < 6) | (number(made, "hour") >= 22)
    score += np.where(night & (np.nan_to_num(made["price"].to_numpy(), nan=0.0) > 2), 1.0, -0.1)
    score += np.where((device == 1) & (number(made, "days") < 7), 1.0, -0.1)
    return np.asarray(score / 1.1)


def crossed(made: pa.Table) -> np.ndarray:
    """What pairs of categories bring: the products of their hidden vectors."""
    hidden = np.random.default_rng(5)
    score = np.zeros(len(made))
    for pair in PAIRS:
        left, right = (hidden.normal(size=(CATEGORIES[name], RANK))[places(made, name)] for name in pair)
        score += (left * right).sum(axis=1) / np.sqrt(RANK)
    return score / np.sqrt(len(PAIRS))


CATEGORIES = {"segment": SEGMENTS, "item": ITEMS, "campaign": CAMPAIGNS, "site": SITES}
PAIRS = (("segment", "item"), ("site", "campaign"))


def drawn(random: np.random.Generator, size: int, rows: int) -> np.ndarray:
    weights = 1 / np.arange(1, size + 1) ** 0.8
    return random.choice(size, rows, p=weights / weights.sum())


def names(letter: str, size: int) -> pa.Array:
    """Names of categories, in an order that says nothing."""
    shuffled = np.random.default_rng([6, size]).permutation(size)
    return pa.array([f"{letter}{number:05d}" for number in shuffled])


def places(made: pa.Table, name: str) -> np.ndarray:
    """The number of each row's category."""
    known = {text: number for number, text in enumerate(names(LETTERS[name], CATEGORIES[name]).to_pylist())}
    coded = made[name].combine_chunks().dictionary_encode()
    return np.array([known[text] for text in coded.dictionary.to_pylist()])[coded.indices.to_numpy()]


LETTERS = {"segment": "s", "item": "i", "campaign": "c", "site": "w"}


def number(made: pa.Table, name: str) -> np.ndarray:
    return made[name].to_numpy()
