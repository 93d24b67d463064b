"""Operators that take texts apart: any text, however long, however many at once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core import graph as core_graph
from tidemill.core.errors import ConfigError
from tidemill.core.graph import BulkGraph, Graph
from tidemill.core.schema import Schema
from tidemill.features.reference import features
from tidemill.features.stage import fit_table
from tidemill.testing.operator import routes

CHAINS = {
    "a": [{"op": "text_stats"}],
    "b": ["impute", {"op": "text_stats", "max_length": 5}],
    "c": [{"op": "hash_ngrams", "n": 2, "buckets": 16}],
    "d": [{"op": "hash_ngrams", "n": 4, "buckets": 9, "seed": 3, "max_length": 6}],
    "e": [{"op": "hash", "buckets": 11}],
}
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: text != "\uffff")


def table_of(texts: list[Any]) -> pa.Table:
    return pa.table({name: pa.array(texts, pa.string()) for name in CHAINS})


@pytest.fixture(scope="module")
def fitted() -> tuple[dict[str, Any], bytes]:
    return fit_table(table_of(["some", "texts", None]), {"columns": CHAINS})


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.none() | ANY_TEXT, max_size=8))
def test_every_route_answers_as_the_reference_on_any_text(fitted: tuple[dict[str, Any], bytes], texts: list[str | None]) -> None:
    description, graph = fitted
    expected = features(description, table_of(texts))
    for route, answer in routes(graph, Schema.from_json(description["inputs"]), table_of(texts)).items():
        np.testing.assert_array_equal(answer, expected, err_msg=route)


def test_texts_are_taken_apart_before_the_cut(fitted: tuple[dict[str, Any], bytes]) -> None:
    description, content = fitted
    strings, apart, before, rest = core_graph._split_strings(content, Schema.from_json(description["inputs"]))
    assert before is not None
    assert apart == {"a", "b", "c", "d"}
    assert set(strings) == set(CHAINS)
    assert "Tokenizer" in {node.op_type for node in onnx.load_from_string(before).graph.node}
    assert not {"Tokenizer", "ScatterElements", "MurmurHash3"} & {node.op_type for node in onnx.load_from_string(rest).graph.node}


def test_pieces_come_to_the_same(fitted: tuple[dict[str, Any], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    description, content = fitted
    texts = [*("x" * length for length in range(30)), None, "", "中文" * 40]
    (batch,) = table_of(texts).to_batches()
    schema = Schema.from_json(description["inputs"])
    whole = BulkGraph(content, schema).run(batch)["features"]
    monkeypatch.setattr(core_graph, "CHARACTERS_AT_ONCE", 200)
    np.testing.assert_array_equal(BulkGraph(content, schema).run(batch)["features"], whole)


def test_counts_are_those_of_python() -> None:
    texts = ["Hello, World! 42", "two\u3000words", " a\tb\n", "ÀÉ été", "١٢٣", "x+y=<z>", "", "a\uffffb", "w" * 2000]
    description, graph = fit_table(pa.table({"t": texts}), {"t": ["text_stats"]})
    made = Graph(graph, Schema.from_json(description["inputs"])).run({"t": np.array(texts, object).reshape(-1, 1)})["features"]
    columns = dict(zip(description["names"], made.T.tolist(), strict=True))
    assert columns["t.characters"] == [16, 9, 5, 6, 3, 7, 0, 3, 1000]
    assert columns["t.words"] == [3, 2, 2, 2, 1, 1, 0, 1, 1]
    assert columns["t.digits"] == [2, 0, 0, 0, 3, 0, 0, 0, 0]
    assert columns["t.uppercase"] == [2, 0, 0, 2, 0, 0, 0, 0, 0]
    assert columns["t.punctuation"] == [2, 0, 0, 0, 0, 4, 0, 0, 0]


def test_equal_runs_share_a_bucket_and_every_run_counts() -> None:
    texts = ["abcabc", "abc", "b", "", "abcabcabc"]
    description, graph = fit_table(pa.table({"t": texts}), {"t": [{"op": "hash_ngrams", "n": 3, "buckets": 4096}]})
    made = Graph(graph, Schema.from_json(description["inputs"])).run({"t": np.array(texts, object).reshape(-1, 1)})["features"]
    assert made.sum(axis=1).tolist() == [6, 3, 1, 0, 9]
    for row, text in enumerate(texts):
        ended = f"<{text}>"
        runs = Counter(ended[i : i + 3] for i in range(len(ended) - 2))
        assert sorted(runs.values()) == sorted(made[row][made[row] > 0].tolist())


def test_hashed_runs_spread_over_the_buckets() -> None:
    words = [f"word{i}" for i in range(3000)]
    description, graph = fit_table(pa.table({"t": words}), {"t": [{"op": "hash_ngrams", "n": 5, "buckets": 64}]})
    made = Graph(graph, Schema.from_json(description["inputs"])).run({"t": np.array(words, object).reshape(-1, 1)})["features"]
    distinct = (made > 0).sum(axis=0)
    assert distinct.min() > 0
    assert (made.sum(axis=0) > 5 * made.sum() / 64).sum() <= 3  # "<word" and the like are in every text


def test_counts_must_be_given_once() -> None:
    with pytest.raises(ConfigError, match="each once"):
        fit_table(pa.table({"t": ["a"]}), {"t": [{"op": "text_stats", "counts": ["words", "words"]}]})


def test_a_period_must_be_known() -> None:
    with pytest.raises(ConfigError, match=r"features\.t: cyclical must be given the period"):
        fit_table(pa.table({"t": [1.0, 2.0]}), {"t": ["cyclical"]})


def test_quarters_of_a_turn_are_exact() -> None:
    description, graph = fit_table(pa.table({"t": [0.0, 6.0, 12.0, 18.0, 24.0]}), {"t": [{"op": "cyclical", "period": 24}]})
    made = Graph(graph, Schema.from_json(description["inputs"])).run({"t": np.array([[0.0], [6.0], [12.0], [18.0], [-6.0], [1e300]])})
    assert description["names"] == ["t.sin", "t.cos"]
    assert made["features"][:5].tolist() == [[0, 1], [1, 0], [0, -1], [-1, 0], [-1, 0]]
    assert np.isfinite(made["features"]).all()


def test_an_embedding_says_its_table() -> None:
    from tidemill.features.embedding import Embedding

    assert Embedding().table({"categories": ["a", "b"]}) == {"rows": 4, "width": 3}
    assert Embedding(width=7).table({"categories": list(range(98))}) == {"rows": 100, "width": 7}
    assert Embedding().table({"categories": range(10**6)})["width"] == 600
