"""Two ends of a channel in one process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tidemill.core.errors import ConfigError, ContractViolation, MissingDependency, NotFound, TidemillError, Unavailable
from tidemill.serve.replicas.channel import Channel, raised, told


class Ends:
    """Both ends; `handle` answers on the far one."""

    def __init__(self) -> None:
        here, there = socket.socketpair()
        self.gone = threading.Event()
        self.handle: Callable[[str, Any], Any] = lambda word, value: {word: value}
        self.near = Channel(here, lambda word, value: [word, value], ended=self.gone.set, name="near")
        self.far = Channel(there, self._handle, ended=lambda: None, name="far")

    def _handle(self, word: str, value: Any) -> Any:
        return self.handle(word, value)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.near.close()
    made.far.close()


def test_a_question_is_answered(ends: Ends) -> None:
    assert ends.near.ask("say", {"a": [1, None, "航空"]}, timeout_s=10) == {"say": {"a": [1, None, "航空"]}}


def test_questions_of_many_threads_get_their_own_answers(ends: Ends) -> None:
    ends.handle = lambda _, value: value * 2
    found: dict[int, int] = {}

    def ask(number: int) -> None:
        found[number] = ends.near.ask("double", number, timeout_s=30)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: number * 2 for number in range(40)}


def test_who_is_asked_may_ask_back(ends: Ends) -> None:
    ends.handle = lambda word, _: ends.far.ask(word, 1, timeout_s=10)
    assert ends.near.ask("back", timeout_s=10) == ["back", 1]


def test_an_error_comes_back_as_it_was(ends: Ends) -> None:
    def fail(_: str, __: Any) -> None:
        raise ContractViolation(["p99 must be at most 1, is 2"], hint="wait")

    ends.handle = fail
    with pytest.raises(ContractViolation, match=r"contract broken: p99 must be at most 1, is 2; wait") as caught:
        ends.near.ask("fail", timeout_s=10)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConfigError("a", hint="b"), ConfigError),
        (NotFound("version of 'x'", "7", ["1", "2"]), NotFound),
        (MissingDependency("httptools", "serve", "tidemill serve"), ConfigError),
        (Unavailable("a"), Unavailable),
        (ZeroDivisionError("division by zero"), TidemillError),
    ],
)
def test_errors_travel(error: Exception, kind: type[TidemillError]) -> None:
    back = raised(told(error))
    assert type(back) is kind
    assert str(error) in str(back)


def test_whoever_waits_hears_that_the_other_is_gone(ends: Ends) -> None:
    ends.handle = lambda _, __: threading.Event().wait(20)
    threading.Timer(0.1, ends.far.close).start()
    with pytest.raises(Unavailable, match="gone"):
        ends.near.ask("wait", timeout_s=None)
    assert ends.gone.wait(10)
    with pytest.raises(Unavailable, match="gone"):
        ends.near.ask("again", timeout_s=None)


def test_no_answer_in_time(ends: Ends) -> None:
    waiting = threading.Event()
    ends.handle = lambda _, __: waiting.wait(20)
    with pytest.raises(Unavailable, match=r"must answer within 0\.05 s"):
        ends.near.ask("wait", timeout_s=0.05)
    waiting.set()
