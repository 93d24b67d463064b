from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill.core.artifact import Artifact, write_json, writing
from tidemill.core.errors import DataError
from tidemill.core.events import Events
from tidemill.core.folds import FOLD, Folds
from tidemill.core.project import from_tree
from tidemill.features import stage
from tidemill.features.reference import features as reference
from tidemill.train.matrix import FeatureMatrix, class_indices

Stages = Callable[..., tuple[Artifact, Artifact]]


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_every_pass_gives_the_rows_of_the_files_in_order(finished_stages: Stages, cache_bytes: int) -> None:
    data, features = finished_stages("multiclass", weight=True)
    matrix = FeatureMatrix(data, features, "train", cache_bytes=cache_bytes, batch_rows=300)
    table = pa.concat_tables(pq.read_table(path) for path in sorted((data.path / "train").glob("*.parquet")))
    for _ in range(2):
        batches = list(matrix.batches())
        assert max(len(batch.y_N) for batch in batches) <= 300
        x_NF = np.concatenate([batch.x_NF for batch in batches])
        assert x_NF.shape == (matrix.num_rows, matrix.num_features) == (2000, 3)
        assert x_NF.dtype == np.float32
        np.testing.assert_allclose(x_NF[:, 0], table["distance"].to_numpy(), rtol=1e-6)
        np.testing.assert_array_equal(x_NF[:, 1], table["stops"].to_numpy())
        np.testing.assert_array_equal(
            np.concatenate([batch.y_N for batch in batches]), [["early", "late", "ontime"].index(v) for v in table["outcome"].to_pylist()]
        )
        np.testing.assert_array_equal(np.concatenate([batch.weight_N for batch in batches]), table["importance"].to_numpy())
    y_N, weight_N = matrix.targets()
    np.testing.assert_array_equal(y_N, np.concatenate([batch.y_N for batch in batches]))
    np.testing.assert_array_equal(weight_N, table["importance"].to_numpy())


def test_only_what_fits_is_kept(finished_stages: Stages) -> None:
    data, features = finished_stages()
    size = 2000 * 3 * 4
    for cache_bytes, kept in ((size, True), (size - 1, False)):
        matrix = FeatureMatrix(data, features, "train", cache_bytes=cache_bytes)
        first, second = list(matrix.batches()), list(matrix.batches())
        assert all(a.x_NF is b.x_NF for a, b in zip(first, second, strict=True)) is kept


def test_a_pass_that_was_left_early_keeps_nothing(finished_stages: Stages) -> None:
    data, features = finished_stages()
    matrix = FeatureMatrix(data, features, "train", cache_bytes=10**9, batch_rows=300)
    next(matrix.batches())
    assert sum(len(batch.y_N) for batch in matrix.batches()) == 2000


def test_splits_that_share_a_graph_see_the_same_features(finished_stages: Stages) -> None:
    data, features = finished_stages()
    train = FeatureMatrix(data, features, "train", batch_rows=300)
    alone, beside = (FeatureMatrix(data, features, "valid", batch_rows=300, like=like) for like in (None, train))
    for _, a, b in zip(train.batches(), alone.batches(), beside.batches(), strict=False):  # in turn
        np.testing.assert_array_equal(a.x_NF, b.x_NF)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("batch_rows", [300, 65_536])
@pytest.mark.parametrize("by", ["keys", "values", "position"])
def test_training_rows_see_what_the_other_folds_teach_and_other_rows_what_all_do(
    finished_stages: Stages, tmp_path: Path, task: str, batch_rows: int, by: str
) -> None:
    data, _ = finished_stages(task)
    facts = data.read_json("schema.json")
    raw = facts["columns"][1:3] if by == "position" else facts["columns"][:3]
    columns = [*raw, {"name": "outcome", "type": "string", "nullable": False}]
    write_json(data.path / "schema.json", facts | {"keys": ["id"] if by == "keys" else [], "columns": columns})
    steps = {"carrier": ["target"], "both": {"of": ["carrier", "stops"], "steps": ["cross", "target"]}}
    project = from_tree({"name": "n", "data": {"source": "x.parquet", "target": "outcome"}, "features": steps})
    with writing(tmp_path / "fitted", stage="features") as out:
        stage.run(project, data, out, events=Events())
    features = Artifact.open(tmp_path / "fitted")
    description = features.read_json("features.json")
    folds = Folds.from_json(description["folds"])
    assert folds.columns == {"keys": ("id",), "values": ("distance", "stops", "carrier"), "position": ()}[by]
    for split in ("train", "valid"):
        matrix = FeatureMatrix(data, features, split, batch_rows=batch_rows, threads=2)
        x_NF = np.concatenate([batch.x_NF for batch in matrix.batches()])
        table = pa.concat_tables(pq.read_table(path) for path in sorted((data.path / split).glob("*.parquet")))
        (batch,) = folds.beside(table.combine_chunks().to_batches())
        fold_N = batch.column(FOLD).to_numpy() if split == "train" else None
        np.testing.assert_allclose(x_NF, reference(description, table, fold_N), rtol=3e-7)
        other = reference(description, table, None if split == "train" else batch.column(FOLD).to_numpy())
        assert (x_NF != other)[:, ~np.isnan(x_NF).any(axis=0)].mean() > 0.4


def test_a_split_without_files_is_named(finished_stages: Stages) -> None:
    data, features = finished_stages()
    with pytest.raises(DataError, match="extra must hold Parquet files"):
        FeatureMatrix(data, features, "extra")


@pytest.mark.parametrize("bad", [None, -1.0, float("nan"), float("inf")])
def test_a_bad_weight_is_named(finished_stages: Stages, bad: float | None) -> None:
    data, features = finished_stages(weight=True, rows=100)
    (path,) = (data.path / "train").glob("*.parquet")
    table = pq.read_table(path)
    weights = table["importance"].to_pylist()
    weights[50] = bad
    pq.write_table(table.set_column(table.schema.get_field_index("importance"), "importance", pa.array(weights, pa.float64())), path)
    with pytest.raises(DataError, match="importance") as caught:
        FeatureMatrix(data, features, "train").targets()
    assert caught.value.field == "importance"


@pytest.mark.parametrize(
    ("values", "classes"),
    [([True, False, True], [False, True]), ([7, 5, 7], [5, 7]), (["b", "a", "b"], ["a", "b"]), (["雨", "晴", "雨"], ["晴", "雨"])],
)
def test_classes_of_every_type_are_found(values: list[object], classes: list[object]) -> None:
    for array in (pa.array(values), pa.array(values).dictionary_encode()):
        assert class_indices(array, classes, name="y").tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(("values", "said"), [(["a", None], "None"), (["a", "c"], "'c'")])
def test_a_strange_class_is_named(values: list[str | None], said: str) -> None:
    with pytest.raises(DataError, match=f"target 'y' must be one of its 2 classes, got {said}"):
        class_indices(pa.array(values), ["a", "b"], name="y")
