from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tidemill.core.errors import ConfigError
from tidemill.models.base import MemoryMatrix
from tidemill.models.weights import Reweighted, class_weights


def matrix(labels: list[int], weights: list[float] | None = None) -> MemoryMatrix:
    return MemoryMatrix(np.zeros((len(labels), 1), np.float32), np.array(labels), None if weights is None else np.array(weights))


def test_balanced_classes_weigh_the_same_and_rows_one_on_average() -> None:
    train = matrix([0, 0, 0, 1, 2, 2])
    weight_K = class_weights(train, "balanced", ["a", "b", "c"])
    y_N, weight_N = Reweighted(train, weight_K).targets()
    assert weight_N.mean() == pytest.approx(1)
    assert np.bincount(y_N.astype(int), weights=weight_N) == pytest.approx([2, 2, 2])


def test_balance_counts_the_rows_own_weights() -> None:
    train = matrix([0, 0, 1], [1.0, 5.0, 2.0])
    _, weight_N = Reweighted(train, class_weights(train, "balanced", [False, True])).targets()
    assert weight_N[:2].sum() == pytest.approx(weight_N[2])
    (batch,) = Reweighted(train, class_weights(train, "balanced", [False, True])).batches()
    np.testing.assert_array_equal(batch.weight_N, weight_N)


def test_an_absent_class_does_no_harm() -> None:
    assert class_weights(matrix([0, 0, 2]), "balanced", ["a", "b", "c"]).tolist() == [0.75, 1.0, 1.5]


@pytest.mark.parametrize(
    ("classes", "table", "expected"),
    [([False, True], {"true": 3.0}, [1, 3]), ([10, 20], {"20": 0.5}, [1, 0.5]), (["雨", "晴"], {"雨": 2}, [2, 1])],
)
def test_a_table_names_classes_as_text(classes: list[Any], table: dict[str, float], expected: list[float]) -> None:
    assert class_weights(matrix([0, 1]), table, classes).tolist() == expected


def test_a_strange_class_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model.class_weight.ture: must be a class of the target; did you mean 'true'"):
        class_weights(matrix([0, 1]), {"ture": 3.0}, [False, True])
