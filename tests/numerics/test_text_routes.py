"""A package's whole graph over texts: merged and cut, it answers as its parts do, and says what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest

from tidemill.core.graph import BulkGraph, Graph, _split_strings
from tidemill.core.schema import Schema
from tidemill.features.reference import features
from tidemill.features.stage import fit_table
from tidemill.models.base import MemoryMatrix
from tidemill.models.linear import Linear, LinearParams
from tidemill.packaging.merge import merge, runtime_domains, to_bytes

TEXTS = ["good food, good wine", "Awful!!", "中文 ok", None, "", "good", "bad bad bad", "\uffffx", "fine 42"] * 5
CHAINS: dict[str, list[Any]] = {
    "title": [{"op": "hash_ngrams", "buckets": 8}],
    "note": ["text_stats", "impute", "log"],
    "shop": [{"op": "hash", "buckets": 4}, "one_hot"],
    "when": ["date_parts", "cyclical"],
}
TABLE = pa.table(
    {
        "title": TEXTS,
        "note": TEXTS[::-1],
        "shop": [None if text is None else text[:2] for text in TEXTS],
        "when": pa.array(np.arange(len(TEXTS)) * 10**10, pa.timestamp("us")),
    }
)


@pytest.fixture(scope="module")
def merged() -> tuple[dict[str, Any], bytes, Any]:
    description, graph = fit_table(TABLE, CHAINS)
    x_NF = np.nan_to_num(features(description, TABLE))
    y_N = np.array([0.0 if text is None else text.count("good") for text in TEXTS])
    fitted = Linear().fit(MemoryMatrix(x_NF, y_N), None, task="regression", num_classes=None, params=LinearParams(), seed=0, threads=1)
    return description, to_bytes(merge(onnx.load_from_string(graph), fitted.to_onnx(), classes=None)), fitted


def test_the_whole_graph_answers_as_its_parts_by_every_route(merged: tuple[dict[str, Any], bytes, Any]) -> None:
    description, content, fitted = merged
    schema = Schema.from_json(description["inputs"])
    expected = fitted.predict(features(description, TABLE)).ravel()
    one = Graph(content, schema)
    (batch,) = TABLE.to_batches()
    np.testing.assert_allclose(one.run(one.signature.from_arrow(TABLE))["prediction"].ravel(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(BulkGraph(content, schema).run(batch)["prediction"].ravel(), expected, rtol=1e-5, atol=1e-5)
    assert len(BulkGraph(content, schema).run(batch.slice(0, 0))["prediction"]) == 0


def test_the_whole_graph_is_cut_where_texts_are_no_texts_any_more(merged: tuple[dict[str, Any], bytes, Any]) -> None:
    description, content, _ = merged
    _, apart, before, rest = _split_strings(content, Schema.from_json(description["inputs"]))
    assert apart == {"title", "note"}
    assert before is not None
    assert not {"Tokenizer", "MurmurHash3"} & {node.op_type for node in onnx.load_from_string(rest).graph.node}


def test_only_graphs_with_its_operators_need_onnx_runtime(merged: tuple[dict[str, Any], bytes, Any], tmp_path: Path) -> None:
    (tmp_path / "hashed.onnx").write_bytes(merged[1])
    (tmp_path / "plain.onnx").write_bytes(
        fit_table(TABLE, {**CHAINS, "title": ["one_hot"], "note": ["vocabulary"], "shop": ["frequency"]})[1]
    )
    assert runtime_domains(tmp_path / "hashed.onnx") == ["com.microsoft"]
    assert runtime_domains(tmp_path / "plain.onnx") == []
    assert {entry.domain for entry in onnx.load(tmp_path / "plain.onnx").opset_import} == {"", "ai.onnx.ml"}
