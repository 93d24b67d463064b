"""How much may be asked: rates, bursts and quotas, here and over several servers; pages of other origins."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.errors import ConfigError, Unavailable
from tidemill.core.events import Event, Events
from tidemill.core.package import Package
from tidemill.core.project import build
from tidemill.serve import limits
from tidemill.serve.access import keys
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import Request, Response
from tidemill.serve.limits import LimitsConfig, LocalCounter, Rate, RedisCounter
from tidemill.serve.model import Model
from tidemill.testing.packages import EXAMPLE, tiny_package

BODY = json.dumps(EXAMPLE).encode()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return tiny_package(tmp_path_factory.mktemp("packages") / "tiny")


@pytest.fixture
def make(package: Package, tmp_path: Path) -> Callable[..., App]:
    def made(events: Events | None = None, **sections: Any) -> App:
        return App([Model(package)], config=build(ServeConfig, sections, path="serve"), folder=tmp_path, events=events)

    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Time that stands still until it is moved."""

    class Clock:
        now = 1_000_000.0

        def monotonic(self) -> float:
            return self.now

        def time(self) -> float:
            return self.now

    stopped = Clock()
    monkeypatch.setattr(limits, "time", stopped)
    return stopped


def ask(app: App, client: str = "10.0.0.1", path: str = "/predict", **headers: str) -> Response:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return app.handle(Request("POST" if path.endswith("predict") else "GET", path, headers=named, body=BODY, client=client))


def test_an_address_beyond_its_rate_is_told_when_to_come(make: Any, clock: Any) -> None:
    app = make(limits={"per_address": {"per_s": 2, "burst": 3}})
    assert [ask(app).status for _ in range(5)] == [200, 200, 200, 429, 429]
    assert ask(app, "10.0.0.2").status == 200
    assert ("retry-after", "1") in ask(app).headers
    clock.now += 0.5
    assert [ask(app).status for _ in range(2)] == [200, 429]


def test_health_is_never_counted(make: Any, clock: Any) -> None:
    app = make(limits={"per_address": {"per_s": 1, "burst": 1}})
    assert [ask(app, path="/health").status for _ in range(3)] == [200] * 3
    assert [ask(app, path="/nowhere").status for _ in range(2)] == [404, 429]


def test_a_key_has_its_limit_wherever_it_asks_from(make: Any, clock: Any, tmp_path: Path) -> None:
    alice, bob = (keys.add(tmp_path / "keys.json", name, scopes=["predict"]) for name in ("alice", "bob"))
    app = make(auth={"keys": "keys.json"}, limits={"per_key": {"per_day": 2}})
    assert [ask(app, f"10.0.0.{i}", x_api_key=alice).status for i in range(3)] == [200, 200, 429]
    assert ask(app, x_api_key=bob).status == 200
    refused = ask(app, x_api_key=alice)
    midnight = 86_400 - 1_000_000 % 86_400
    assert dict(refused.headers)["retry-after"] == str(midnight)
    clock.now += midnight
    assert ask(app, x_api_key=alice).status == 200


def test_wrong_credentials_count_against_the_address(make: Any, clock: Any, tmp_path: Path) -> None:
    keys.add(tmp_path / "keys.json", "alice", scopes=["predict"])
    app = make(auth={"keys": "keys.json"}, limits={"per_address": {"per_s": 1, "burst": 2}})
    assert [ask(app, x_api_key="tm_00000000_guess").status for _ in range(3)] == [401, 401, 429]


def test_the_address_is_what_the_outermost_trusted_proxy_saw(make: Any, clock: Any) -> None:
    one = {"per_s": 1, "burst": 1}
    trusting = make(limits={"per_address": one, "proxies": 1})
    assert ask(trusting, "10.0.0.9", x_forwarded_for="6.6.6.6, 1.1.1.1").status == 200
    assert ask(trusting, "10.0.0.9", x_forwarded_for="7.7.7.7, 1.1.1.1").status == 429  # the first is only what the client says
    assert ask(trusting, "10.0.0.9", x_forwarded_for="2.2.2.2").status == 200
    wary = make(limits={"per_address": one})
    assert ask(wary, "10.0.0.9", x_forwarded_for="1.1.1.1").status == 200
    assert ask(wary, "10.0.0.9", x_forwarded_for="2.2.2.2").status == 429


@given(st.lists(st.floats(0, 3), max_size=60), st.floats(0.2, 5), st.integers(1, 6))
def test_no_window_holds_more_than_the_burst_and_the_rate(gaps: list[float], per_s: float, burst: int) -> None:
    counter, rate, allowed, now = LocalCounter(), Rate(per_s=per_s, burst=burst), [], 0.0
    for gap in gaps:
        now += gap
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limits.time, "monotonic", lambda now=now: now)
            if counter.take("a", rate) == 0:
                allowed.append(now)
    for i, start in enumerate(allowed):
        for j in range(i, len(allowed)):
            assert j - i + 1 <= burst + (allowed[j] - start) * per_s + 1e-6


def test_the_longest_silent_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMEMBERED", 10)
    counter, rate = LocalCounter(), Rate(per_s=0.001)
    for i in range(50):
        assert counter.take(str(i), rate) == 0
    assert len(counter._known) == 10
    assert counter.take("49", rate) > 0


def redis_counter(url: str, events: Events | None = None) -> RedisCounter:
    return RedisCounter(url, instead=LocalCounter(), events=events or Events())


@pytest.mark.server
def test_several_servers_count_together_in_redis(redis_url: str) -> None:
    one, other = redis_counter(redis_url), redis_counter(redis_url)
    rate = Rate(per_s=0.01, burst=3)
    waits = [counter.take("key:shared", rate) for counter in (one, other, one, other)]
    assert waits[:3] == [0.0, 0.0, 0.0]
    assert 90 < waits[3] <= 100
    quota = Rate(per_day=2)
    assert [counter.take("key:daily", quota) > 0 for counter in (one, other, one)] == [False, False, True]


@pytest.mark.server
def test_the_counts_of_both_places_agree(redis_url: str) -> None:
    rate, here, there = Rate(per_s=1000, burst=5, per_day=40), LocalCounter(), redis_counter(redis_url)
    for counter in (here, there):
        assert sum(counter.take("agree", rate) == 0 for _ in range(200) if time.sleep(0.001) is None) == 40


@pytest.mark.server
def test_without_redis_each_counts_alone_and_says_so(start_redis: Any) -> None:
    with pytest.raises(Unavailable, match="must answer when the server starts"):
        redis_counter("redis://127.0.0.1:1/0")
    said: list[Event] = []
    rate = Rate(per_s=0.01, burst=2)
    with start_redis() as (url, server):
        counter = redis_counter(url, Events(said.append))
        assert counter.take("a", rate) == 0
        assert said == []
        server.kill()
        server.wait(10)
        assert [counter.take("a", rate) > 0 for _ in range(3)] == [False, False, True]
    assert [event.kind for event in said] == ["serve.limits_alone"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "must say per_key or per_address"),
        ({"per_key": {}}, "must say per_s or per_day"),
        ({"per_key": {"per_day": 5, "burst": 3}}, "burst has no effect"),
        ({"per_key": {"per_s": 0}}, "per_s"),
    ],
)
def test_a_wrong_section(tree: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(LimitsConfig, tree, path="serve.limits").check()


# Pages of other origins.


def test_a_page_of_a_named_origin_may_ask(make: Any) -> None:
    app = make(cors={"origins": ["https://app.example.com"]})
    asked = {"origin": "https://app.example.com", "access-control-request-method": "POST"}
    preflight = app.handle(Request("OPTIONS", "/predict", headers=asked))
    assert preflight.status == 204
    assert dict(preflight.headers)["access-control-allow-origin"] == "https://app.example.com"
    assert "authorization" in dict(preflight.headers)["access-control-allow-headers"]
    answer = dict(ask(app, origin="https://app.example.com").headers)
    assert answer["access-control-allow-origin"] == "https://app.example.com"
    assert answer["vary"] == "origin"


def test_other_pages_may_not(make: Any, tmp_path: Path) -> None:
    app = make(cors={"origins": ["https://app.example.com"]})
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert app.handle(Request("OPTIONS", "/predict", headers=asked)).status == 403
    assert "access-control-allow-origin" not in dict(ask(app, origin="https://evil.example").headers)
    assert make().handle(Request("OPTIONS", "/predict", headers=asked)).status == 405


def test_a_refusal_can_be_read_by_the_page_too(make: Any, tmp_path: Path) -> None:
    keys.add(tmp_path / "keys.json", "alice", scopes=["predict"])
    app = make(cors={"origins": ["*"]}, auth={"keys": "keys.json"})
    refused = ask(app, origin="https://any.example")
    assert refused.status == 401
    assert dict(refused.headers)["access-control-allow-origin"] == "*"
    assert app.handle(Request("OPTIONS", "/predict", headers={"origin": "https://any.example"})).status == 204
