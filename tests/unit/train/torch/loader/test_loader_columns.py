from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tidemill.train.torch.loader.columns import Ragged, gather, joined, nbytes, stacked

TEXTS = st.lists(st.lists(st.integers(0, 99), max_size=6), min_size=1, max_size=8)


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged.of(np.array([token for row in rows for token in row], np.uint16), np.array([len(row) for row in rows]))


def rows_of(tokens: Ragged) -> list[list[int]]:
    return [tokens.values[start:end].tolist() for start, end in zip(tokens.starts, tokens.starts[1:], strict=False)]


@given(rows=TEXTS, data=st.data())
def test_rows_of_differing_length_are_taken_and_joined(rows: list[list[int]], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    taken = ragged(rows).take(np.array(places, np.int64))
    assert rows_of(taken) == [rows[place] for place in places]
    assert rows_of(joined([taken, ragged(rows)])) == [rows[place] for place in places] + rows


@given(rows=TEXTS)
def test_padding_is_where_the_mask_is_not(rows: list[list[int]]) -> None:
    ids, mask = ragged(rows).padded(100)
    assert ids.shape == mask.shape == (len(rows), max(1, *map(len, rows)) if len(rows) > 1 else max(1, len(rows[0])))
    assert [row[shown].tolist() for row, shown in zip(ids, mask, strict=True)] == rows
    assert (ids[~mask] == 100).all()
    assert ragged(rows).padded(100, length=7)[0].shape == (len(rows), 7)


def test_rows_of_several_blocks_come_one_after_the_other() -> None:
    first = {"x": np.arange(6).reshape(3, 2), "t": ragged([[1], [2, 3], []])}
    second = {"x": np.arange(10, 16).reshape(3, 2), "t": ragged([[4], [5], [6, 7]])}
    made = gather([(first, np.array([2, 0])), (second, np.array([1]))])
    assert made["x"].tolist() == [[4, 5], [0, 1], [12, 13]]
    assert rows_of(made["t"]) == [[], [1], [5]]
    alone = gather([(first, np.array([1]))])
    assert alone["x"].tolist() == [[2, 3]]
    assert rows_of(stacked(alone, second)["t"]) == [[2, 3], [4], [5], [6, 7]]
    assert nbytes(first) == 6 * 8 + 3 * 2 + 4 * 8
