"""Text statistics: how many characters, words, digits, capitals and punctuation marks a text has."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, Literal

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.core.schema import NULL_STRING
from tidemill.features.builder import FLOAT, Block, Builder
from tidemill.features.characters import FILL, MAX_LENGTH, character_nodes
from tidemill.features.operator import Fitted, Kind, Made, Values, numbers

Count = Literal["characters", "words", "digits", "uppercase", "punctuation"]

# What a character is, as the graph's table has it; 0 is anything else, a small letter for one.
_SPACE, _DIGIT, _UPPERCASE, _PUNCTUATION, _NONE = 1, 2, 3, 4, 5
_CLASSES = {"digits": _DIGIT, "uppercase": _UPPERCASE, "punctuation": _PUNCTUATION}


@dataclass(frozen=True, kw_only=True)
class TextStats:
    """Features `<column>.<count>`, whole numbers: characters, words, digits, uppercase, punctuation.

    Characters are code points. Words are what white space parts. Digits (Nd), capitals (Lu) and punctuation (P*, and the
    symbols of ASCII) are Unicode's, in the version of the Python that fits. A package with it needs ONNX Runtime.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null                       | NaN in every count                                                 |
    | empty text                 | 0 in every count                                                   |
    | beyond `max_length`        | the counts of the first `max_length` characters                    |
    | accents written apart      | characters of their own; text is not normalized                    |
    """

    counts: tuple[Count, ...] = ("characters", "words", "digits", "uppercase", "punctuation")
    """Counts to make: characters, words, digits, uppercase, punctuation."""
    max_length: int = field(default=MAX_LENGTH, metadata={"min": 1, "max": MAX_LENGTH})
    """Characters that are looked at, in 1..1000; the rest of a longer text counts as nothing."""

    accepts: ClassVar[tuple[Kind, ...]] = ("string",)

    def check(self) -> None:
        if not self.counts or len(set(self.counts)) < len(self.counts):
            raise ConfigError(f"text_stats: counts must be given, each once, got {list(self.counts)}")

    def fit(self, kind: Kind) -> Fitted:
        return {"unicode": unicodedata.unidata_version}

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        texts = [None if text is None else text[: self.max_length] for text in values.data.tolist()]
        return Made(
            {f"{name}.{count}": numbers([np.nan if text is None else _counted(count, text) for text in texts]) for count in self.counts}
        )

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        made = []
        for texts in graph.split(block):
            with graph.taking_apart():
                counts = graph.stack(self._count_nodes(graph, character_nodes(graph, texts, self.max_length)))
                null = graph.node("Equal", texts, graph.constant([[NULL_STRING]], object))
                made.append(graph.node("Where", null, graph.constant([[np.nan]], np.float32), counts))
        names = [f"{name}.{count}" for name in block.names for count in self.counts]
        origins = tuple(origin for origin in block.origins for _ in self.counts)
        return block.take(names, graph.stack(made), FLOAT, origins=origins)

    def _count_nodes(self, graph: Builder, characters: str) -> list[str]:
        """Counts [N, 1] in the order of `counts`, of characters [N, D]."""
        table = _table()
        classes = graph.node(
            "LabelEncoder",
            characters,
            domain="ai.onnx.ml",
            keys_strings=[*table, FILL],
            values_int64s=[*table.values(), _NONE],
            default_int64=0,
        )

        def is_(kind: int) -> str:
            return graph.node("Equal", classes, graph.constant([[kind]], np.int64))

        def total(condition: str) -> str:
            return graph.node("ReduceSum", graph.cast(condition, FLOAT), graph.constant([1], np.int64), keepdims=1)

        made = []
        for count in self.counts:
            if count == "characters":
                made.append(total(graph.node("Not", is_(_NONE))))
            elif count == "words":
                inside = graph.cast(graph.node("Not", graph.node("Or", is_(_SPACE), is_(_NONE))), FLOAT)
                # A word begins where the character before is in none.
                padded = graph.node("Pad", inside, graph.constant([0, 1, 0, 0], np.int64))
                before = graph.node(
                    "Slice", padded, graph.constant([0], np.int64), graph.constant([-1], np.int64), graph.constant([1], np.int64)
                )
                made.append(total(graph.node("Greater", inside, before)))
            else:
                made.append(total(is_(_CLASSES[count])))
        return made


def _counted(count: Count, text: str) -> int:
    """One count of one text, by Python's own means."""
    if count == "characters":
        return len(text)
    if count == "words":
        return len(text.split())
    if count == "digits":
        return sum(character.isdecimal() for character in text)
    categories = [unicodedata.category(character) for character in text]
    if count == "uppercase":
        return categories.count("Lu")
    return sum(kind[0] == "P" or (kind[0] == "S" and character.isascii()) for kind, character in zip(categories, text, strict=True))


@cache
def _table() -> dict[str, int]:
    """The class of every character that has one."""
    found = {}
    for character in map(chr, range(sys.maxunicode + 1)):
        kind = unicodedata.category(character)
        if character.isspace():
            found[character] = _SPACE
        elif kind == "Nd":
            found[character] = _DIGIT
        elif kind == "Lu":
            found[character] = _UPPERCASE
        elif kind[0] == "P" or (kind[0] == "S" and character.isascii()):
            found[character] = _PUNCTUATION
    return found
