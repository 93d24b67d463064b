"""One body over every operator, and over one that a project brings along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from tidemill.core.load import TABLE
from tidemill.features.builder import DOUBLE, Block, Builder
from tidemill.features.operator import Fitted, Kind, Made, Values, numbers
from tidemill.testing.operator import OperatorConformance

NUMBERS = ("int64", "float32", "float64", "boolean")
CATEGORIES = ("string", "int64", "boolean")


def same(kinds: Sequence[str], chains: list[list[Any]]) -> dict[str, list[list[Any]]]:
    return dict.fromkeys(kinds, chains)


class TestImpute(OperatorConformance):
    operator = "impute"
    chains = {
        **same(
            NUMBERS,
            [
                ["impute"],
                [{"op": "impute", "strategy": "mean", "indicator": False}],
                [{"op": "impute", "strategy": "most_frequent", "indicator": True}, "standardize"],
                [{"op": "impute", "strategy": "constant", "value": -1}],
            ],
        ),
        "string": [["impute", "one_hot"], [{"op": "impute", "strategy": "constant", "value": "中", "indicator": True}, "vocabulary"]],
    }


class TestStandardize(OperatorConformance):
    operator = "standardize"
    chains = same(NUMBERS, [["standardize"], [{"op": "clip", "min": 3, "max": 3}, "standardize"]])


class TestLog(OperatorConformance):
    operator = "log"
    chains = same(NUMBERS, [["log"], ["impute", "log", "standardize"]])


class TestMinMax(OperatorConformance):
    operator = "min_max"
    chains = same(
        NUMBERS,
        [
            ["min_max"],
            [{"op": "min_max", "low": -1, "high": 3, "clip": True}],
            [{"op": "min_max", "high": 10}, "log"],
            [{"op": "clip", "min": 3, "max": 3}, {"op": "min_max", "low": 2, "high": 5}],
        ],
    )


class TestRobust(OperatorConformance):
    operator = "robust"
    chains = same(
        NUMBERS,
        [
            ["robust"],
            [{"op": "robust", "low_quantile": 0.1, "high_quantile": 0.6}, "log"],
            [{"op": "clip", "min": 3, "max": 3}, "robust"],
        ],
    )


class TestWinsorize(OperatorConformance):
    operator = "winsorize"
    chains = same(NUMBERS, [["winsorize"], [{"op": "winsorize", "low_quantile": 0.2, "high_quantile": 0.7}, "standardize"]])


class TestClip(OperatorConformance):
    operator = "clip"
    chains = same(
        NUMBERS,
        [
            [{"op": "clip", "min": -1.5, "max": 2}],
            [{"op": "clip", "max": 0}],
            [{"op": "clip", "low_quantile": 0.1, "high_quantile": 0.8}, "standardize"],
            [{"op": "clip", "min": 0, "high_quantile": 0.9}],
        ],
    )


class TestBin(OperatorConformance):
    operator = "bin"
    chains = same(
        NUMBERS,
        [["bin"], [{"op": "bin", "by": "uniform", "bins": 4}, "one_hot"], [{"op": "bin", "edges": [-1, 0, 2.5]}, "vocabulary"]],
    )


class TestOneHot(OperatorConformance):
    operator = "one_hot"
    chains = same(
        CATEGORIES,
        [["one_hot"], [{"op": "one_hot", "max_categories": 3}], [{"op": "one_hot", "min_count": 2}], [{"op": "one_hot", "min_count": 99}]],
    )


class TestVocabulary(OperatorConformance):
    operator = "vocabulary"
    chains = same(
        CATEGORIES,
        [
            ["vocabulary"],
            [{"op": "vocabulary", "max_size": 2, "min_count": 1}, "standardize"],
            [{"op": "vocabulary", "min_count": 99}],
            [{"op": "vocabulary", "order": "value", "min_count": 1}],
        ],
    )


class TestFrequency(OperatorConformance):
    operator = "frequency"
    chains = same(
        CATEGORIES,
        [
            ["frequency"],
            [{"op": "frequency", "measure": "count", "min_count": 2}, "standardize"],
            [{"op": "frequency", "measure": "log_count", "max_size": 3}],
            [{"op": "frequency", "min_count": 99}],
        ],
    )


class TestHash(OperatorConformance):
    operator = "hash"
    chains = same(CATEGORIES, [["hash"], [{"op": "hash", "buckets": 5, "seed": 42}, "one_hot"], [{"op": "hash", "buckets": 2**24 - 1}]])


class TestEmbedding(OperatorConformance):
    operator = "embedding"
    chains = same(CATEGORIES, [["embedding"], [{"op": "embedding", "width": 3, "max_size": 2, "min_count": 1}]])


class TestNgramTarget(OperatorConformance):
    operator = "ngram_target"
    chains = {
        "string": [
            [{"op": "ngram_target", "buckets": 512}],
            [{"op": "ngram_target", "n": [3], "buckets": 97, "smooth": 0.0, "max_length": 5}, "impute"],
        ]
    }


class TestTextStats(OperatorConformance):
    operator = "text_stats"
    chains = {
        "string": [
            ["text_stats"],
            [{"op": "text_stats", "counts": ["words"]}, "impute"],
            [{"op": "text_stats", "counts": ["punctuation", "characters"], "max_length": 2}, "log"],
        ]
    }


class TestHashNgrams(OperatorConformance):
    operator = "hash_ngrams"
    chains = {
        "string": [
            ["hash_ngrams"],
            [{"op": "hash_ngrams", "n": 2, "buckets": 7, "seed": 42}, "log"],
            [{"op": "hash_ngrams", "n": 8, "buckets": 5, "max_length": 3}],
            ["impute", {"op": "hash_ngrams", "buckets": 3, "max_length": 1}],
        ]
    }


class TestTarget(OperatorConformance):
    operator = "target"
    chains = same(
        CATEGORIES,
        [
            ["target"],
            [{"op": "target", "smooth": 3, "min_count": 2}, "standardize"],
            [{"op": "target", "smooth": "own", "max_size": 2}],
            [{"op": "target", "min_count": 99}],
        ],
    )
    derived = ((("string", "int64"), ["cross", "target"]), (("string", "boolean"), ["cross", {"op": "target", "smooth": 0}]))


class TestCross(OperatorConformance):
    operator = "cross"
    derived = (
        (("string", "string"), ["cross", {"op": "one_hot", "max_categories": 30}]),
        (("string", "int64", "boolean"), ["cross", {"op": "vocabulary", "min_count": 1}]),
        (("float64", "int64"), ["bin", "cross", "frequency"]),
        (("boolean", "boolean"), ["cross", "one_hot"]),
        (("string", "int64", "boolean"), ["cross", {"op": "hash", "buckets": 31}]),
        (("timestamp",), [{"op": "date_parts", "parts": ["weekday", "hour"]}, "cross", {"op": "one_hot", "min_count": 1}]),
    )


class TestPca(OperatorConformance):
    operator = "pca"
    tolerance = 1e-6
    least = 1e-5
    derived = (
        (("float32", "float32", "boolean"), ["impute", {"op": "clip", "min": -9, "max": 9}, "standardize", "pca"]),
        (("float64", "int64", "boolean"), [{"op": "clip", "min": -9, "max": 9}, {"op": "pca", "components": 3}, "standardize"]),
    )


class TestDateParts(OperatorConformance):
    operator = "date_parts"
    every = ["year", "quarter", "month", "day", "weekday", "weekend", "day_of_year", "hour", "minute", "second"]
    chains = {
        "timestamp": [
            ["date_parts"],
            [{"op": "date_parts", "parts": every}],
            [{"op": "date_parts", "parts": every[::-1], "timezone": "America/New_York"}],
            [{"op": "date_parts", "parts": ["hour"], "timezone": "Asia/Kolkata"}, "one_hot"],
            [{"op": "date_parts", "parts": ["month", "hour"]}, "impute", "standardize"],
        ]
    }


class TestCyclical(OperatorConformance):
    operator = "cyclical"
    chains = {
        **same(NUMBERS, [[{"op": "cyclical", "period": 24}], ["impute", {"op": "cyclical", "period": 0.7}, "standardize"]]),
        "timestamp": [
            [{"op": "date_parts", "parts": TestDateParts.every}, "cyclical"],
            [{"op": "date_parts", "parts": ["hour"]}, "cyclical"],
            [{"op": "date_parts", "parts": ["year", "hour"]}, {"op": "cyclical", "period": 12}],
        ],
    }


@dataclass(frozen=True, kw_only=True)
class Power:
    """x to a power: an operator that no table knows."""

    exponent: int = 2
    """The power."""

    accepts: ClassVar[tuple[Kind, ...]] = ("number",)

    def fit(self, kind: Kind) -> Fitted:
        return {}

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        with np.errstate(all="ignore"):
            return Made({f"{name}^{self.exponent}": numbers(values.data**self.exponent)})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        made = graph.node("Pow", graph.numbers(block), graph.constant([[float(self.exponent)]], np.float64))
        return block.take([f"{name}^{self.exponent}" for name in block.names], made, DOUBLE)


class WrongPower(Power):
    """Its nodes do something else than its reference."""

    def reference(self, name: str, values: Values, fitted: Fitted) -> Made:
        return Made({f"{name}^{self.exponent}": numbers(values.data)})


class TestAnOperatorOfOnesOwn(OperatorConformance):
    operator = Power  # type: ignore[assignment]
    chains = same(NUMBERS, [[{"op": Power}], ["impute", {"op": Power, "exponent": 3}, "standardize"]])


def test_the_suite_sees_a_route_that_differs() -> None:
    class Suite(OperatorConformance):
        operator: ClassVar[Any] = WrongPower
        chains: ClassVar[dict[str, Any]] = {"float64": [[{"op": WrongPower}]]}

    with pytest.raises(AssertionError, match=r"float64 0a\^2 by records"):
        Suite().test_every_route_answers_as_the_reference()


def test_every_operator_of_the_table_is_here() -> None:
    covered = {suite.operator for suite in OperatorConformance.__subclasses__()}
    assert set(TABLE["operator"]) <= covered
