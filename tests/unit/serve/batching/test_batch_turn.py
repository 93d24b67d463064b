"""Quick models on the event loop: what comes in one turn goes through together, and everybody gets their own answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.errors import DataError
from tidemill.core.package import Package
from tidemill.core.schema import Column, Schema
from tidemill.serve.app import App
from tidemill.serve.batching.config import BatchConfig
from tidemill.serve.batching.turn import ENOUGH
from tidemill.serve.cache import CacheConfig
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import Request
from tidemill.serve.model import Model
from tidemill.serve.rows import RowReader
from tidemill.testing.packages import COLUMNS, EXAMPLE, tiny_package, tiny_probability

FIELDS = st.fixed_dictionaries({
    "distance": st.sampled_from([None, 0, -1.5, 1400.0, 1e300, 10**400]),
    "fare": st.sampled_from([None, 1, 12.5, 3.4028234663852886e38, 1e39, True]),
    "seats": st.sampled_from([None, 0, 3, 3.0, 2**63, -(2**63), 1.5, "3"]),
    "carrier": st.sampled_from([None, "", "UA", "航空", "a\0", "x" * 100, 7]),
    "weekend": st.sampled_from([None, True, False, 1]),
    "departs": st.sampled_from([None, "2013-06-01T19:30:00Z", "2013-06-01", 1370115000000000, "soon", 1.5]),
})  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return tiny_package(tmp_path_factory.mktemp("packages") / "tiny", name="tiny", version="1")


@pytest.fixture(scope="module")
def model(package: Package) -> Model:
    return Model(package)


@settings(max_examples=300, deadline=None)
@given(st.lists(FIELDS, min_size=1, max_size=5))
def test_the_short_way_of_reading_takes_nothing_that_the_long_way_refuses_and_means_the_same(
    model: Model, records: list[dict[str, Any]]
) -> None:
    assert model.reader is not None
    for record in records:
        row = model.reader.read(json.dumps(record).encode())
        try:
            expected = model.signature.from_records([json.loads(json.dumps(record))])
        except DataError:
            if row is not None:
                with pytest.raises(DataError):
                    model.reader.inputs([row])
            continue
        if row is not None:
            found = model.reader.inputs([row])
            assert found.keys() == expected.keys()
            for name, array in expected.items():
                assert found[name].dtype == array.dtype or array.dtype.kind in "OU"
                np.testing.assert_array_equal(found[name], array)


def test_many_rows_are_converted_as_each_alone(model: Model) -> None:
    assert model.reader is not None
    records = [EXAMPLE, {**EXAMPLE, "seats": None, "fare": None}, {**EXAMPLE, "carrier": "航空", "weekend": None, "departs": None}]
    rows = [model.reader.read(json.dumps(record).encode()) for record in records]
    assert all(rows)
    together = model.reader.inputs([row for row in rows if row is not None])
    for name, array in model.signature.from_records(records).items():
        np.testing.assert_array_equal(together[name], array)


def test_a_column_without_nulls_leaves_them_to_the_long_way() -> None:
    reader = RowReader(Schema((Column(name="a b", type="float64", nullable=False), Column(name="class", type="string"))))
    assert reader.read(b'{"a b": null, "class": "x"}') is None
    assert reader.read(b'{"class": null, "a b": 1, "more": [1]}') == (1.0, None)
    assert COLUMNS.names


def served(package: Package, **config: Any) -> tuple[App, Callable[..., Any]]:
    """An application, and what answers requests in one turn of an event loop."""
    app = App([Model(package)], config=ServeConfig(inline_ms=1000, **config))

    async def ask(*bodies: Any, **headers: str) -> list[tuple[int, Any]]:
        loop, calls = asyncio.get_running_loop(), []
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        for body in bodies:
            path = "/predict_batch" if "records" in body else "/predict"
            call = app.admit(Request("POST", path, "", named, json.dumps(body).encode(), perf_counter()))
            app.read(call)
            answered = loop.create_future()
            if call.work is None:
                answered.set_result(None)
            else:
                app.begin(call, lambda answered=answered: loop.call_soon_threadsafe(answered.set_result, None), on_loop=True)
            calls.append((call, answered))
        for _, answered in calls:
            await asyncio.wait_for(answered, 60)
        found = [app.finish(call) for call, _ in calls]
        return [(response.status, json.loads(response.body)) for response in found]

    return app, lambda *bodies, **headers: asyncio.run(ask(*bodies, **headers))


def runs(app: App) -> float:
    return app.metrics.executions.sample("tiny", "1").value


RECORDS = [{**EXAMPLE, "distance": float(100 * i), "carrier": carrier} for i, carrier in enumerate(["UA", "DL", None, "航空", "UA", "x"])]


def test_what_comes_in_one_turn_goes_through_together(package: Package) -> None:
    app, ask = served(package)
    answers = ask(*RECORDS)
    assert [status for status, _ in answers] == [200] * 6
    for record, (_, answer) in zip(RECORDS, answers, strict=True):
        assert answer["probability"] == pytest.approx(tiny_probability(record), abs=1e-6)
        assert (answer["model"], answer["version"]) == ("tiny", "1")
    assert runs(app) == 1
    found = app.metrics.batch_rows.sample("tiny", "1")
    assert (found.value, sum(found.counts)) == (6, 1)


def test_enough_of_them_wait_for_no_more(package: Package) -> None:
    app, ask = served(package)
    records = [{**EXAMPLE, "distance": float(i)} for i in range(2 * ENOUGH + 3)]
    assert [answer["probability"] for _, answer in ask(*records)] == pytest.approx(list(map(tiny_probability, records)), abs=1e-6)
    assert runs(app) == 3


def test_batches_of_rows_and_single_rows_go_together(package: Package) -> None:
    app, ask = served(package)
    (_, one), (_, three), (_, other) = ask(RECORDS[0], {"records": RECORDS[1:4]}, RECORDS[4])
    found = [one["probability"], *(row["probability"] for row in three["predictions"]), other["probability"]]
    assert found == pytest.approx([tiny_probability(record) for record in RECORDS[:5]], abs=1e-6)
    assert runs(app) == 1


def test_no_more_rows_go_together_than_are_configured(package: Package) -> None:
    app, ask = served(package, batch=BatchConfig(max_rows=2))
    assert [answer["probability"] for _, answer in ask(*RECORDS)] == pytest.approx(list(map(tiny_probability, RECORDS)), abs=1e-6)
    assert runs(app) == 3


def test_a_wrong_value_fails_its_own_caller_alone(package: Package) -> None:
    _, ask = served(package)
    answers = ask(RECORDS[0], {**EXAMPLE, "departs": "soon"}, {**EXAMPLE, "seats": "many"}, RECORDS[1])
    assert [status for status, _ in answers] == [200, 422, 422, 200]
    assert [answer["error"]["field"] for status, answer in answers if status == 422] == ["departs", "seats"]
    assert "in row 0" in answers[1][1]["error"]["reason"]


def test_answers_that_are_logged_are_the_same(package: Package, tmp_path: Path) -> None:
    app, ask = served(package, log=True, log_folder=tmp_path)
    answers = ask(*RECORDS)
    app.close()
    [file] = tmp_path.glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["probability"] for line in lines] == [answer["probability"] for _, answer in answers]
    assert [line["inputs"]["distance"] for line in lines] == [record["distance"] for record in RECORDS]


def test_a_kept_answer_waits_for_nobody_and_the_same_row_is_computed_once(package: Package) -> None:
    app, ask = served(package, cache=CacheConfig())
    first = ask(RECORDS[0], RECORDS[0], RECORDS[1], {"records": [RECORDS[1], RECORDS[2]]})
    assert [status for status, _ in first] == [200] * 4
    assert first[0][1] == first[1][1]
    assert first[3][1]["predictions"][0]["probability"] == first[2][1]["probability"]
    counted = {outcome: app.metrics.cache_rows.sample("tiny", "1", outcome).value for outcome in ("hit", "miss", "shared")}
    assert counted == {"hit": 0, "miss": 3, "shared": 2}
    before = runs(app)
    assert [answer for _, answer in ask(RECORDS[0], RECORDS[1])] == [first[0][1], first[2][1]]
    assert runs(app) == before


def test_a_request_whose_time_is_over_is_not_run(package: Package) -> None:
    app, ask = served(package)
    [(status, answer)] = ask(EXAMPLE, x_request_timeout_ms="0")
    assert (status, answer["error"]["reason"]) == (504, "the time that the request had is over")
    assert runs(app) == 0
    assert app.metrics.errors.sample("deadline").value == 1
    assert [ask(EXAMPLE, **header)[0][0] for header in ({"x_request_timeout_ms": "soon"}, {"x_request_priority": "10"})] == [400, 400]
    assert ask(EXAMPLE, x_request_timeout_ms="60000", x_request_priority="1")[0][0] == 200


def test_phases_of_a_call_add_up_to_its_time(package: Package) -> None:
    app, ask = served(package)
    ask(*RECORDS)
    phases = {phase: app.metrics.phase_seconds.sample("tiny", "1", phase) for phase in ("queue", "preprocess", "infer", "postprocess")}
    assert all(sum(sample.counts) == 6 and sample.value > 0 for sample in phases.values())
    whole = app.metrics.request_seconds.sample("/predict").value
    assert sum(sample.value for sample in phases.values()) == pytest.approx(whole, rel=1e-6)
