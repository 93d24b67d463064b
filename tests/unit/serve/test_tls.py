"""HTTPS: a certificate that is taken, one that is not, and one that is replaced while requests come."""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tidemill.core.errors import ConfigError
from tidemill.core.events import Event, Events
from tidemill.serve import listener
from tidemill.serve.config import ServeConfig
from tidemill.serve.server import Running, serve
from tidemill.serve.tls import TlsConfig
from tidemill.testing.packages import tiny_package

TLS = TlsConfig(cert=Path("cert.pem"), key=Path("key.pem"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(listener, "LOOK_S", 0.1)


@pytest.fixture
def write(certify: Callable[..., bytes]) -> Callable[..., bytes]:
    """Writes a certificate for `localhost` under a name here, and its key or another's."""
    return partial(certify, Path())


@contextmanager
def served(tmp_path: Path, events: Events | None = None, **config: Any) -> Iterator[Running]:
    package = tiny_package(tmp_path / "tiny")
    ready: queue.Queue[Running] = queue.Queue()
    options = {"config": ServeConfig(port=0, tls=TLS, **config), "on_ready": ready.put, "events": events}
    thread = threading.Thread(target=serve, args=([package],), kwargs=options)
    thread.start()
    running = ready.get(timeout=60)
    try:
        yield running
    finally:
        running.stop()
        thread.join(30)


class NotTaken(Exception):
    """The connection was closed without a word: nobody took the request."""


def shown(port: int, *, newest: ssl.TLSVersion | None = None) -> tuple[str, bytes]:
    """The name on the certificate that a connection is shown, and what it answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if newest is not None:
        context.maximum_version = newest
    try:
        secure = context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=20))
    except OSError as error:
        raise NotTaken from error
    with secure:
        certificate = x509.load_der_x509_certificate(secure.getpeercert(True) or b"")
        answer = b""
        try:
            secure.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            while piece := secure.recv(4096):
                answer += piece
        except OSError as error:
            if answer:
                raise
            raise NotTaken from error
    if not answer:
        raise NotTaken
    return certificate.subject.rfc4514_string(), answer


def until(found: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not found() and time.monotonic() < end:
        time.sleep(0.05)
    return found()


@pytest.mark.server
def test_a_replaced_certificate_is_used_and_no_request_is_lost(tmp_path: Path, write: Callable[..., bytes]) -> None:
    write("one")
    said: list[Event] = []
    failures: list[Exception] = []
    again: list[float] = []  # on their way to the old listener when it closed
    names: set[str] = set()
    stop = threading.Event()
    with served(tmp_path, Events(said.append)) as running:
        assert running.url.startswith("https://")
        port = int(running.url.rpartition(":")[2])

        def ask() -> None:
            while not stop.is_set():
                try:
                    name, answer = shown(port)
                    names.add(name)
                    assert answer.startswith(b"HTTP/1.1 200")
                except NotTaken:
                    again.append(time.monotonic())
                except Exception as error:  # noqa: BLE001 - whatever a caller would meet
                    failures.append(error)

        callers = [threading.Thread(target=ask) for _ in range(2)]
        for caller in callers:
            caller.start()
        assert until(lambda: names == {"CN=one"})
        write("two")
        assert until(lambda: any(event.kind == "serve.certificate" and event.level == "info" for event in said))
        names.clear()
        assert until(lambda: bool(names))
        stop.set()
        for caller in callers:
            caller.join(30)
    assert failures == []
    assert len(again) <= 4
    assert names == {"CN=two"}


@pytest.mark.server
def test_a_pair_that_does_not_go_together_leaves_the_old_one(tmp_path: Path, write: Callable[..., bytes]) -> None:
    write("one")
    said: list[Event] = []
    with served(tmp_path, Events(said.append)) as running:
        write("two", with_its_key=False)
        assert until(lambda: any(event.kind == "serve.certificate" and event.level == "warning" for event in said))
        assert shown(int(running.url.rpartition(":")[2]))[0] == "CN=one"


@pytest.mark.server
def test_grpc_is_secured_by_the_same_files(tmp_path: Path, write: Callable[..., bytes]) -> None:
    def live(root: bytes) -> bytes:
        with grpc.secure_channel(
            str(running.grpc), grpc.ssl_channel_credentials(root), (("grpc.ssl_target_name_override", "localhost"),)
        ) as to:
            return bytes(to.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=20))

    first = write("one")
    with served(tmp_path, grpc_port=0) as running:
        assert live(first) == b"\x08\x01"
        second = write("two")
        assert live(second) == b"\x08\x01"
        with pytest.raises(grpc.RpcError):
            live(first)


@pytest.mark.server
def test_the_oldest_protocol_taken(tmp_path: Path, write: Callable[..., bytes]) -> None:
    write("one")
    with served(tmp_path) as running:
        assert shown(int(running.url.rpartition(":")[2]), newest=ssl.TLSVersion.TLSv1_2)[1].startswith(b"HTTP/1.1 200")


def test_files_that_are_no_pair(tmp_path: Path, write: Callable[..., bytes]) -> None:
    with pytest.raises(ConfigError, match="must be a certificate and its key"):
        TLS.checked(tmp_path)
    write("one", with_its_key=False)
    with pytest.raises(ConfigError, match="must be a certificate and its key"):
        TLS.checked(tmp_path)
    write("one")
    assert TLS.checked(tmp_path) == (tmp_path / "cert.pem", tmp_path / "key.pem")
    locked = serialization.load_pem_private_key(Path("key.pem").read_bytes(), None)
    Path("key.pem").write_bytes(
        locked.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
        )
    )
    with pytest.raises(ConfigError, match="password"):
        TLS.checked(tmp_path)
