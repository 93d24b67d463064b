from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.train.torch.loader.order import Order

BLOCKS = st.lists(st.integers(1, 40), min_size=1, max_size=20)


def epoch_rows(order: Order, epoch: int) -> np.ndarray:
    return np.concatenate([order.rows(epoch, window) for window in order.windows(epoch)])


@given(sizes=BLOCKS, window_bytes=st.integers(1, 300), seed=st.integers(0, 2**31), epoch=st.integers(0, 5))
def test_every_row_comes_once(sizes: list[int], window_bytes: int, seed: int, epoch: int) -> None:
    order = Order(sizes, sizes, window_bytes=window_bytes, seed=seed)
    rows = epoch_rows(order, epoch)
    assert sorted(rows.tolist()) == list(range(sum(sizes)))
    np.testing.assert_array_equal(rows, epoch_rows(Order(sizes, sizes, window_bytes=window_bytes, seed=seed), epoch))


@given(sizes=BLOCKS, window_bytes=st.integers(1, 300))
def test_a_window_takes_no_more_memory_than_it_may_unless_it_is_one_block(sizes: list[int], window_bytes: int) -> None:
    windows = Order(sizes, sizes, window_bytes=window_bytes, seed=1).windows(0)
    first = 0
    for window in windows:
        assert window.first == first
        assert window.num_rows == sum(sizes[block] for block in window.blocks)
        assert window.num_rows <= window_bytes or len(window.blocks) == 1
        first += window.num_rows
    for before, after in pairwise(windows):  # none could have held one block more
        assert before.num_rows + sizes[after.blocks[0]] > window_bytes


def test_each_epoch_and_seed_has_an_order_of_its_own() -> None:
    orders = [
        epoch_rows(Order([50] * 10, [50] * 10, window_bytes=150, seed=seed), epoch).tolist() for seed in (0, 1) for epoch in (0, 1)
    ]  # fmt: skip
    assert len({tuple(order) for order in orders}) == 4


def test_rows_are_mixed_across_the_blocks_of_a_window() -> None:
    order = Order([100] * 20, [100] * 20, window_bytes=500, seed=0)
    for window in order.windows(0):
        assert len(window.blocks) == 5
        rows = order.rows(0, window)
        quarter = order.block_of(rows[:100])  # of 500 rows the first hundred are some twenty of each block
        assert all(8 <= np.count_nonzero(quarter == block) <= 35 for block in window.blocks)


def test_rows_may_stay_in_order() -> None:
    order = Order([3, 1, 4], [3, 1, 4], window_bytes=4, seed=0, shuffle=False)
    assert epoch_rows(order, 3).tolist() == list(range(8))


@pytest.mark.parametrize("row", [0, 2, 3, 4, 7])
def test_the_block_of_a_row_is_known(row: int) -> None:
    order = Order([3, 0, 1, 4], [1] * 4, window_bytes=100, seed=0)
    assert order.block_of(np.array([row])).tolist() == [[0, 0, 0, 2, 3, 3, 3, 3][row]]
