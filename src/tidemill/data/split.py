"""Train, valid and test: every row in one, decided by its content alone.

Rows are ordered by one 64-bit number (see `table.staged`). The cut after a share of them is found by counting digits of that
number, most significant first: exact, in memory that does not grow with the rows, on any engine. Rows of one number, which are
the rows of one group, of one time, or equal rows, are never parted: the cut falls on the side of such a tie that is closer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tidemill.core.engine import DataEngine, Rows
from tidemill.core.errors import DataError
from tidemill.data.config import SplitConfig
from tidemill.data.table import ORDER, STRATUM, unsigned

SPLITS = ("train", "valid", "test")
NOTHING = np.uint64(0)


@dataclass(frozen=True)
class Cuts:
    """Where to cut, by stratum S: `below[0]` rows of the lowest order are test, up to `below[1]` valid; both exclusive bounds.

    A bound of 2**64 does not fit; the order 2**64 - 1 is always train.
    """

    strata_S: np.ndarray
    test_S: np.ndarray
    valid_S: np.ndarray

    def split_of(self, batch: pa.RecordBatch) -> np.ndarray:
        """Index into `SPLITS` of every row, int8; -1 where the target is null."""
        known, orders, strata = _orders(batch)
        position = np.searchsorted(self.strata_S, strata)
        found = np.zeros(len(orders), dtype=np.int8)
        found[orders < self.valid_S[position]] = 1
        found[orders < self.test_S[position]] = 2
        result = np.full(batch.num_rows, -1, dtype=np.int8)
        result[known] = found
        return result


def find_cuts(engine: DataEngine, rows: Rows, split: SplitConfig) -> Cuts:
    """The cuts that give test and valid their shares, newest or lowest order first.

    Args:
        rows: The staged table's `ORDER`, and `STRATUM` where there is one.

    Raises:
        DataError: If a split would be empty.
    """
    sizes = engine.reduce(rows, StrataSizes())
    strata_S = np.array(sorted(sizes), dtype=np.uint64)
    total_S = np.array([sizes[stratum] for stratum in strata_S.tolist()], dtype=np.int64)
    least_S = np.where(total_S >= 3, 1, 0) if split.by == "stratified" else np.ones_like(total_S)
    start_S = np.zeros(len(strata_S), dtype=np.uint64)
    test_S, in_test_S = cut(engine, rows, strata_S, start_S, np.maximum(least_S, np.rint(total_S * split.test)))
    valid_S, in_valid_S = cut(engine, rows, strata_S, test_S, np.maximum(least_S, np.rint(total_S * split.valid)))
    in_train_S = total_S - in_test_S - in_valid_S
    for name, count in (("train", in_train_S.sum()), ("valid", in_valid_S.sum()), ("test", in_test_S.sum())):
        if count == 0:
            shares = f"valid {split.valid}, test {split.test} of {total_S.sum()} rows"
            why = f"by {split.by}" + (f" of {split.column!r}" if split.column else "")
            raise DataError(
                f"data.split: {name} must have rows, has none ({why}, {shares})",
                field=split.column,
                hint="there are too few rows, or one group or time holds nearly all of them",
            )
    return Cuts(strata_S, test_S, valid_S)


class StrataSizes:
    """Rows by stratum."""

    def init(self) -> dict[int, int]:
        return {}

    def update(self, state: dict[int, int], batch: pa.RecordBatch) -> dict[int, int]:
        strata, counts = np.unique(_orders(batch)[2], return_counts=True)
        return self.merge(state, dict(zip(strata.tolist(), counts.tolist(), strict=True)))

    def merge(self, left: dict[int, int], right: dict[int, int]) -> dict[int, int]:
        for stratum, count in right.items():
            left[stratum] = left.get(stratum, 0) + count
        return left


@dataclass(frozen=True)
class _Digits:
    """Counts of one digit, by stratum, of the orders from `start_S` on that begin with `prefix_S`; shape (S, digits)."""

    strata_S: np.ndarray
    start_S: np.ndarray
    prefix_S: np.ndarray
    shift: int
    bits: int

    def init(self) -> np.ndarray:
        return np.zeros((len(self.strata_S), 1 << self.bits), dtype=np.int64)

    def update(self, state: np.ndarray, batch: pa.RecordBatch) -> np.ndarray:
        _, orders, strata = _orders(batch)
        position = np.searchsorted(self.strata_S, strata)
        chosen = orders >= self.start_S[position]
        if self.shift + self.bits < 64:
            chosen &= orders >> np.uint64(self.shift + self.bits) == self.prefix_S[position]
        digits = (orders[chosen] >> np.uint64(self.shift)) & np.uint64((1 << self.bits) - 1)
        cells = position[chosen] * (1 << self.bits) + digits.astype(np.int64)
        return state + np.bincount(cells, minlength=state.size).reshape(state.shape)

    def merge(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        left += right
        return left


def cut(engine: DataEngine, rows: Rows, strata_S: np.ndarray, start_S: np.ndarray, wanted_S: Any) -> tuple[np.ndarray, np.ndarray]:
    """Exclusive upper bounds that take about `wanted_S` rows of each stratum from `start_S` on, and how many they take."""
    bits = 16 if len(strata_S) <= 16 else 8
    prefix_S, before_S = np.zeros_like(start_S), np.zeros(len(strata_S), dtype=np.int64)
    at_S = np.zeros_like(before_S)
    each = np.arange(len(strata_S))
    for shift in range(64 - bits, -1, -bits):
        counts = engine.reduce(rows, _Digits(strata_S, start_S, prefix_S, shift, bits))
        upto = before_S[:, None] + np.cumsum(counts, axis=1)
        digit_S = np.minimum((upto < wanted_S[:, None]).sum(axis=1), (1 << bits) - 1)
        at_S = counts[each, digit_S]
        before_S = upto[each, digit_S] - at_S
        prefix_S = (prefix_S << np.uint64(bits)) | digit_S.astype(np.uint64)
    # `prefix_S` is now the order of the row at the cut, `at_S` the rows that share it.
    with_tie = (before_S == 0) | (before_S + at_S - wanted_S <= wanted_S - before_S)
    bound_S = np.where(with_tie, np.minimum(prefix_S, np.uint64(2**64 - 2)) + np.uint64(1), prefix_S)
    nothing = wanted_S == 0
    return np.where(nothing, start_S, bound_S), np.where(nothing, 0, np.where(with_tie, before_S + at_S, before_S))


def _orders(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which rows have an order, their orders and their strata, uint64."""
    orders = batch.column(batch.schema.get_field_index(ORDER))
    known = np.asarray(orders.is_valid().to_numpy(zero_copy_only=False))
    position = batch.schema.get_field_index(STRATUM)
    present = unsigned(orders.drop_null())
    strata = unsigned(batch.column(position))[known] if position >= 0 else np.full(len(present), NOTHING)
    return known, present, strata
