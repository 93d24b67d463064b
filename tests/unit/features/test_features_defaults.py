"""What text columns without steps become."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tidemill.features.defaults import MAX_ONE_HOT, MAX_ONE_HOT_BESIDE_TABLES, mean_words
from tidemill.features.stage import fit_table

random = np.random.default_rng(0)
WORDS = ["good", "fine", "bad", "dull", "film", "plot", "actor", "scene", "long", "short"]


def op_of(texts: list[str | None], *, target: bool = True, embeds: bool = False) -> str:
    table = pa.table({"t": pa.array(texts, pa.string()), "y": pa.array(random.random(len(texts)) < 0.5)})
    facts = {"target": "y", "classes": [False, True]} if target else None
    described, _ = fit_table(table if target else table.select(["t"]), target=facts, embeds=embeds)
    return str(described["columns"]["t"][0]["op"])


def sentences(count: int) -> list[str]:
    return [" ".join(random.choice(WORDS, 5).tolist()) + f" {i}" for i in range(count)]


@pytest.mark.parametrize("distinct", [2, MAX_ONE_HOT])
def test_few_values_become_features_of_their_own(distinct: int) -> None:
    assert op_of([f"v{i % distinct}" for i in range(200)]) == "one_hot"


def test_many_values_become_codes() -> None:
    assert op_of([f"v{i % (MAX_ONE_HOT + 1)}" for i in range(200)]) == "vocabulary"
    assert op_of([f"id-{i:08x}" for i in range(200)]) == "vocabulary", "names of rows are no text"


def test_networks_with_tables_get_codes_of_tables_beyond_a_few_values() -> None:
    assert op_of([f"v{i % MAX_ONE_HOT_BESIDE_TABLES}" for i in range(200)], embeds=True) == "one_hot"
    assert op_of([f"v{i % (MAX_ONE_HOT_BESIDE_TABLES + 1)}" for i in range(200)], embeds=True) == "embedding"
    assert op_of([str(i % 20) for i in range(200)], embeds=True) == "embedding", "codes that are numbers are names all the same"
    assert op_of(sentences(200), embeds=True) == "ngram_target"


def test_the_default_says_its_table() -> None:
    described, _ = fit_table(pa.table({"t": [f"v{i % 20}" for i in range(200)]}), embeds=True)
    assert described["embedding"] == {"t": {"rows": 22, "width": 9}}


def test_codes_that_are_numbers_keep_their_order() -> None:
    table = pa.table({"t": [str(i % 20) for i in range(200)]})
    described, _ = fit_table(table)
    assert described["columns"]["t"][0]["fitted"]["categories"] == [str(i) for i in range(20)]


def test_free_text_is_asked_what_it_says_of_the_target() -> None:
    assert op_of([*sentences(200), None]) == "ngram_target"
    assert op_of(["\u4e2d\u6587\u6587\u672c" + chr(0x4E00 + i) for i in range(200)]) == "ngram_target"


def test_free_text_that_repeats_is_a_category() -> None:
    assert op_of(sentences(40) * 5) == "vocabulary"


def test_without_a_target_nothing_is_learnt_from_it() -> None:
    assert op_of(sentences(200), target=False) == "vocabulary"


def test_what_counts_as_a_word() -> None:
    assert mean_words(["one two  three", ""]) == 1.5
    assert mean_words([]) == 0.0
