"""One body over every selector of features: what must leave leaves, what must stay stays."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest

from tidemill.core.errors import ConfigError, NotFound, Unsupported
from tidemill.core.events import Events
from tidemill.core.load import TABLE, load
from tidemill.features.select.gram import grams, scale_of
from tidemill.features.select.l1 import lasso_path
from tidemill.features.select.run import select
from tidemill.features.select.sample import sample
from tidemill.features.select.selector import Narrowed, Rows, step_of

TASKS: dict[str, int | None] = {"binary": 2, "multiclass": 3, "regression": None}


class Table:
    """A matrix over arrays, in batches of 700 rows."""

    def __init__(self, x_NF: np.ndarray, y_N: np.ndarray, task: str, *, weight_N: np.ndarray | None = None, names: Any = None) -> None:
        self.rows = Rows(x_NF.astype(np.float32), y_N.astype(np.float64), weight_N)
        self.names = list(names or (f"f{i}" for i in range(x_NF.shape[1])))
        self.num_rows, self.num_features = x_NF.shape
        self.task, self.num_classes = task, TASKS[task]
        self.origins = {name: name.partition(".")[0] for name in self.names}

    def batches(self) -> Iterator[Rows]:
        for start in range(0, self.num_rows, 700):
            yield Rows(*(None if part is None else part[start : start + 700] for part in self.rows))  # type: ignore[arg-type]


NAMES = ["useful", "noise.a", "twin", "flat", "rare", "bent", "noise.b", "gone"]


def table(task: str, *, seed: int = 0, rows: int = 3000) -> Table:
    """Two features of use, one of them bent; a twin; noise of one column; a constant, a nearly constant and a missing feature."""
    random = np.random.default_rng(seed)
    useful, bent, *noise = random.normal(size=(4, rows))
    x_NF = np.stack([useful, noise[0], useful * -2 + 1e-3 * noise[1], np.full(rows, 3.0), np.arange(rows) == 7, bent, noise[1], np.full(rows, np.nan)], axis=1)  # fmt: skip
    score_N = 2 * useful + 1.5 * np.abs(bent) + random.normal(size=rows) / 2
    y_N = {"binary": score_N > 1, "multiclass": np.digitize(score_N, [0, 2]), "regression": score_N}[task]
    x_NF[::50, 1] = np.nan
    return Table(x_NF, y_N, task, names=NAMES)


class SelectorConformance:
    """The tests that a selector must pass; set `table` (its step) and what must leave and stay."""

    step: ClassVar[dict[str, Any]]
    leaves: ClassVar[set[str]]
    stays: ClassVar[set[str]]

    @pytest.mark.parametrize("task", list(TASKS))
    def test_what_leaves_and_what_stays(self, task: str) -> None:
        found = self._found(table(task))
        assert self.leaves <= found.keys()
        assert not self.stays & found.keys()
        assert all(one.reason and "\n" not in one.reason for one in found.values())

    def test_the_same_rows_and_seed_give_the_same(self) -> None:
        assert self._found(table("binary")) == self._found(table("binary"))

    def test_weights_of_one_change_nothing(self) -> None:
        weighted = table("regression")
        weighted.rows = weighted.rows._replace(weight_N=np.ones(weighted.num_rows))
        assert self._found(weighted).keys() == self._found(table("regression")).keys()

    def test_it_is_a_frozen_dataclass_that_says_what_it_does(self) -> None:
        struct = load("selector", self.step["op"])
        assert dataclasses.is_dataclass(struct)
        assert struct.__dataclass_params__.frozen
        assert struct.__doc__
        assert not struct.__doc__.startswith(f"{struct.__name__}(")

    def test_few_rows_and_one_feature(self) -> None:
        few = Table(np.arange(8.0).reshape(8, 1), np.arange(8) % 2, "binary")
        chosen = select([step_of(self.step, "features.select[0]", "test")], few, seed=0, threads=1, events=Events())
        assert chosen.reasons == {}

    def _found(self, matrix: Table) -> dict[str, Any]:
        found: dict[str, Any] = step_of(self.step, "features.select[0]", "test").selector.select(matrix, seed=3, threads=1)
        return found


class TestVariance(SelectorConformance):
    step: ClassVar[dict[str, Any]] = {"op": "variance"}
    leaves: ClassVar[set[str]] = {"flat", "rare", "gone"}
    stays: ClassVar[set[str]] = {"useful", "twin", "bent", "noise.a", "noise.b"}


class TestCorrelation(SelectorConformance):
    step: ClassVar[dict[str, Any]] = {"op": "correlation", "max": 0.99}
    leaves: ClassVar[set[str]] = set()
    stays: ClassVar[set[str]] = {"bent", "noise.a", "noise.b", "flat"}

    def test_one_of_two_twins_leaves_the_one_that_says_less(self) -> None:
        found = self._found(table("regression"))
        assert len({"useful", "twin"} & found.keys()) == 1
        x_NF = np.random.default_rng(1).normal(size=(2000, 2))
        x_NF[:, 0] += x_NF[:, 1] * 10
        given = Table(x_NF, x_NF[:, 1], "regression", names=["blurred", "clear"])
        (gone,) = self._found(given)
        assert gone == "blurred"


class TestMutualInformation(SelectorConformance):
    step: ClassVar[dict[str, Any]] = {"op": "mutual_information"}
    leaves: ClassVar[set[str]] = {"flat", "gone"}
    stays: ClassVar[set[str]] = {"useful", "twin", "bent"}

    def test_so_many_stay_the_most_informative(self) -> None:
        found = step_of({"op": "mutual_information", "keep": 2}, "p", "test").selector.select(table("regression"), seed=0, threads=1)
        assert set(NAMES) - found.keys() == {"useful", "twin"}

    def test_noise_is_seldom_above_chance(self) -> None:
        random = np.random.default_rng(5)
        noise = Table(random.normal(size=(2000, 200)), random.integers(0, 2, 2000), "binary")
        assert len(self._found(noise)) >= 185


class TestL1(SelectorConformance):
    step: ClassVar[dict[str, Any]] = {"op": "l1"}
    leaves: ClassVar[set[str]] = {"noise.a", "flat", "gone"}
    stays: ClassVar[set[str]] = set()

    def test_so_many_stay_at_most(self) -> None:
        found = step_of({"op": "l1", "keep": 1, "rule": "least_error"}, "p", "test").selector.select(table("binary"), seed=0, threads=1)
        assert len(set(NAMES) - found.keys()) == 1

    def test_the_path_is_the_one_of_scikit_learn(self) -> None:
        from sklearn.linear_model import Lasso

        random = np.random.default_rng(2)
        x_NF = random.normal(size=(500, 12)) @ random.normal(size=(12, 12))
        y_N = x_NF @ np.r_[3, -2, np.zeros(10)] + random.normal(size=500)
        given = Table(x_NF, y_N, "regression")
        scale = scale_of(given)
        (gram,) = grams(given, scale)
        z_NF, target_N = scale.features(given.rows.x_NF), scale.targets(y_N[:, None])[:, 0]
        for penalty, b_FT in zip([0.3, 0.03], lasso_path(gram, np.array([0.3, 0.03]), tolerance=1e-9), strict=True):
            other = Lasso(alpha=penalty, fit_intercept=False, tol=1e-10, max_iter=100_000).fit(z_NF, target_N)
            np.testing.assert_allclose(b_FT[:, 0], other.coef_, atol=1e-6)

    def test_products_fold_by_fold_add_up(self) -> None:
        given = table("multiclass")
        scale = scale_of(given)
        (whole,) = grams(given, scale)
        parts = grams(given, scale, folds=4)
        assert sum(part.weight for part in parts) == whole.weight == given.num_rows
        np.testing.assert_allclose(sum(part.xx_FF for part in parts), whole.xx_FF, atol=1e-6)
        np.testing.assert_allclose(np.diag(whole.xx_FF)[[0, 5]], given.num_rows)


class TestImportance(SelectorConformance):
    step: ClassVar[dict[str, Any]] = {"op": "importance", "rounds": 20, "fits": 2}
    leaves: ClassVar[set[str]] = {"flat", "gone"}
    stays: ClassVar[set[str]] = {"bent"}


class TestDropColumn(SelectorConformance):
    step: ClassVar[dict[str, Any]] = {"op": "drop_column", "rounds": 15}
    leaves: ClassVar[set[str]] = {"flat", "gone"}
    stays: ClassVar[set[str]] = {"bent"}

    def test_the_features_of_a_column_leave_together_and_a_twin_alone(self) -> None:
        found = self._found(table("regression"))
        assert ("noise.a" in found) == ("noise.b" in found)
        assert len({"useful", "twin"} & found.keys()) <= 1


def test_every_selector_of_the_table_is_here() -> None:
    assert set(TABLE["selector"]) == {suite.step["op"] for suite in SelectorConformance.__subclasses__()}


def test_steps_follow_each_other_and_say_what_they_did() -> None:
    heard: list[Any] = []
    steps = [step_of(one, "p", "test") for one in ({"op": "variance"}, {"op": "correlation", "max": 0.99})]
    chosen = select(steps, table("binary"), seed=0, threads=1, events=Events(heard.append))
    first, second = chosen.description["steps"]
    assert (first["before"], first["after"], second["before"], second["after"]) == (8, 5, 5, 4)
    assert chosen.description["dropped"]["flat"]["by"] == "variance"
    assert chosen.reasons["flat"] == "variance: every row is 3"
    assert set(chosen.reasons) == set(chosen.description["dropped"])
    assert [event.kind for event in heard] == ["features.selected"] * 2
    assert "leaves out 3 of 8 features: " in heard[0].message


def test_a_step_that_would_leave_nothing_leaves_all() -> None:
    heard: list[Any] = []
    constant = Table(np.ones((50, 2)), np.arange(50) % 2, "binary")
    chosen = select([step_of({"op": "variance"}, "p", "test")], constant, seed=0, threads=1, events=Events(heard.append))
    assert chosen.reasons == {}
    assert heard[0].level == "warning"


def test_a_sample_is_rows_of_the_matrix_in_order() -> None:
    given = Table(np.arange(5000.0).reshape(-1, 1), np.arange(5000), "regression")
    drawn = sample(given, 1234, seed=9)
    assert drawn.num_rows == 1234
    assert (np.diff(drawn.rows.y_N) > 0).all()
    np.testing.assert_array_equal(drawn.rows.x_NF[:, 0], drawn.rows.y_N)
    np.testing.assert_array_equal(sample(given, 10**6, seed=9).rows.y_N, given.rows.y_N)
    assert not np.array_equal(sample(given, 1234, seed=10).rows.y_N, drawn.rows.y_N)


def test_a_narrowed_matrix_has_the_features_that_are_kept() -> None:
    narrowed = Narrowed(table("binary"), ["bent", "useful"])
    for whole, part in itertools.zip_longest(table("binary").batches(), narrowed.batches()):
        np.testing.assert_array_equal(part.x_NF, whole.x_NF[:, [5, 0]])
    assert dict(narrowed.origins) == {"bent": "bent", "useful": "useful"}


def test_products_that_do_not_fit_are_refused_before_they_are_made() -> None:
    wide = Table(np.zeros((2, 20_000)), np.arange(2), "binary")
    with pytest.raises(Unsupported, match="products of 20,000 features need"):
        step_of({"op": "correlation"}, "p", "test").selector.select(wide, seed=0, threads=1)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"op": "varience"}, NotFound, "varience"),
        ({"op": "correlation", "max": 2}, ConfigError, r"p\.max"),
        ({"op": "l1", "keeps": 2}, ConfigError, r"p\.keeps"),
        ({}, ConfigError, "must be a selector's name"),
        ({"op": "tidemill.features.clip:Clip"}, ConfigError, "must be a selector"),
    ],
)
def test_a_wrong_step_is_named(given: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        step_of(given, "p", "test")
