"""The cuts hold their promises on tables of any shape."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.engine import row_hash
from tidemill.core.errors import DataError
from tidemill.data.config import SplitConfig
from tidemill.data.split import Cuts, StrataSizes, _Digits, find_cuts
from tidemill.data.table import ORDER, SIGN, STRATUM, mixed


class InMemory:
    """The one verb that the cuts need, over batches in a list."""

    def reduce(self, rows, agg):
        state = agg.init()
        for batch in rows:
            state = agg.merge(state, agg.update(agg.init(), batch))
        return state


def batches(orders: list[int], strata: list[int] | None = None, size: int = 7) -> list[pa.RecordBatch]:
    columns = {ORDER: orders, **({STRATUM: strata} if strata is not None else {})}
    table = pa.table({name: pa.array((np.array(values, np.uint64) ^ SIGN).view(np.int64)) for name, values in columns.items()})
    return table.to_batches(max_chunksize=size)


def splits(orders: list[int], split: SplitConfig, strata: list[int] | None = None) -> np.ndarray:
    rows = batches(orders, strata)
    cuts = find_cuts(InMemory(), rows, split)
    return np.concatenate([cuts.split_of(batch) for batch in rows])


ANY_ORDER = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 30), st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]))


@given(orders=st.lists(ANY_ORDER, min_size=3, max_size=80), valid=st.floats(0.05, 0.4), test=st.floats(0.05, 0.4))
@settings(max_examples=120)
def test_cuts_are_where_sorting_puts_them(orders: list[int], valid: float, test: float) -> None:
    config = SplitConfig(valid=valid, test=test)
    try:
        found = splits(orders, config)
    except DataError:
        assert len(set(orders)) < 3 or max(orders.count(order) for order in orders) > 1
        return
    ordered = np.array(sorted(orders), np.uint64)
    by_order = dict(zip(orders, found.tolist(), strict=True))
    assert [by_order[order] for order in orders] == found.tolist(), "a tie was parted"
    along = [by_order[int(order)] for order in ordered]
    assert along == sorted(along, reverse=True), "test comes first, train last"
    if len(set(orders)) == len(orders):
        count = len(orders)
        assert along.count(2) == max(1, round(count * test))
        assert along.count(1) == max(1, round(count * valid))


@given(
    rows=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 20)), min_size=10, max_size=200, unique_by=lambda row: row[0]),
    wide=st.booleans(),
)
@settings(max_examples=50)
def test_each_stratum_has_its_shares(rows: list[tuple[int, int]], wide: bool) -> None:
    orders, strata = [order for order, _ in rows], [stratum * (2**58 if wide else 1) for _, stratum in rows]
    try:
        found = splits(orders, SplitConfig(by="stratified", valid=0.2, test=0.2), strata)
    except DataError:
        assert max(strata.count(stratum) for stratum in strata) < 3
        return
    for stratum in set(strata):
        mine = found[np.array(strata, np.uint64) == np.uint64(stratum)]
        least = 1 if len(mine) >= 3 else 0
        for split in (1, 2):
            assert (mine == split).sum() == max(least, round(len(mine) * 0.2))


def test_a_row_without_target_is_in_no_split() -> None:
    table = pa.table({ORDER: pa.array([*range(30), None], pa.int64())})
    rows = table.to_batches()
    cuts = find_cuts(InMemory(), rows, SplitConfig())
    assert cuts.split_of(rows[0]).tolist().count(-1) == 1
    assert cuts.split_of(rows[0])[-1] == -1


def test_states_can_travel() -> None:
    import pickle

    [batch] = batches([1, 2, 3], [0, 0, 1])
    for agg in (StrataSizes(), _Digits(np.array([0, 1], np.uint64), np.zeros(2, np.uint64), np.zeros(2, np.uint64), 56, 8)):
        agg = pickle.loads(pickle.dumps(agg))
        state = agg.update(agg.init(), batch)
        assert str(pickle.loads(pickle.dumps(state))) == str(state)
    assert isinstance(pickle.loads(pickle.dumps(find_cuts(InMemory(), batches(list(range(20))), SplitConfig()))), Cuts)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_mixed_hashes_are_uniform_and_differ_by_seed(seed: int) -> None:
    hashes = mixed(np.arange(100_000, dtype=np.uint64), seed)
    counts = np.bincount((hashes >> np.uint64(60)).astype(int), minlength=16)
    assert abs(counts - 6_250).max() < 5 * np.sqrt(6_250)
    assert not np.array_equal(hashes, mixed(np.arange(100_000, dtype=np.uint64), seed + 1))


@given(st.lists(st.one_of(st.none(), st.text()), min_size=1, max_size=20))
def test_row_hash_is_md5_of_the_text(texts: list[str | None]) -> None:
    import hashlib

    expected = [
        int(hashlib.md5(("\uffff" if text is None else text).encode(), usedforsecurity=False).hexdigest()[16:], 16) for text in texts
    ]
    assert row_hash(pa.record_batch({"t": pa.array(texts, pa.string())}), ["t"]).tolist() == expected


def test_row_hash_is_the_same_for_every_way_to_hold_a_value() -> None:
    def hashes(*arrays: pa.Array) -> set[int]:
        return {int(row_hash(pa.record_batch([array], names=["c"]), ["c"])[0]) for array in arrays}

    assert len(hashes(pa.array([7], pa.int8()), pa.array([7], pa.int64()), pa.array([7], pa.uint32()), pa.array(["7"]))) == 1
    assert len(hashes(pa.array([0.5], pa.float32()), pa.array([0.5], pa.float64()))) == 1
    assert len(hashes(pa.array([0.0]), pa.array([-0.0]))) == 1
    assert len(hashes(pa.array([float("nan")]), pa.array([None], pa.float64()), pa.array([None], pa.string()))) == 1
    assert len(hashes(pa.array(["x"]), pa.array(["x"]).dictionary_encode(), pa.array(["x"], pa.large_string()))) == 1
    assert (
        len(
            hashes(pa.array([86_400], pa.timestamp("s")), pa.array([1], pa.date32()), pa.array([86_400_000_000], pa.timestamp("us", "UTC")))
        )
        == 1
    )
    assert len(hashes(pa.array([""]), pa.array([None], pa.string()))) == 2
