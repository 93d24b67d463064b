"""The steps of a call by themselves: when it is sent again, and when it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tidemill.client import AsyncClient, Client
from tidemill.client.asking import DEADLINE, Core, Late, Lost, NotSent, Send, Server, Wait
from tidemill.client.calls import Outgoing
from tidemill.client.http1 import Reply
from tidemill.core.errors import ConfigError, Unavailable

OK = Reply(200, {}, b"{}")
BUSY = Reply(503, {}, b'{"error": "busy"}')


def server(**more: Any) -> Server:
    return Server.at("http://127.0.0.1:8000/models", **{"timeout_s": 5.0, **more})


def steps(asking: Any, happens: Sequence[Reply | Exception]) -> tuple[list[Send | Wait], Any]:
    """What a call asks its transport for when `happens` befalls its sendings, and what it returns."""
    taken: list[Send | Wait] = []
    coming = iter(happens)
    try:
        step = next(asking)
        while True:
            taken.append(step)
            event = next(coming) if isinstance(step, Send) else None
            step = asking.throw(event) if isinstance(event, Exception) else asking.send(event)
    except StopIteration as done:
        return taken, done.value


def sendings(taken: list[Send | Wait]) -> int:
    return sum(isinstance(step, Send) for step in taken)


@pytest.mark.parametrize("happens", [[OK], [BUSY, OK], [Reply(429, {}, b""), OK], [NotSent("refused"), NotSent("refused"), OK]])
def test_what_is_safe_is_sent_again_after_a_pause(happens: list[Any]) -> None:
    taken, reply = steps(server().reply(Outgoing("GET", "/health")), happens)
    assert reply == OK
    assert sendings(taken) == len(happens)
    assert len(taken) == 2 * len(happens) - 1


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 422, 500, 502, 504])
def test_another_answer_is_the_last_word(status: int) -> None:
    taken, reply = steps(server().reply(Outgoing("GET", "/health")), [Reply(status, {}, b"{}")])
    assert (len(taken), reply.status) == (1, status)


def test_a_kept_connection_that_was_closed_is_replaced_at_once_and_once() -> None:
    taken, reply = steps(server().reply(Outgoing("GET", "/")), [Lost("closed", was_kept=True), OK])
    assert reply == OK
    assert [isinstance(step, Send) and step.fresh for step in taken] == [False, True]
    with pytest.raises(Unavailable, match="closed"):
        steps(server().reply(Outgoing("GET", "/")), [Lost("closed", was_kept=True), Lost("closed", was_kept=True)])


def test_a_call_that_may_have_been_done_is_not_sent_again() -> None:
    with pytest.raises(Unavailable, match="reset"):
        steps(server().reply(Outgoing("GET", "/")), [Lost("reset", was_kept=False)])
    with pytest.raises(Unavailable, match="within 5 s"):
        steps(server().reply(Outgoing("GET", "/")), [Late()])


def test_retries_end() -> None:
    taken, reply = steps(server(retries=2).reply(Outgoing("GET", "/")), [BUSY, BUSY, BUSY])
    assert (sendings(taken), reply) == (3, BUSY)
    taken, reply = steps(server(retries=0).reply(Outgoing("GET", "/")), [BUSY])
    assert (len(taken), reply) == (1, BUSY)
    with pytest.raises(Unavailable, match="refused; is it running"):
        steps(server(retries=1).reply(Outgoing("GET", "/")), [NotSent("refused"), NotSent("refused")])


def test_the_time_that_the_server_asks_for_is_given() -> None:
    taken, _ = steps(server().reply(Outgoing("GET", "/")), [Reply(503, {"retry-after": "2"}, b""), OK])
    (wait,) = [step for step in taken if isinstance(step, Wait)]
    assert 2 <= wait.seconds <= 2.1


def test_nothing_is_awaited_that_would_come_too_late() -> None:
    busy = Reply(503, {"retry-after": "60"}, b"")
    taken, reply = steps(server().reply(Outgoing("GET", "/")), [busy])
    assert (len(taken), reply) == (1, busy)


def test_pauses_grow_and_are_never_the_same() -> None:
    def pauses() -> list[float]:
        taken, _ = steps(server(retries=6, timeout_s=1e6).reply(Outgoing("GET", "/")), [BUSY] * 7)
        return [step.seconds for step in taken if isinstance(step, Wait)]

    runs = [pauses() for _ in range(50)]
    assert all(0 <= pause <= min(5.0, 0.1 * 2**i) for run in runs for i, pause in enumerate(run))
    assert max(run[5] for run in runs) > 1.0
    assert len({tuple(run) for run in runs}) == 50


def test_the_server_is_told_how_long_the_caller_waits() -> None:
    taken, _ = steps(server(timeout_s=2.0).reply(Outgoing("GET", "/")), [OK])
    assert isinstance(taken[0], Send)
    head = taken[0].request.decode()
    (said,) = [line.partition(": ")[2] for line in head.split("\r\n") if line.startswith(DEADLINE)]
    assert 1900 < int(said) <= 2000
    assert head.startswith("GET /models/ HTTP/1.1\r\nhost: 127.0.0.1:8000\r\n")


def test_credentials_are_sent_and_shown_nowhere() -> None:
    def sent(**more: Any) -> str:
        taken, _ = steps(server(**more).reply(Outgoing("GET", "/")), [OK])
        assert isinstance(taken[0], Send)
        return taken[0].request.decode()

    assert "\r\nx-api-key: tm_secret\r\n" in sent(api_key="tm_secret")
    assert "\r\nauthorization: Bearer abc\r\n" in sent(token="abc")
    fresh = iter(["one", "two"])
    asked = server(token=lambda: next(fresh))
    first = steps(asked.reply(Outgoing("GET", "/")), [BUSY, OK])[0]
    assert [b"Bearer one" in first[0].request, b"Bearer two" in first[2].request] == [True, True]  # type: ignore[union-attr]
    assert "tm_secret" not in repr(server(api_key="tm_secret"))


def test_large_bodies_are_compressed_where_it_is_asked_for() -> None:
    large = Outgoing("POST", "/", b" " * 100_000)
    plain, _ = steps(server().reply(large), [OK])
    packed, _ = steps(server(gzip=True).reply(large), [OK])
    small, _ = steps(server(gzip=True).reply(Outgoing("POST", "/", b"{}")), [OK])
    assert isinstance(plain[0], Send)
    assert isinstance(packed[0], Send)
    assert isinstance(small[0], Send)
    assert len(packed[0].request) < 1_000 < len(plain[0].request)
    assert b"content-encoding: gzip" in packed[0].request
    assert b"content-encoding" not in small[0].request


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "ftp://a"}, "url: must be like"),
        ({"url": "http://"}, "url: must be like"),
        ({"url": ""}, "url: must be like"),
        ({"url": "http://a:99999"}, "url: must be like"),
        ({"url": "http://user:secret@a"}, "url: must be like"),
        ({"version": "3"}, "model: must be given with version '3'"),
        ({"timeout_s": 0}, "timeout_s: must be > 0, got 0"),
        ({"retries": -1}, "retries: must be >= 0, got -1"),
        ({"max_connections": 0}, "max_connections: must be >= 1, got 0"),
        ({"api_key": "a", "token": "b"}, "one of api_key and token"),
        ({"api_key": "a\r\nb"}, "x-api-key: must be printable ASCII"),
        ({"ca": "ca.pem"}, "ca: must go with an https address"),
        ({"url": "https://a", "ca": "/nowhere/ca.pem"}, "ca: must be a file of certificates"),
    ],
)
def test_a_client_that_cannot_work_is_refused(kind: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**arguments)


def test_an_address_may_come_without_its_scheme_and_under_a_path() -> None:
    assert Client("127.0.0.1:9000").url == "http://127.0.0.1:9000"
    assert Client("http://host/models/").url == "http://host/models"
    assert Client("https://host").url == "https://host"
    assert Client("http://[::1]:9000").url == "http://[::1]:9000"


def test_a_refused_part_makes_all_later_ones_smaller() -> None:
    core = Core(server(), model=None, version=None)
    too_large = Reply(413, {}, b"{}")
    done = [Reply(200, {}, b'{"predictions": [1]}'), Reply(200, {}, b'{"predictions": [2]}'), Reply(200, {}, b'{"predictions": [3]}')]
    taken, answers = steps(core.predict_batch([{"a": i} for i in range(5)], None), [too_large, done[0], done[1]])
    assert answers == [1, 2]
    assert [step.request.count(b'"a"') for step in taken if isinstance(step, Send)] == [5, 3, 2]
