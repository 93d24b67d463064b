from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.errors import ConfigError
from tidemill.train.torch.loader.batches import Dealing, RowBatches, TokenBatches
from tidemill.train.torch.loader.order import Order


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=200),
    budget=st.integers(1, 100),
    window_rows=st.integers(1, 100),
    epoch=st.integers(0, 3),
)
def test_padded_batches_stay_within_the_budget_unless_one_row_alone_is_longer(
    lengths: list[int], budget: int, window_rows: int, epoch: int
) -> None:
    sizes = [7] * (len(lengths) // 7) + ([len(lengths) % 7] if len(lengths) % 7 else [])
    order = Order(sizes, sizes, window_bytes=window_rows, seed=5)
    batches = TokenBatches(order, lengths=np.array(lengths), batch_tokens=budget)
    steps = list(batches.steps(epoch))
    assert len(steps) == batches.num_steps(epoch)
    assert [step.number for step in steps] == list(range(len(steps)))
    for step in steps:
        longest = max(1, *(lengths[row] for row in step.rows))
        assert len(step.rows) * longest <= budget or len(step.rows) == 1
    assert sorted(np.concatenate([step.rows for step in steps]).tolist()) == list(range(len(lengths)))


def test_batches_are_of_like_lengths_and_come_in_no_order_of_length() -> None:
    lengths = np.random.default_rng(0).geometric(1 / 40, 20_000).clip(3, 256)
    order = Order([1000] * 20, [1000] * 20, window_bytes=5000, seed=0)
    steps = list(TokenBatches(order, lengths=lengths, batch_tokens=2048).steps(0))
    padded = sum(len(step.rows) * lengths[step.rows].max() for step in steps)
    assert padded < 1.1 * lengths.sum()  # in random batches it is four times as much
    longest = np.array([lengths[step.rows].max() for step in steps])
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.1
    assert len(steps) < 1.15 * lengths.sum() / 2048


def test_batches_differ_from_epoch_to_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 20, 2000)
    batches = TokenBatches(Order([2000], [1], window_bytes=1, seed=0), lengths=lengths, batch_tokens=200)
    first, second = ({frozenset(step.rows.tolist()) for step in batches.steps(epoch)} for epoch in (0, 1))
    assert len(first & second) < 0.1 * len(first)


def test_a_batch_may_span_windows_and_be_larger_than_one() -> None:
    order = Order([4] * 5, [1] * 5, window_bytes=1, seed=0)
    steps = list(RowBatches(order, batch_rows=9).steps(0))
    assert [(step.number, step.window, step.last_window, len(step.rows)) for step in steps] == [(0, 0, 2, 9), (1, 2, 4, 9), (2, 4, 4, 2)]


def test_no_rows_are_no_steps() -> None:
    order = Order([], [], window_bytes=1, seed=0)
    assert list(RowBatches(order, batch_rows=9).steps(0)) == []
    assert list(TokenBatches(order, lengths=np.empty(0, np.int32), batch_tokens=9).steps(0)) == []


@given(num_rows=st.integers(1, 100), ranks=st.integers(1, 6), accumulate=st.integers(1, 4), known=st.booleans())
def test_ranks_and_micro_batches_get_equal_shares(num_rows: int, ranks: int, accumulate: int, known: bool) -> None:
    rng = np.random.default_rng(num_rows)
    order = Order([10] * 10, [1] * 10, window_bytes=1, seed=0)
    rows = rng.permutation(100)[:num_rows]
    lengths = rng.integers(1, 50, 100) if known else None
    place_B = rng.permutation(10)
    dealt = [Dealing(order, rank=rank, ranks=ranks, accumulate=accumulate, lengths=lengths).deal(rows, place_B) for rank in range(ranks)]
    assert sorted(np.concatenate([part for parts in dealt for part in parts]).tolist()) == sorted(rows.tolist())
    shares = [sum(map(len, parts)) for parts in dealt]
    assert max(shares) - min(shares) <= 1
    for parts in dealt:
        assert len(parts) == accumulate
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        for part in parts:  # rows of a block beside each other, in the epoch's order of blocks
            assert (np.diff(place_B[order.block_of(part)]) >= 0).all()
    if known and accumulate > 1 and num_rows >= ranks * accumulate:
        assert lengths is not None
        assert all(lengths[a].max() <= lengths[b].min() for parts in dealt for a, b in pairwise(parts))


@pytest.mark.parametrize("tokens", [0, -5])
def test_a_budget_of_no_tokens_is_refused(tokens: int) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_tokens: must be at least 1"):
        TokenBatches(Order([1], [1], window_bytes=1, seed=0), lengths=np.ones(1), batch_tokens=tokens)
