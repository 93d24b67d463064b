from __future__ import annotations

import numpy as np
import pytest

from tidemill.models.base import Batch, MemoryMatrix
from tidemill.models.rows import Drawn, every, folds


class Parts(MemoryMatrix):
    """The same rows in batches of seven."""

    def batches(self):  # type: ignore[no-untyped-def]
        (whole,) = super().batches()
        for start in range(0, self.num_rows, 7):
            part = slice(start, start + 7)
            yield Batch(whole.x_NF[part], whole.y_N[part], None if whole.weight_N is None else whole.weight_N[part])


def matrix(*, weight: bool = False, num: int = 40) -> Parts:
    rng = np.random.default_rng(0)
    return Parts(rng.normal(size=(num, 3)), np.arange(num), rng.random(num) if weight else None)


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("most", [1, 3])
def test_rows_are_those_that_were_drawn(weight: bool, most: int) -> None:
    whole = matrix(weight=weight)
    times_N = np.random.default_rng(1).integers(0, most + 1, whole.num_rows)
    drawn = Drawn(whole, times_N)
    batches = list(drawn.batches())
    y_N, weight_N = drawn.targets()
    kept_N = times_N > 0
    assert drawn.num_rows == kept_N.sum() == len(y_N)
    np.testing.assert_array_equal(np.concatenate([batch.y_N for batch in batches]), np.arange(40)[kept_N])
    np.testing.assert_array_equal(y_N, np.arange(40)[kept_N])
    np.testing.assert_array_equal(np.concatenate([batch.x_NF for batch in batches]), next(MemoryMatrix.batches(whole)).x_NF[kept_N])
    given_N = whole.targets()[1]
    if most == 1 and given_N is None:
        assert weight_N is None
        assert all(batch.weight_N is None for batch in batches)
    else:
        wanted_N = (times_N * (1.0 if given_N is None else given_N))[kept_N]
        np.testing.assert_allclose(weight_N, wanted_N)
        np.testing.assert_allclose(np.concatenate([batch.weight_N for batch in batches]), wanted_N)


def test_every_nth_row_stands_for_all() -> None:
    whole = matrix()
    assert every(whole, 40) is whole
    assert every(whole, 13).targets()[0].tolist() == list(range(0, 40, 4))


def test_folds_are_even_and_repeat_by_seed() -> None:
    fold_N = folds(103, 5, seed=3)
    assert sorted(np.bincount(fold_N)) == [20, 20, 21, 21, 21]
    np.testing.assert_array_equal(fold_N, folds(103, 5, seed=3))
    assert (fold_N != folds(103, 5, seed=4)).any()
