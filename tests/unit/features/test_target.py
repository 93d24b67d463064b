"""Target encoding: the numbers of scikit-learn, and no row that is told its own target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import TargetEncoder

from tidemill.core.errors import ConfigError
from tidemill.core.folds import FOLD, Folds
from tidemill.core.graph import BulkGraph
from tidemill.core.schema import Schema
from tidemill.features.graph import build_graph
from tidemill.features.reference import features as reference
from tidemill.features.stage import fit_table

ROWS = 4000
RANDOM = np.random.default_rng(5)
CITY = RANDOM.choice([f"city {i}" for i in range(40)], ROWS, p=RANDOM.dirichlet(np.ones(40)))
LEVEL = {city: RANDOM.normal() for city in np.unique(CITY)}
TRUTH = np.array([LEVEL[city] for city in CITY])
NOISE = RANDOM.normal(size=ROWS)
TABLE = pa.table(
    {
        "city": pa.array(CITY),
        "x": NOISE,
        "binary": RANDOM.random(ROWS) < 1 / (1 + np.exp(-TRUTH)),
        "class": np.array(["low", "mid", "top"])[np.digitize(TRUTH + RANDOM.normal(size=ROWS), [-0.5, 0.5])],
        "number": 1000 + TRUTH + RANDOM.normal(size=ROWS),
    }
)
TARGETS: dict[str, dict[str, Any]] = {
    "binary": {"target": "binary", "classes": [False, True]},
    "multiclass": {"target": "class", "classes": ["low", "mid", "top"]},
    "continuous": {"target": "number"},
}


def fitted(target: dict[str, Any], step: Any, table: pa.Table = TABLE) -> tuple[dict[str, Any], bytes]:
    features = {"city": [step], "drop": [name for name in table.column_names if name not in ("city", "x", target["target"])]}
    return fit_table(table, features, target=target, batch_rows=999)


def trained_on(description: dict[str, Any], table: pa.Table = TABLE) -> tuple[np.ndarray, np.ndarray]:
    """Each row's fold, and its features as a model is trained on them."""
    folds = Folds.from_json(description["folds"])
    batch = next(folds.beside(table.combine_chunks().to_batches()))
    graph = BulkGraph(build_graph(description, training=True)[0], folds.schema(Schema.from_json(description["inputs"])))
    return batch.column(FOLD).to_numpy(), graph.run(batch)["features"]


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize(("ours", "theirs"), [("own", "auto"), (7.5, 7.5)])
def test_the_encodings_are_those_of_scikit_learn(kind: str, ours: Any, theirs: Any) -> None:
    target = TARGETS[kind]
    description, graph = fitted(target, {"op": "target", "smooth": ours})
    y = TABLE[target["target"]].to_numpy(zero_copy_only=False)
    y = y.astype(int) if kind == "binary" else y
    x = CITY.astype(object)[:, None]
    theirs_N = TargetEncoder(smooth=theirs, target_type=kind).fit(x, y).transform(x)
    width = theirs_N.shape[1]
    answer = BulkGraph(graph, Schema.from_json(description["inputs"])).run(TABLE.combine_chunks().to_batches()[0])["features"]
    place = [description["names"].index(name) for name in description["names"] if name.startswith("city")]
    assert len(place) == width
    np.testing.assert_allclose(answer[:, place], theirs_N, rtol=2e-6)
    # And fold by fold, given the same folds.
    fold_N, made = trained_on(description)
    for fold in range(5):
        learnt = TargetEncoder(smooth=theirs, target_type=kind).fit(x[fold_N != fold], y[fold_N != fold])
        np.testing.assert_allclose(made[fold_N == fold][:, place], learnt.transform(x[fold_N == fold]), rtol=2e-6)


def test_names_are_the_column_or_one_for_each_class() -> None:
    assert fitted(TARGETS["binary"], "target")[0]["names"] == ["city", "x"]
    assert fitted(TARGETS["multiclass"], "target")[0]["names"] == ["city.low", "city.mid", "city.top", "x"]


def test_null_is_a_category_and_what_was_not_seen_or_is_rare_is_the_mean_of_all() -> None:
    table = pa.table({"c": ["a"] * 6 + [None] * 3 + ["b"], "y": [1.0] * 3 + [0.0] * 3 + [1.0] * 3 + [5.0]})
    description, _ = fit_table(table, {"c": [{"op": "target", "smooth": 0, "min_count": 2}]}, target={"target": "y"})
    made = reference(description, pa.table({"c": ["a", None, "b", "c"]}))
    np.testing.assert_allclose(made[:, 0], [0.5, 1.0, 1.1, 1.1])


def test_strength_of_auto_is_the_variance_within_over_that_between() -> None:
    # 200 categories of 20 rows; between them variance 4, within 9: each mean counts 20 / (20 + 9 / 4).
    random = np.random.default_rng(3)
    level = random.normal(0, 2, 200)
    y = np.repeat(level, 20) + random.normal(0, 3, 4000)
    table = pa.table({"c": np.repeat([f"c{i}" for i in range(200)], 20), "y": y, "x": random.random(4000)})
    description, _ = fit_table(table, {"c": ["target"]}, target={"target": "y"})
    fitted = description["columns"]["c"][0]["fitted"]
    values = dict(zip(fitted["categories"], (row[-1] for row in fitted["values"]), strict=True))
    mean = {f"c{i}": y[i * 20 : i * 20 + 20].mean() for i in range(200)}
    trust = [(values[c] - y.mean()) / (mean[c] - y.mean()) for c in values]
    assert np.ptp(trust) < 1e-3
    assert trust[0] == pytest.approx(20 / (20 + 9 / 4), rel=0.02)


@pytest.mark.parametrize("smooth", ["auto", "own", 0, 20])
@pytest.mark.parametrize("keys", [[], ["id"]])
def test_a_category_that_says_nothing_gives_no_signal_to_train_on(smooth: Any, keys: list[str]) -> None:
    random = np.random.default_rng(17)
    size = 6000
    y = random.random(size) < 0.3
    table = pa.table({"c": [f"c{i}" for i in random.integers(0, 2000, size)], "x": random.random(size), "id": np.arange(size), "y": y})
    target = {"target": "y", "classes": [False, True], "keys": keys}
    features = {"c": [{"op": "target", "smooth": smooth}], "drop": [] if keys else ["id"]}
    description, _ = fit_table(table, features, target=target)
    place = description["names"].index("c")
    told = reference(description, table)[:, place]
    _, made = trained_on(description, table)
    # Without folds a model would believe it; with them a little of the opposite is left, as in every leave-out.
    if smooth != "auto":
        assert roc_auc_score(y, told) > 0.75
    assert roc_auc_score(y, made[:, place]) == pytest.approx(0.5, abs=0.06)


def test_a_copy_of_a_row_is_in_its_fold() -> None:
    random = np.random.default_rng(2)
    once = pa.table({"c": [f"c{i}" for i in range(900)], "x": random.random(900), "y": random.random(900) < 0.5})
    table = pa.concat_tables([once, once.slice(0, 500)])
    description, _ = fit_table(table, {"c": [{"op": "target", "smooth": 0}]}, target={"target": "y", "classes": [False, True]})
    assert description["folds"] == {"count": 5, "columns": ["c", "x"]}
    fold_N, made = trained_on(description, table)
    assert (fold_N[900:] == fold_N[:500]).all()
    # Every category is in one fold, so that nothing is known of it in its rows.
    priors = np.array(description["columns"]["c"][0]["fitted"]["prior"], np.float32)
    np.testing.assert_array_equal(made[:, description["names"].index("c")], priors[fold_N])


def test_folds_go_by_position_where_rows_repeat_by_nature() -> None:
    random = np.random.default_rng(2)
    table = pa.table(
        {"c": np.array(["a", "b", "c"])[np.arange(3000) % 3], "y": random.random(3000) < np.array([0.2, 0.5, 0.8])[np.arange(3000) % 3]}
    )
    description, _ = fit_table(table, {"c": ["target"]}, target={"target": "y", "classes": [False, True]}, batch_rows=77)
    assert description["folds"] == {"count": 5, "columns": []}
    again, _ = fit_table(table, {"c": ["target"]}, target={"target": "y", "classes": [False, True]}, batch_rows=1000)
    assert description == again
    fold_N, made = trained_on(description, table)
    assert np.bincount(fold_N).min() > 500
    np.testing.assert_allclose(made[:, 0], np.array([0.2, 0.5, 0.8])[np.arange(3000) % 3], atol=0.07)
    np.testing.assert_array_equal(reference(description, table, fold_N), made)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(-3, 3)), min_size=4, max_size=30), st.integers(2, 6))
def test_a_row_is_told_what_the_other_folds_teach(rows: list[tuple[str | None, int]], count: int) -> None:
    x = [float(i) for i in range(len(rows))]
    table = pa.table({"c": pa.array([c for c, _ in rows], pa.string()), "x": x, "y": pa.array([float(y) for _, y in rows])})
    if len({c for c, _ in rows}) < 2:
        return
    description, _ = fit_table(table, {"folds": count, "c": [{"op": "target", "smooth": 2}]}, target={"target": "y"}, batch_rows=4)
    fold_N, made = trained_on(description, table)
    for i, (category, _) in enumerate(rows):
        others = [y for (c, y), fold in zip(rows, fold_N, strict=True) if fold != fold_N[i]]
        of_it = [y for (c, y), fold in zip(rows, fold_N, strict=True) if fold != fold_N[i] and c == category]
        prior = np.mean(others) if others else 0.0
        assert made[i, 0] == pytest.approx((sum(of_it) + 2 * prior) / (len(of_it) + 2), abs=1e-5)


def test_what_is_given_up_for_memory_still_counts_in_the_mean_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(6)
    names = [*np.repeat([f"often {i}" for i in range(5)], 100), *(f"once {i}" for i in range(500))]
    table = pa.table(
        {"c": pa.array(names).take(pa.array(random.permutation(1000))), "x": random.random(1000), "y": random.normal(5, 1, 1000)}
    )
    step = {"c": [{"op": "target", "smooth": 1}]}
    whole, _ = fit_table(table, step, target={"target": "y"}, batch_rows=50)
    monkeypatch.setattr("tidemill.features.statistics.MAX_CATEGORIES", 120)
    less, _ = fit_table(table, step, target={"target": "y"}, batch_rows=50)
    of_whole, of_less = (made["columns"]["c"][0]["fitted"] for made in (whole, less))
    assert len(of_whole["categories"]) == 505
    assert len(of_less["categories"]) < 120
    assert set(of_less["categories"]) > {f"often {i}" for i in range(5)}
    np.testing.assert_allclose(of_less["prior"], of_whole["prior"], rtol=1e-6)
    for name, row in zip(of_less["categories"], of_less["values"], strict=True):
        if name.startswith("often"):
            np.testing.assert_allclose(row, of_whole["values"][of_whole["categories"].index(name)], rtol=1e-6)


def test_without_a_target_there_is_nothing_to_learn_from() -> None:
    with pytest.raises(ConfigError, match=r"features\.city: an operator that learns from the target must be given it"):
        fit_table(TABLE, {"city": ["target"]})
    with pytest.raises(ConfigError, match="smooth"):
        fit_table(TABLE, {"city": [{"op": "target", "smooth": -1}]}, target=TARGETS["binary"])
