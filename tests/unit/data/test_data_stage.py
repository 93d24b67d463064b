"""The data stage from sources to split rows, on small real tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tidemill.core.engine import EngineConfig, Source
from tidemill.core.errors import ConfigError, DataError, TidemillError
from tidemill.core.events import Event, Events
from tidemill.core.project import from_tree
from tidemill.core.schema import Schema
from tidemill.data import stage
from tidemill.data.table import checked_table
from tidemill.engines.local.engine import LocalEngine

Run = Callable[..., dict[str, Any]]


def trips(rows: int = 2_000, seed: int = 0) -> pa.Table:
    """Trips with a number, a text with nulls, a time and a target that they predict in part."""
    rng = np.random.default_rng(seed)
    distance = rng.normal(500.0, 100.0, rows).round(1)
    carrier = rng.choice(np.array(["AA", "UA", "中華", ""]), rows)
    return pa.table(
        {
            "id": np.arange(rows),
            "distance": distance,
            "carrier": pa.array(carrier, mask=rng.random(rows) < 0.1),
            "at": pa.array(rng.integers(0, 365 * 24, rows) * 3_600_000_000, pa.timestamp("us", tz="UTC")),
            "late": distance + rng.normal(0, 100, rows) > 520,
        }
    )


class Stage:
    """Runs the data stage of a project in a folder and reads what it wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self.count = 0

    def project(self, data: dict[str, Any] | None = None, **tree: Any) -> Any:
        whole = {"source": "trips.parquet", "target": "late", **(data or {})}
        return from_tree({"name": "trips", "engine": {"threads": 2, "memory": "512MiB"}, "data": whole, **tree}, folder=self.folder)

    def run(self, data: dict[str, Any] | None = None, *, sample: float = 1.0, **tree: Any) -> dict[str, Any]:
        self.count += 1
        self.out = self.folder / "out" / str(self.count)
        self.out.mkdir(parents=True)
        return stage.run(self.project(data, **tree), self.out, events=Events(self.events.append), sample=sample)

    def json(self, name: str) -> Any:
        return json.loads((self.out / name).read_text())

    def table(self, split: str) -> pa.Table:
        return pa.concat_tables([pq.read_table(path) for path in sorted((self.out / split).glob("*.parquet"))])

    def warned(self, kind: str) -> list[str]:
        return [event.message for event in self.events if event.kind == kind and event.level == "warning"]


@pytest.fixture
def data(tmp_path: Path) -> Stage:
    pq.write_table(trips(), tmp_path / "trips.parquet")
    return Stage(tmp_path)


class TestOutput:
    def test_files_schema_and_facts(self, data: Stage) -> None:
        facts = data.run()
        assert sorted(path.name for path in data.out.iterdir()) == [
            "checks.json", "leakage.json", "profile.json", "schema.json", "test", "train", "valid",
        ]  # fmt: skip
        schema = data.json("schema.json")
        assert schema["task"] == "binary"
        assert schema["classes"] == [False, True]
        assert schema["target"] == "late"
        assert schema["keys"] == []
        assert schema["weight"] is None
        assert schema["rows"] == facts["rows"]
        assert sum(facts["rows"].values()) == 2_000
        by_name = {column["name"]: column for column in schema["columns"]}
        assert by_name["carrier"] == {"name": "carrier", "type": "string", "nullable": True}
        assert by_name["distance"] == {"name": "distance", "type": "float64", "nullable": False}
        for split in ("train", "valid", "test"):
            logical = Schema.from_json(schema["columns"]).to_arrow()
            assert data.table(split).cast(logical).schema.equals(logical)
            assert data.table(split).schema.field("id").type == pa.int16()  # 2,000 of them
            assert data.table(split).num_rows == schema["rows"][split]

    def test_every_row_is_in_one_split_as_it_came(self, data: Stage) -> None:
        data.run()
        rows = pa.concat_tables([data.table(split) for split in ("train", "valid", "test")]).sort_by("id")
        assert rows.to_pydict() == trips().to_pydict()

    def test_the_same_bytes_whatever_the_order_and_the_threads(self, data: Stage, tmp_path: Path) -> None:
        contents = []
        for threads, order in ((1, np.arange(2_000)), (4, np.random.default_rng(1).permutation(2_000))):
            pq.write_table(trips().take(pa.array(order)), tmp_path / "trips.parquet", row_group_size=300)
            data.run(engine={"threads": threads})
            contents.append({path.relative_to(data.out): path.read_bytes() for path in data.out.rglob("*") if path.is_file()})
        assert contents[0] == contents[1]

    def test_another_seed_gives_another_split(self, data: Stage) -> None:
        data.run()
        first = set(data.table("test")["id"].to_pylist())
        data.run(seed=1)
        assert set(data.table("test")["id"].to_pylist()) != first

    def test_more_rows_leave_nearly_every_row_where_it_was(self, data: Stage, tmp_path: Path) -> None:
        config = {"keys": ["id"]}
        data.run(config)
        first = {split: set(data.table(split)["id"].to_pylist()) for split in ("train", "test")}
        more = pa.concat_tables([trips(), trips(500, seed=5).set_column(0, "id", pa.array(range(2_000, 2_500)))])
        pq.write_table(more, tmp_path / "trips.parquet")
        data.run(config)
        moved = first["test"] - set(data.table("test")["id"].to_pylist())
        assert len(moved) < 20

    def test_csv_gives_the_same_rows_as_parquet(self, data: Stage, tmp_path: Path) -> None:
        data.run({"columns": ["id", "distance", "late"]})
        parquet = data.table("train")
        pa.csv.write_csv(trips(), tmp_path / "trips.csv")
        data.run({"columns": ["id", "distance", "late"], "source": "trips.csv"})
        assert data.table("train").equals(parquet)

    def test_columns_keeps_those_only(self, data: Stage) -> None:
        data.run({"columns": ["distance", "late"]})
        assert data.table("train").column_names == ["distance", "late"]

    def test_columns_that_are_not_kept_are_not_read(self, data: Stage, tmp_path: Path) -> None:
        """Told from the plan that the engine is given, and from a file whose other columns cannot be read."""
        config = data.project({"columns": ["distance", "late"]}).data
        with LocalEngine(EngineConfig(threads=1), scratch=tmp_path / "scratch") as engine:
            table, _ = checked_table(engine, engine.scan(Source(path=str(tmp_path / "trips.parquet"))), config)
            plan = engine.frame(table).to_native().explain()
        assert "distance" in plan
        assert "late" in plan
        assert "carrier" not in plan
        file = pq.ParquetFile(tmp_path / "trips.parquet")
        column = file.metadata.row_group(0).column(file.schema_arrow.names.index("carrier"))
        start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
        whole = bytearray((tmp_path / "trips.parquet").read_bytes())
        whole[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
        (tmp_path / "trips.parquet").write_bytes(whole)
        data.run({"columns": ["distance", "late"]})
        with pytest.raises(DataError):
            data.run({"columns": ["distance", "late", "carrier"]})

    def test_a_sample_is_a_share_of_the_rows_and_always_the_same(self, data: Stage) -> None:
        facts = data.run(sample=0.5)
        assert 900 < sum(facts["rows"].values()) < 1_100
        chosen = data.table("train")
        data.run({"sample": 0.5})
        assert data.table("train").equals(chosen)

    def test_a_stratified_sample_has_its_share_of_every_class(self, data: Stage, tmp_path: Path) -> None:
        word = pa.array(["rare"] * 4 + ["some"] * 400 + [None] * 96 + ["many"] * 1_500)
        pq.write_table(trips().append_column("word", word), tmp_path / "trips.parquet")
        sample = {"by": "stratified", "share": 0.1, "column": "word"}
        tree = {"sample": sample, "keys": ["id"], "checks": {}}

        def counts() -> dict[Any, int]:
            values = [value for split in ("train", "valid", "test") for value in data.table(split)["word"].to_pylist()]
            return {value: values.count(value) for value in set(values)}

        data.run(tree)
        assert counts() == {"rare": 1, "some": 40, None: 10, "many": 150}
        chosen = data.table("train")
        data.run({**tree, "sample": {**sample, "share": 0.2}}, sample=0.5)
        assert data.table("train").equals(chosen)
        data.run(tree, seed=1)
        assert counts() == {"rare": 1, "some": 40, None: 10, "many": 150}
        assert not data.table("train").equals(chosen)
        assert not list(data.out.glob(".*"))

    def test_the_target_gives_the_strata_where_no_column_does(self, data: Stage) -> None:
        late = sum(trips()["late"].to_pylist())
        data.run({"sample": {"by": "stratified", "share": 0.25}})
        kept = [value for split in ("train", "valid", "test") for value in data.table(split)["late"].to_pylist()]
        assert (sum(kept), len(kept) - sum(kept)) == (round(late / 4), round((2_000 - late) / 4))

    def test_a_progressive_sample_prepares_all_rows(self, data: Stage) -> None:
        assert sum(data.run({"sample": {"by": "progressive", "share": 0.1}})["rows"].values()) == 2_000
        assert 400 < sum(data.run({"sample": {"by": "progressive", "share": 0.1}}, sample=0.25)["rows"].values()) < 600

    def test_strata_are_of_classes(self, data: Stage) -> None:
        with pytest.raises(ConfigError, match="stratified needs classes, 'distance' is float64"):
            data.run({"sample": {"by": "stratified", "share": 0.1, "column": "distance"}})
        with pytest.raises(DataError, match=r"data\.sample\.column: the table must have the column 'wrd'"):
            data.run({"sample": {"by": "stratified", "share": 0.1, "column": "wrd"}})

    def test_nan_becomes_null(self, data: Stage, tmp_path: Path) -> None:
        table = trips().set_column(1, "distance", pa.array([float("nan"), *trips()["distance"].to_pylist()[1:]]))
        pq.write_table(table, tmp_path / "trips.parquet")
        data.run()
        assert data.json("profile.json")["columns"][1]["nulls"] == 1
        assert {column["name"]: column["nullable"] for column in data.json("schema.json")["columns"]}["distance"]

    def test_profile_describes_each_column_by_split(self, data: Stage) -> None:
        data.run()
        columns = {column["name"]: column for column in data.json("profile.json")["columns"]}
        distances = trips()["distance"].to_numpy()
        distance = columns["distance"]
        assert distance["rows"] == 2_000
        assert distance["min"] == distances.min()
        assert distance["mean"] == pytest.approx(distances.mean(), rel=1e-12)
        assert distance["std"] == pytest.approx(distances.std(), rel=1e-12)
        assert abs((distances <= distance["quantiles"]["0.5"]).mean() - 0.5) <= distance["rank_error"] + 1e-3
        assert sum(distance["histogram"]["counts"]) == pytest.approx(2_000, abs=20)
        assert len(distance["histogram"]["edges"]) == len(distance["histogram"]["counts"]) + 1
        carrier = columns["carrier"]
        assert carrier["nulls"] == trips()["carrier"].null_count
        assert {top["value"] for top in carrier["top"]} == {"AA", "UA", "中華", ""}
        assert sum(part["rows"] for part in carrier["splits"].values()) == 2_000
        assert columns["at"]["min"].endswith("Z")
        assert columns["late"]["mean"] == pytest.approx(np.mean(trips()["late"].to_pylist()))

    @pytest.mark.slow
    def test_rows_larger_than_the_memory_give_the_same_bytes(self, data: Stage, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        wide = pa.table({f"x{i}": rng.random(30_000) for i in range(100)}).append_column("late", pa.array(rng.random(30_000) < 0.5))
        pq.write_table(wide, tmp_path / "wide.parquet")
        contents = []
        for memory in ("56MiB", "2GiB"):
            data.run({"source": "wide.parquet"}, engine={"threads": 2, "memory": memory})
            contents.append([path.read_bytes() for path in sorted((data.out / "train").glob("*.parquet"))])
        assert contents[0] == contents[1]


class TestSplits:
    def test_random_is_exact(self, data: Stage) -> None:
        assert data.run()["rows"] == {"train": 1_600, "valid": 200, "test": 200}

    def test_equal_rows_stay_together(self, data: Stage, tmp_path: Path) -> None:
        pq.write_table(pa.concat_tables([trips(), trips()]), tmp_path / "trips.parquet")
        data.run()
        assert data.json("leakage.json") == []
        ids = {split: set(data.table(split)["id"].to_pylist()) for split in ("train", "valid", "test")}
        assert not ids["train"] & ids["test"]
        assert not ids["train"] & ids["valid"]

    def test_time_puts_the_newest_in_test_and_never_parts_a_tie(self, data: Stage) -> None:
        data.run({"split": {"by": "time", "column": "at"}})
        at = {split: data.table(split)["at"].to_pylist() for split in ("train", "valid", "test")}
        assert max(at["train"]) < min(at["valid"])
        assert max(at["valid"]) < min(at["test"])
        assert abs(len(at["test"]) - 200) <= 3

    def test_time_before_1970_and_whole_numbers(self, data: Stage, tmp_path: Path) -> None:
        years = pa.array(np.arange(2_000) % 100 - 50)
        pq.write_table(trips().append_column("year", years), tmp_path / "trips.parquet")
        data.run({"split": {"by": "time", "column": "year"}})
        assert sorted(set(data.table("test")["year"].to_pylist())) == list(range(40, 50))
        assert sorted(set(data.table("valid")["year"].to_pylist())) == list(range(30, 40))

    def test_group_is_whole_in_one_split(self, data: Stage, tmp_path: Path) -> None:
        groups = pa.array([f"group {i % 97}" for i in range(2_000)])
        pq.write_table(trips().append_column("group", groups), tmp_path / "trips.parquet")
        rows = data.run({"split": {"by": "group", "column": "group", "test": 0.2}})["rows"]
        found = [set(data.table(split)["group"].to_pylist()) for split in ("train", "valid", "test")]
        assert sum(map(len, found)) == len(set.union(*found)) == 97
        assert abs(rows["test"] - 400) <= 11

    def test_a_share_far_from_what_was_asked_for_is_told(self, data: Stage, tmp_path: Path) -> None:
        pq.write_table(trips().append_column("year", pa.array(np.arange(2_000) % 4)), tmp_path / "trips.parquet")
        data.run({"split": {"by": "time", "column": "year"}})
        assert data.warned("data.shares") == [
            "valid has 25.0% of the rows, 10.0% was asked for: rows of one year stay together",
            "test has 25.0% of the rows, 10.0% was asked for: rows of one year stay together",
        ]

    def test_stratified_has_the_same_shares_in_each_class(self, data: Stage, tmp_path: Path) -> None:
        kinds = pa.array(["rare" if i % 100 == 0 else "common" if i % 3 else "other" for i in range(2_000)])
        pq.write_table(trips().append_column("kind", kinds), tmp_path / "trips.parquet")
        data.run({"target": "kind", "split": {"by": "stratified"}})
        for split, share in (("train", 0.8), ("valid", 0.1), ("test", 0.1)):
            found = data.table(split)["kind"].to_pylist()
            for kind in ("rare", "common", "other"):
                assert abs(found.count(kind) - share * kinds.to_pylist().count(kind)) <= 1

    @pytest.mark.parametrize(
        ("split", "error", "message"),
        [
            ({"valid": 0.5, "test": 0.6}, ConfigError, r"leave rows to train on, got valid 0.5 \+ test 0.6 = 1.1"),
            ({"by": "time", "column": "att"}, DataError, "data.split.column: the table must have the column 'att'; did you mean 'at'"),
            ({"by": "time", "column": "carrier"}, DataError, "'carrier' must be a timestamp or whole number, is string"),
            ({"by": "time"}, ConfigError, "must name its column"),
            ({"by": "group", "column": "carrier"}, DataError, "'carrier' must not be null to split by group"),
            ({"by": "group", "column": "late"}, DataError, r"data.split: \w+ must have rows, has none \(by group of 'late'"),
        ],
        ids=["fractions", "absent", "no time", "no column", "null group", "two groups"],
    )
    def test_impossible_splits_are_refused(self, data: Stage, split: dict[str, Any], error: type[TidemillError], message: str) -> None:
        with pytest.raises(error, match=message):
            data.run({"split": split})

    def test_a_class_that_train_lacks_is_named(self, data: Stage, tmp_path: Path) -> None:
        table = trips().sort_by("at")
        kinds = pa.array(["new" if i >= 1_900 else "b" if i % 2 else "a" for i in range(2_000)])
        pq.write_table(table.append_column("kind", kinds), tmp_path / "trips.parquet")
        with pytest.raises(DataError, match="every class must be in train, 1 of 3 are not: 'new'"):
            data.run({"target": "kind", "split": {"by": "time", "column": "at"}})


class TestTarget:
    @pytest.mark.parametrize(
        ("values", "task", "classes"),
        [
            ([True, False], "binary", [False, True]),
            (["no", "yes"], "binary", ["no", "yes"]),
            ([1, 0], "binary", [0, 1]),
            ([1.0, 0.0], "binary", [0, 1]),
            (["c", "a", "b"], "multiclass", ["a", "b", "c"]),
            ([3, 1, 2], "multiclass", [1, 2, 3]),
            (list(range(21)), "regression", None),
            ([0.5, 1.0, 2.5], "regression", None),
        ],
        ids=str,
    )
    def test_the_task_is_told_from_the_values(self, data: Stage, tmp_path: Path, values: list[Any], task: str, classes: list[Any]) -> None:
        pq.write_table(
            trips().append_column("y", pa.array(values * (2_000 // len(values)) + values[: 2_000 % len(values)])),
            tmp_path / "trips.parquet",
        )
        facts = data.run({"target": "y"})
        assert facts["task"] == task
        assert data.json("schema.json")["classes"] == classes
        kept = set(data.table("train")["y"].to_pylist())
        assert kept == set(classes if classes is not None else values)

    def test_the_project_may_say_regression(self, data: Stage, tmp_path: Path) -> None:
        pq.write_table(trips().append_column("y", pa.array([1, 2] * 1_000)), tmp_path / "trips.parquet")
        assert data.run({"target": "y"}, task="regression")["task"] == "regression"

    def test_rows_without_target_are_left_out_with_a_warning(self, data: Stage, tmp_path: Path) -> None:
        late = pa.array([None if i % 10 == 0 else value for i, value in enumerate(trips()["late"].to_pylist())])
        pq.write_table(trips().set_column(4, "late", late), tmp_path / "trips.parquet")
        facts = data.run()
        assert sum(facts["rows"].values()) == 1_800
        assert facts["target_null"] == 200
        assert data.warned("data.target_null") == ["200 of 2,000 rows have no late and are left out"]
        assert not next(column for column in data.json("schema.json")["columns"] if column["name"] == "late")["nullable"]

    @pytest.mark.parametrize(
        ("values", "task", "message"),
        [
            ([1] * 2_000, None, "target 'y' must have at least two values, all are 1"),
            (pa.nulls(2_000, pa.int64()), None, "target 'y' must have values, all 2,000 rows are null"),
            ([1, 2, 3, 4] * 500, "binary", r"must have 2 values for task = \"binary\", has 4: 1, 2, 3, 4"),
            ([0.5, 1.5] * 1_000, "binary", "must be classes .* fractions such as 0.5"),
            (["a", "b"] * 1_000, "regression", 'must be a number for task = "regression", is text'),
            ([f"id {i}" for i in range(2_000)], None, "must have at most 1000 classes, has 2000"),
            ([float("inf"), 1.5] * 1_000, "regression", "must be finite, 1000 rows are infinite"),
            (pa.array(range(2_000), pa.timestamp("us")), None, "must be classes or a number, is a timestamp"),
        ],
        ids=["constant", "null", "four", "fractions", "text", "identifier", "infinite", "time"],
    )
    def test_a_target_that_cannot_be_learnt_is_refused(
        self, data: Stage, tmp_path: Path, values: Any, task: str | None, message: str
    ) -> None:
        pq.write_table(trips().append_column("y", pa.array(values)), tmp_path / "trips.parquet")
        with pytest.raises(DataError, match=message) as caught:
            data.run({"target": "y"}, **({"task": task} if task else {}))
        assert caught.value.field == "y"

    def test_an_absent_target_names_the_nearest(self, data: Stage) -> None:
        with pytest.raises(DataError, match=r"data\.target: the table must have the column 'lat'; did you mean 'late'"):
            data.run({"target": "lat"})

    def test_no_rows_at_all(self, data: Stage, tmp_path: Path) -> None:
        pq.write_table(trips().slice(0, 0), tmp_path / "trips.parquet")
        with pytest.raises(DataError, match=r"the table must have rows, has none in trips\.parquet"):
            data.run()

    @pytest.mark.parametrize("values", [[-1.0], [None], [float("inf")]], ids=str)
    def test_a_bad_weight_is_refused(self, data: Stage, tmp_path: Path, values: list[Any]) -> None:
        pq.write_table(trips().append_column("w", pa.array([*values, *[1.0] * 1_999], pa.float64())), tmp_path / "trips.parquet")
        with pytest.raises(DataError, match=r"data\.weight: 'w' must be at least 0 and finite, 1 rows are not"):
            data.run({"weight": "w"})


class TestColumns:
    @pytest.mark.parametrize(
        ("column", "message"),
        [
            (pa.array([[1]] * 2_000), "column 'c' must be boolean, integer, .* got list"),
            (pa.array([b"x"] * 2_000), "column 'c' must be boolean, integer, .* got binary"),
            (pa.array([2**63] * 2_000, pa.uint64()), "column 'c' must fit int64"),
        ],
        ids=["list", "binary", "huge"],
    )
    def test_types_without_counterpart_are_named(self, data: Stage, tmp_path: Path, column: pa.Array, message: str) -> None:
        pq.write_table(trips().append_column("c", column), tmp_path / "trips.parquet")
        with pytest.raises(DataError, match=message):
            data.run()

    @pytest.mark.parametrize("name", ["late__valid", "__tidemill_row"])
    def test_names_with_a_meaning_of_their_own_are_refused(self, data: Stage, tmp_path: Path, name: str) -> None:
        pq.write_table(trips().append_column(name, pa.array([1] * 2_000)), tmp_path / "trips.parquet")
        with pytest.raises(DataError, match="must not be named"):
            data.run()


class TestInputs:
    def test_content_counts_and_time_does_not(self, data: Stage, tmp_path: Path) -> None:
        project = data.project()
        first = stage.inputs(project)
        (tmp_path / "trips.parquet").touch()
        assert stage.inputs(project) == first
        pq.write_table(trips(seed=1), tmp_path / "trips.parquet")
        assert stage.inputs(project) != first

    def test_a_file_that_did_not_change_is_not_read_again(self, data: Stage, tmp_path: Path) -> None:
        first = stage.inputs(data.project(), cache=tmp_path / "cache")
        known = json.loads((tmp_path / "cache" / "hashes.json").read_text())
        assert len(known) == 1
        assert stage.inputs(data.project()) == first
        (tmp_path / "cache" / "hashes.json").write_text(json.dumps(dict.fromkeys(known, "0" * 64)))
        assert stage.inputs(data.project(), cache=tmp_path / "cache") != first

    def test_a_missing_source_is_named(self, data: Stage) -> None:
        with pytest.raises(DataError, match=r"source must exist, got nothing at .*trip\.parquet; did you mean .*trips\.parquet"):
            stage.inputs(data.project({"source": "trip.parquet"}))

    def test_the_code_of_prepare_counts_and_of_what_it_imports(self, data: Stage, tmp_path: Path) -> None:
        (tmp_path / "prep.py").write_text("from helper_of_prep import one\n\ndef prepare(t):\n    return one(t)\n")
        (tmp_path / "helper_of_prep.py").write_text("def one(t):\n    return t\n")
        project = data.project({"prepare": "prep:prepare"})
        first = stage.inputs(project)
        (tmp_path / "helper_of_prep.py").write_text("def one(t):\n    return  t\n")
        assert stage.inputs(project) != first
        assert "helper_of_prep" not in sys.modules
        assert str(tmp_path) not in sys.path


def test_the_flights_example_runs_and_knows_nothing_of_the_flight(nycflights: Path, tmp_path: Path) -> None:
    """The real example on a sample of its rows, its zipped CSV read by path."""
    from tidemill.core.project import read

    example = Path(__file__).parents[3] / "examples" / "flights"
    (tmp_path / "flights.py").write_text((example / "flights.py").read_text())
    (tmp_path / "tidemill.toml").write_text((example / "tidemill.toml").read_text())
    (tmp_path / "data").symlink_to(nycflights)
    project = read([tmp_path / "tidemill.toml"])
    out = tmp_path / "out"
    out.mkdir()
    facts = stage.run(project, out, events=Events(), sample=0.05)
    assert facts["task"] == "binary"
    assert facts["leakage"] == 0
    names = [column["name"] for column in json.loads((out / "schema.json").read_text())["columns"]]
    assert not {"dep_delay", "dep_time", "arr_time", "arr_delay", "air_time"} & set(names)


def test_real_census_rows(tmp_path: Path) -> None:
    """The census of the shared folder: no header, blanks after commas, question marks for null."""
    path = Path(__file__).parents[3].parent / "shared" / "data" / "adult.csv.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    names = [
        "age", "workclass", "fnlwgt", "education", "education_num", "marital", "occupation", "relationship", "race", "sex",
        "gain", "loss", "hours", "country", "income",
    ]  # fmt: skip
    data = Stage(tmp_path)
    source = {"path": str(path), "header": False, "names": names, "null": [" ?", "?"]}
    facts = data.run({"source": source, "target": "income", "split": {"by": "stratified"}})
    assert sum(facts["rows"].values()) == 32_561
    assert [len(label.strip()) for label in data.json("schema.json")["classes"]] == [5, 4]
    nulls = {column["name"]: column["nulls"] for column in data.json("profile.json")["columns"] if column["nulls"]}
    assert nulls == {"workclass": 1_836, "occupation": 1_843, "country": 583}
