from __future__ import annotations

import asyncio
import datetime as dt
import queue
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tidemill.client import AsyncClient, Client
from tidemill.core.errors import ConfigError
from tidemill.serve.config import ServeConfig
from tidemill.serve.server import Running, serve
from tidemill.serve.tls import TlsConfig
from tidemill.testing.packages import EXAMPLE, tiny_package

pytestmark = pytest.mark.server


def certificate(folder: Path) -> TlsConfig:
    """A certificate for `localhost` that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return TlsConfig(cert=folder / "cert.pem", key=folder / "key.pem")


def ask(url: str, **arguments: Any) -> list[bool]:
    """What each kind of client is answered, twice over one connection."""
    with Client(url, **arguments) as client:
        answers = [client.predict(EXAMPLE)["prediction"] for _ in range(2)]
        assert len(client._pool._idle) == 1

    async def alike() -> list[bool]:
        async with AsyncClient(url, **arguments) as client:
            return [(await client.predict(EXAMPLE))["prediction"] for _ in range(2)]

    return [*answers, *asyncio.run(alike())]


def test_a_server_is_trusted_by_its_authority_alone(tmp_path: Path) -> None:
    tls = certificate(tmp_path)
    ready: queue.Queue[Running] = queue.Queue()
    options = {"config": ServeConfig(port=0, tls=tls), "on_ready": ready.put}
    thread = threading.Thread(target=serve, args=([tiny_package(tmp_path / "tiny")],), kwargs=options)
    thread.start()
    running = ready.get(timeout=60)
    try:
        url = running.url.replace("127.0.0.1", "localhost")
        assert ask(url, ca=tls.cert) == [True] * 4
        with pytest.raises(ConfigError, match=r"must be one that is trusted: .*; ca names its authority"):
            Client(url).health()
        with pytest.raises(ConfigError, match="must be one that is trusted"):
            asyncio.run(AsyncClient(url).health())
        with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
            Client(running.url, ca=tls.cert).health()
    finally:
        running.stop()
        thread.join(30)
