"""A running server and thousands of malformed requests: each is answered or refused, good ones between have their answers, memory stays flat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tidemill.testing.packages import tiny_package

pytestmark = pytest.mark.server

# Of each protocol; the long form sends 100,000 together, by ten seeds.
FEW, MANY = 1_500, 5_000
BETWEEN = 25
GROWTH_KB = 48 * 1024


@pytest.fixture(scope="module")
def server(serving: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("served")
    packages = [tiny_package(folder / "rows", name="rows", version="1"), tiny_package(folder / "texts", task="text", name="texts")]
    with serving.served(*(package.path for package in packages), grpc_port=0, body_timeout_s=2.0, max_body_mb=1.0) as running:
        yield running
        assert running.stop() == 0


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 11))])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_bad_input_is_never_a_failure(server: Any, serving: Any, serving_fuzz: Any, protocol: str, seed: int) -> None:
    fuzz = serving_fuzz.HttpFuzz(server.url, seed) if protocol == "http" else serving_fuzz.GrpcFuzz(server.grpc, seed)
    count = MANY if seed else FEW
    try:
        before = 0.0
        for i in range(count):
            fuzz.send()
            if i % BETWEEN == 0:
                fuzz.check()
            if i == count // 5:  # what is made once is made by then
                before = serving.pss_kb(server.process.pid)
        fuzz.check()
    finally:
        fuzz.close()
    found = fuzz.statuses if protocol == "http" else fuzz.codes
    print(protocol, seed, dict(found))
    assert fuzz.failures == []
    assert found[400 if protocol == "http" else "INVALID_ARGUMENT"] > count / 10  # they are malformed, and seen
    assert server.process.poll() is None
    assert server.events("serve.failed") == []
    assert serving.pss_kb(server.process.pid) < before + GROWTH_KB


def test_the_same_seed_sends_the_same(serving_fuzz: Any, tmp_path: Path) -> None:
    first, second = (serving_fuzz.HttpFuzz("http://127.0.0.1:1", 5) for _ in range(2))
    assert [first._request() for _ in range(50)] == [second._request() for _ in range(50)]
