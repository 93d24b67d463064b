"""How `prepare` is found, called and blamed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import narwhals as nw
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill.core.errors import ConfigError, DataError, TidemillError
from tidemill.core.events import Events
from tidemill.core.project import from_tree
from tidemill.data import stage
from tidemill.data.prepare import called

GOOD = """
import narwhals as nw

def prepare(flights: nw.LazyFrame, weather: nw.LazyFrame) -> nw.LazyFrame:
    return flights.join(weather, on="hour", how="left").with_columns(late=nw.col("delay") > 15).drop("delay")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hours = [i % 24 for i in range(500)]
    pq.write_table(pa.table({"hour": hours, "delay": [i % 40 for i in range(500)], "unused": ["x"] * 500}), tmp_path / "flights.parquet")
    pq.write_table(pa.table({"hour": list(range(20)), "wind": [0.5 * i for i in range(20)]}), tmp_path / "weather.parquet")
    return tmp_path


def run(folder: Path, code: str, *, prepare: Any = "prep:prepare", sources: dict[str, str] | None = None) -> pa.Table:
    (folder / "prep.py").write_text(code)
    sources = sources or {"flights": "flights.parquet", "weather": "weather.parquet"}
    project = from_tree({"name": "x", "data": {"source": sources, "prepare": prepare, "target": "late"}}, folder=folder)
    out = folder / "out"
    out.mkdir(exist_ok=True)
    stage.run(project, out, events=Events())
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("*/*.parquet"))])


def test_frames_are_matched_by_name_and_joined(folder: Path) -> None:
    table = run(folder, GOOD)
    assert table.column_names == ["hour", "unused", "wind", "late"]
    assert table.num_rows == 500
    assert {row["wind"] for row in table.to_pylist() if row["hour"] == 7} == {3.5}
    assert {row["wind"] for row in table.to_pylist() if row["hour"] == 22} == {None}


def test_only_columns_that_prepare_uses_are_read(folder: Path) -> None:
    plans = []

    def prepare(flights: nw.LazyFrame[Any], weather: nw.LazyFrame[Any]) -> nw.LazyFrame[Any]:
        joined = flights.join(weather, on="hour").select("wind", late=nw.col("delay") > 15)
        plans.append(joined.to_native().explain())
        return joined

    run(folder, "", prepare=prepare)
    assert "delay" in plans[0]
    assert "unused" not in plans[0]


def test_nothing_is_left_in_the_interpreter(folder: Path) -> None:
    path, modules = list(sys.path), set(sys.modules)
    run(folder, GOOD)
    assert sys.path == path
    assert "prep" not in set(sys.modules) - modules
    assert not list(folder.glob("__pycache__"))


def test_a_changed_module_is_seen_at_once(folder: Path) -> None:
    run(folder, GOOD)
    assert set(run(folder, GOOD.replace("> 15", "> 35"))["late"].to_pylist()) == {True, False}
    assert sum(run(folder, GOOD.replace("> 15", "> 35"))["late"].to_pylist()) == 48


def test_modules_beside_it_may_be_imported_also_late(folder: Path) -> None:
    (folder / "words.py").write_text("LIMIT = 35\n")
    late = GOOD.replace("    return", "    from words import LIMIT\n    return").replace("> 15", "> LIMIT")
    assert sum(run(folder, late)["late"].to_pylist()) == 48
    assert "words" not in sys.modules


def test_a_single_source_goes_to_the_only_parameter(folder: Path) -> None:
    code = "import narwhals as nw\ndef prepare(anything):\n    return anything.with_columns(late=nw.col('delay') > 15)\n"
    (folder / "prep.py").write_text(code)
    project = from_tree({"name": "x", "data": {"source": "flights.parquet", "prepare": "prep:prepare", "target": "late"}}, folder=folder)
    (folder / "single").mkdir()
    assert sum(stage.run(project, folder / "single", events=Events())["rows"].values()) == 500


def test_an_eager_result_is_taken_too(folder: Path) -> None:
    code = GOOD.replace('.drop("delay")', '.drop("delay").collect("polars")')
    assert run(folder, code).num_rows == 500


BAD: dict[str, tuple[str, type[TidemillError], str]] = {
    "raises": (
        "def prepare(flights, weather):\n    x = {}\n    return x['delay']\n",
        DataError,
        r"prepare prep:prepare raised KeyError: 'delay' \(prep\.py:3\)",
    ),
    "raises deep inside": (
        "def prepare(flights, weather):\n    return one(flights)\n\ndef one(f):\n    return f.select('nope')\n",
        DataError,
        r"prepare prep:prepare raised ColumnNotFoundError: .* \(prep\.py:5\)",
    ),
    "fails when computed": (
        "import narwhals as nw\ndef prepare(flights, weather):\n    return flights.with_columns(late=nw.col('unused').cast(nw.Int64))\n",
        DataError,
        r"prepare prep:prepare: .*Could not convert string 'x'",
    ),
    "returns nothing": (
        "def prepare(flights, weather):\n    pass\n",
        DataError,
        "prepare prep:prepare: must be a Narwhals lazy frame, got NoneType",
    ),
    "drops all rows": (
        GOOD.replace('.drop("delay")', '.filter(nw.col("hour") > 99)'),
        DataError,
        "the table must have rows, has none after prepare prep:prepare; does a filter or join drop them all",
    ),
    "syntax": ("def prepare(flights weather):\n", DataError, r"prep:prepare cannot be imported: SyntaxError: .* \(prep\.py:1\)"),
    "import": (
        "import nowhere_at_all\n",
        DataError,
        r"cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all' \(prep\.py:1\)",
    ),
    "other name": (
        GOOD.replace("def prepare", "def prepared"),
        ConfigError,
        r"must define the function 'prepare'; did you mean prep:prepared\?",
    ),
    "unknown parameter": (
        GOOD.replace("weather: nw", "wether: nw"),
        ConfigError,
        r"prep:prepare takes 'wether', which is no source; sources are flights, weather; did you mean 'weather'\?",
    ),
    "too few parameters": ("def prepare(flights):\n    return flights\n", ConfigError, "must take every source, does not take 'weather'"),
}


@pytest.mark.parametrize(("code", "error", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_said_in_one_line(folder: Path, code: str, error: type[TidemillError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        run(folder, code)
    assert "\n" not in str(caught.value)


def test_an_absent_module_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"module 'nothere' must be in .*, is not found"):
        run(folder, "", prepare="nothere:prepare")


def test_a_user_s_own_error_is_passed_on(folder: Path) -> None:
    def prepare(flights: Any, weather: Any) -> Any:
        raise DataError("flights of June are missing")

    with pytest.raises(DataError, match=r"^flights of June are missing$"):
        run(folder, "", prepare=prepare)


def test_keyword_arguments_take_every_frame(tmp_path: Path) -> None:
    assert called(lambda **frames: sorted(frames), {"a": 1, "b": 2}, tmp_path) == ["a", "b"]
    assert called(lambda a, *, b=None: (a, b), {"a": 1, "b": 2}, tmp_path) == (1, 2)
