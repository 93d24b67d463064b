from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tidemill.core.errors import ConfigError, Conflict
from tidemill.core.events import Event, Events
from tidemill.core.package import Package
from tidemill.core.project import build
from tidemill.serve.config import ServeConfig
from tidemill.serve.listener import listening_socket
from tidemill.serve.replicas.config import bounds
from tidemill.serve.server import check_address, serve


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_word(host: str) -> None:
    seen: list[Event] = []
    check_address(host, allow_open=False, events=Events(seen.append))
    assert seen == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org", ""])
def test_another_address_needs_the_word_and_is_recorded(host: str) -> None:
    seen: list[Event] = []
    with pytest.raises(ConfigError, match=r"serve\.host: must be a loopback address.*--allow-open"):
        check_address(host, allow_open=False, events=Events(seen.append))
    check_address(host, allow_open=True, events=Events(seen.append))
    assert [(event.kind, event.level) for event in seen] == [("serve.open", "warning")]


def test_serve_refuses_an_open_address_before_it_loads_anything(packages: Path) -> None:
    with pytest.raises(ConfigError, match="loopback"):
        serve([Package.open(packages / "binary")], config=ServeConfig(host="0.0.0.0"))


def test_a_taken_port_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Conflict, match=rf"port {port} of 127\.0\.0\.1 must be free, another program listens on it; --port"):
            listening_socket("127.0.0.1", port)


def test_a_port_shared_with_another_server_is_taken() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(Conflict):
            listening_socket("127.0.0.1", other.getsockname()[1])


def test_port_zero_is_a_free_one() -> None:
    with listening_socket("127.0.0.1", 0) as found:
        assert found.getsockname()[1] > 1023


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"serve\.host: must be an address of this machine, got '192\.0\.2\.7'"):
        listening_socket("192.0.2.7", 0)


def test_the_section_says_what_it_takes() -> None:
    assert build(ServeConfig, {"port": 9000, "log": True}, path="serve").port == 9000
    with pytest.raises(ConfigError, match=r"serve\.port: must be in 0\.\.65535, got 70000"):
        build(ServeConfig, {"port": 70_000}, path="serve")


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [(1, 1, 1), (3, 3, 3), ("auto", 1, os.cpu_count()), ({"min": 2, "max": 5}, 2, 5), ({"min": 100}, 100, max(100, os.cpu_count() or 1))],
)
def test_replicas_are_a_number_or_bounds(said: Any, least: int, most: int) -> None:
    found = bounds(build(ServeConfig, {"replicas": said}, path="serve").replicas)
    assert (found.min, found.most) == (least, most)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (0, r"serve\.replicas: must be in 1\.\.256, got 0"),
        ("many", r"serve\.replicas: must be a whole number or auto or "),
        ({"min": 3, "max": 2}, r"serve\.replicas\.max: must be at least min, got 2 below 3"),
    ],
)
def test_wrong_replicas(said: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(ServeConfig, {"replicas": said}, path="serve")
