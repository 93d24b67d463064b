"""Cross: categories of several columns as one category, such as the pair of two airports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.features.builder import Block, Builder
from tidemill.features.operator import Fitted, Kind, Made, Values

SEPARATOR = " × "
NULL_PART = "\\N"


@dataclass(frozen=True, kw_only=True)
class Cross:
    r"""One category for each combination of the columns' categories, which `one_hot`, `vocabulary`, `hash`, `frequency` and `target` take.

    It is said as `EWR × IAH`; a part's own × and \ are written \× and \\, so that different combinations never
    are said alike, and a null is \N. Nothing is fitted: which combinations count is up to the step that follows. In the graph
    no text is joined: each column is looked up on its own, and whole numbers are combined.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null in some columns       | combinations like others                                           |
    | null in all columns        | null                                                               |
    | unseen in one column       | a combination that was not seen                                    |
    | integer beyond 2^53        | exact: a category like others                                      |
    """

    joins: ClassVar[bool] = True
    accepts: ClassVar[tuple[Kind, ...]] = ("string", "integer")

    def fit(self, kinds: Sequence[Kind]) -> Fitted:
        if len(kinds) < 2:
            raise ConfigError(f"cross must get at least 2 columns, gets {len(kinds)}")
        return {}

    def reference(self, name: str, columns: Sequence[Values], fitted: Fitted) -> Made:
        # Each combination is said once, however many rows have it.
        place_N = np.zeros(len(columns[0]), np.int64)
        for column in columns:
            codes_N, size = _codes(column)
            _, place_N = np.unique(place_N * size + codes_N, return_inverse=True)
        _, first = np.unique(place_N, return_index=True)
        parts = [column.data[first].tolist() for column in columns]
        known = [column.known()[first].tolist() for column in columns]
        texts = np.empty(len(first), object)
        texts[:] = [
            joined([part if there else None for part, there in zip(row, present, strict=True)])
            for row, present in zip(zip(*parts, strict=True), zip(*known, strict=True), strict=True)
        ]
        return Made({name: Values("string", texts[place_N], parts=tuple(columns))})

    def nodes(self, graph: Builder, name: str, columns: Sequence[Block], fitted: Fitted) -> Block:
        parts = tuple(part for column in columns for part in graph.singles(column))
        return Block(kind="string", names=(name,), origins=(name,), tensors=(), element=0, parts=(parts,))


def joined(parts: Sequence[str | int | None]) -> str | None:
    r"""The text of a combination; None where every part is null.

    Example:
        >>> joined(["EWR", None, 3])
        'EWR × \\N × 3'
    """
    if all(part is None for part in parts):
        return None
    return SEPARATOR.join(NULL_PART if part is None else str(part).replace("\\", "\\\\").replace("×", "\\×") for part in parts)


def parted(text: str) -> list[str | None]:
    r"""The parts of a combination's text, texts and integers as texts: what `joined` was given.

    Example:
        >>> parted('EWR × \\N × 3')
        ['EWR', None, '3']
    """
    if "\\" not in text:
        return [*text.split(SEPARATOR)]
    parts: list[str | None] = []
    taken: list[str] = []
    i = 0
    while i < len(text):
        if text[i] == "\\":
            taken.append(NULL_PART if text[i + 1] == "N" else text[i + 1])
            i += 2
        elif text.startswith(SEPARATOR, i):
            parts.append(_part(taken))
            taken = []
            i += len(SEPARATOR)
        else:
            taken.append(text[i])
            i += 1
    return [*parts, _part(taken)]


def _part(taken: list[str]) -> str | None:
    return None if taken == [NULL_PART] else "".join(taken)


def _codes(column: Values) -> tuple[np.ndarray, int]:
    """Places of the values among the distinct ones, int64 [N], and how many there may be; 0 is null."""
    known = column.known()
    if column.kind != "string":
        distinct, places = np.unique(column.data, return_inverse=True)
        return np.where(known, places + 1, 0), len(distinct) + 1
    seen: dict[Any, int] = {None: 0}
    codes = np.fromiter((seen.setdefault(value, len(seen)) for value in column.data.tolist()), np.int64, len(column))
    return codes, len(seen)
