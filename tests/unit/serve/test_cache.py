"""The cache: exact answers, computed once, never another model's or tenant's, within its bytes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.errors import ConfigError
from tidemill.core.events import Event, Events
from tidemill.core.graph import Arrays
from tidemill.core.package import Answers, Package
from tidemill.core.project import build
from tidemill.serve.access import keys
from tidemill.serve.access.config import AuthConfig
from tidemill.serve.app import App
from tidemill.serve.cache import Cache, CacheConfig, LocalKept, RedisKept
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import Request
from tidemill.serve.model import Model
from tidemill.testing.packages import EXAMPLE, tiny_package

FIELDS = st.fixed_dictionaries({
    "distance": st.sampled_from([None, 0.0, -0.0, 1.0, 1400.0]),
    "fare": st.sampled_from([None, 1.0, 12.5]),
    "seats": st.sampled_from([None, 0, 1, 11]),
    "carrier": st.sampled_from([None, "", "U", "UA", "A", "航空"]),
    "weekend": st.sampled_from([None, True, False]),
    "departs": st.sampled_from([None, "2013-06-01T19:30:00Z", "2013-06-01T07:30:00Z"]),
})  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tiny_package(tmp_path_factory.mktemp("packages") / "tiny"))


def cached(kept: Any = None, **config: Any) -> tuple[Cache, dict[str, int]]:
    counted: dict[str, int] = {"hit": 0, "miss": 0, "shared": 0}

    def count(outcome: str, rows: int) -> None:
        counted[outcome] += rows

    return Cache(kept or LocalKept(CacheConfig(**config)), identity="one", max_rows=256, count=count), counted


def one(value: float) -> Arrays:
    return {"x": np.array([[value]], np.float64)}


def double(inputs: Arrays) -> Answers:
    return Answers((inputs["x"] * 2).ravel())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(FIELDS, min_size=1, max_size=6), min_size=1, max_size=6))
def test_with_the_cache_and_without_it_is_the_same(model: Model, batches: list[list[dict[str, Any]]]) -> None:
    cache, counted = cached()
    for records in batches:
        inputs = model.signature.from_records(records)
        plain, found = model.answer(inputs), cache.answer(inputs, len(records), model.answer)
        np.testing.assert_array_equal(found.prediction, plain.prediction)
        assert found.prediction.dtype == plain.prediction.dtype
        assert plain.probability is not None
        np.testing.assert_allclose(found.probability, plain.probability, rtol=0, atol=1e-7)  # type: ignore[arg-type]
    assert sum(counted.values()) == sum(map(len, batches))
    distinct = {json.dumps({**record, "distance": repr(record["distance"])}, sort_keys=True) for records in batches for record in records}
    assert counted["miss"] == len(distinct)


def test_only_new_rows_are_computed() -> None:
    asked: list[list[float]] = []

    def run(inputs: Arrays) -> Answers:
        asked.append(inputs["x"].ravel().tolist())
        return double(inputs)

    cache, counted = cached()
    for values in ([1.0, 2.0], [2.0, 3.0, 2.0, 3.0], [1.0]):
        found = cache.answer({"x": np.array(values)[:, None]}, len(values), run)
        assert found.prediction.tolist() == [2 * value for value in values]
    assert asked == [[1.0, 2.0], [3.0]]
    assert counted == {"hit": 3, "miss": 3, "shared": 1}


def test_never_across_versions_or_tenants() -> None:
    kept = LocalKept(CacheConfig())
    first, other = (Cache(kept, identity=identity, max_rows=9) for identity in ("one", "two"))
    assert first.answer(one(1), 1, double).prediction.tolist() == [2.0]
    triple: Callable[[Arrays], Answers] = lambda inputs: Answers((inputs["x"] * 3).ravel())  # noqa: E731
    assert other.answer(one(1), 1, triple).prediction.tolist() == [3.0]
    assert first.answer(one(1), 1, triple, tenant="alice").prediction.tolist() == [3.0]
    assert first.answer(one(1), 1, triple).prediction.tolist() == [2.0]


def test_values_do_not_run_into_each_other() -> None:
    cache, counted = cached()
    run: Callable[[Arrays], Answers] = lambda inputs: Answers(np.arange(len(inputs["a"])))  # noqa: E731
    for a, b in (("x", "yz"), ("xy", "z"), ("", "xyz"), ("xyz", "")):
        cache.answer({"a": np.array([[a]], object), "b": np.array([[b]], object)}, 1, run)
    assert counted["miss"] == 4


def test_the_same_at_once_is_computed_once() -> None:
    cache, counted = cached()
    started, go = threading.Event(), threading.Event()
    runs = []

    def run(inputs: Arrays) -> Answers:
        runs.append(1)
        started.set()
        go.wait(10)
        return double(inputs)

    answers: list[float] = []
    threads = [threading.Thread(target=lambda: answers.append(float(cache.answer(one(7), 1, run).prediction[0]))) for _ in range(5)]
    threads[0].start()
    started.wait(10)
    for thread in threads[1:]:
        thread.start()
    end = time.monotonic() + 10
    while counted["shared"] < 4 and time.monotonic() < end:
        time.sleep(0.01)
    go.set()
    for thread in threads:
        thread.join(10)
    assert answers == [14.0] * 5
    assert len(runs) == 1
    assert counted == {"hit": 0, "miss": 1, "shared": 4}


def test_a_failure_is_everybodys_and_is_not_kept() -> None:
    cache, _ = cached()

    def fail(_: Arrays) -> Answers:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        cache.answer(one(1), 1, fail)
    assert cache.answer(one(1), 1, double).prediction.tolist() == [2.0]


@settings(deadline=None)
@given(st.sampled_from(["lru", "lfu"]), st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 400)), max_size=200))
def test_bytes_stay_within_the_limit(policy: Any, steps: list[tuple[bool, int, int]]) -> None:
    kept = LocalKept(CacheConfig(max="3000", policy=policy))
    latest: dict[bytes, bytes] = {}
    for puts, number, size in steps:
        key = bytes([number])
        if puts:
            latest[key] = bytes([number]) * size
            kept.put({key: latest[key]})
        else:
            assert kept.get([key])[0] in (None, latest.get(key))
        assert kept.bytes <= 3000
        assert kept.bytes == sum(len(k) + len(content) + 200 for k, (content, _, _) in kept._entries.items())
        assert set(kept._entries) == {key for ring in kept._classes.values() for key in ring}


def test_what_goes_first() -> None:
    room = f"{3 * 211}"
    lru, lfu = (LocalKept(CacheConfig(max=room, policy=policy)) for policy in ("lru", "lfu"))  # type: ignore[arg-type]
    for kept in (lru, lfu):
        for key in (b"a", b"b", b"c"):
            kept.put({key: bytes(10)})
        kept.get([b"a", b"a", b"b"])
        kept.get([b"c"])
        kept.get([b"a"])
        kept.put({b"d": bytes(10)})
    assert [key for key in (b"a", b"b", b"c", b"d") if lru.get([key])[0] is None] == [b"b"]
    assert [key for key in (b"a", b"b", b"c", b"d") if lfu.get([key])[0] is None] == [b"b"]
    lfu.put({b"e": bytes(10)})
    assert lfu.get([b"e"])[0] is not None
    assert lfu.get([b"a"])[0] is not None


def test_time_is_up() -> None:
    now = [0.0]
    kept = LocalKept(CacheConfig(ttl_s=10), clock=lambda: now[0])
    kept.put({b"a": b"1"})
    now[0] = 9.9
    assert kept.get([b"a"]) == [b"1"]
    now[0] = 10.0
    assert kept.get([b"a"]) == [None]
    assert kept.bytes == 0


@pytest.mark.server
def test_servers_keep_answers_together_in_redis(redis_url: str) -> None:
    said: list[Event] = []
    first, second = (cached(RedisKept(redis_url, ttl_s=60, events=Events(said.append))) for _ in range(2))
    assert first[0].answer(one(21), 1, double).prediction.tolist() == [42.0]
    assert second[0].answer(one(21), 1, lambda _: Answers(np.zeros(1))).prediction.tolist() == [42.0]
    assert second[1] == {"hit": 1, "miss": 0, "shared": 0}
    client = redis.Redis.from_url(redis_url)
    for key in client.keys("tidemill:answer:*"):
        assert 0 < client.pttl(key) <= 60_000
        client.set(key, b"damaged")
    assert second[0].answer(one(21), 1, double).prediction.tolist() == [42.0]
    assert said == []


@pytest.mark.server
def test_without_redis_every_row_is_computed(start_redis: Any) -> None:
    said: list[Event] = []
    with start_redis() as (url, server):
        cache, counted = cached(RedisKept(url, ttl_s=None, events=Events(said.append)))
        cache.answer(one(1), 1, double)
        server.kill()
        server.wait(10)
        assert [cache.answer(one(1), 1, double).prediction.tolist() for _ in range(3)] == [[2.0]] * 3
    assert counted["miss"] == 4
    assert [event.kind for event in said] == ["serve.cache_away"]


def test_the_server_counts_and_keeps_tenants_apart(tmp_path: Path) -> None:
    package: Package = tiny_package(tmp_path / "tiny")
    alice, bob = (keys.add(tmp_path / "keys.json", name, scopes=["predict", "metrics"]) for name in ("alice", "bob"))
    config = ServeConfig(cache=CacheConfig(), auth=AuthConfig(keys=Path("keys.json")))
    app = App([Model(package)], config=config, folder=tmp_path)
    bodies = set()
    for key in (alice, alice, bob):
        response = app.handle(Request("POST", "/predict", headers={"x-api-key": key}, body=json.dumps(EXAMPLE).encode()))
        bodies.add(response.body)
    assert len(bodies) == 1
    text = app.handle(Request("GET", "/metrics", headers={"x-api-key": alice})).body.decode()
    lines = [line for line in text.splitlines() if line.startswith("tidemill_cache_rows_total")]
    assert [line.rpartition(" ")[2] for line in sorted(lines) if 'outcome="hit"' in line or 'outcome="miss"' in line] == ["1", "2"]


def test_a_wrong_section() -> None:
    with pytest.raises(ConfigError, match=r"serve\.cache\.max"):
        build(CacheConfig, {"max": "much"}, path="serve.cache").check()
    with pytest.raises(ConfigError, match="policy"):
        build(CacheConfig, {"policy": "fifo"}, path="serve.cache")
