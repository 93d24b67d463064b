"""The characters of texts as nodes: one tensor of code points, whatever is in the text."""

from __future__ import annotations

import numpy as np

from tidemill.features.builder import MICROSOFT, Builder

# Characters of a text that may be looked at; what the regular expressions of ONNX Runtime can count to.
MAX_LENGTH = 1000

# Stands after a text's last character where others are longer; no character is empty.
FILL = ""


def character_nodes(graph: Builder, texts: str, max_length: int) -> str:
    """The first `max_length` code points of texts [N, 1], as text of one character each [N, D], D at least 1, filled with "".

    ONNX Runtime gives no row, or no character at all, another number of dimensions: a text of one character goes along.
    """
    flat = graph.constant([-1], np.int64)
    escort = graph.node("Concat", graph.constant([["x"]], object), texts, axis=0)
    start = _tokens(graph, graph.node("Reshape", escort, flat), tokenexp=f"(?s)^.{{1,{max_length}}}")
    characters = _tokens(graph, graph.node("Reshape", start, flat), separators=[""])
    one = graph.constant([1], np.int64)
    return graph.node("Slice", characters, one, graph.constant([2**62], np.int64), graph.constant([0], np.int64))


def _tokens(graph: Builder, texts: str, **how: object) -> str:
    return graph.node("Tokenizer", texts, domain=MICROSOFT, mark=0, mincharnum=1, pad_value=FILL, **how)
