"""Sizes of memory, and the engine that is opened and closed."""

from __future__ import annotations

import pytest

from tidemill.core.engine import EngineConfig, memory_bytes, open_engine
from tidemill.core.errors import ConfigError, NotFound


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1), ("1073741824", 2**30), ("1073741824B", 2**30), ("1k", 1_000), ("1KB", 1_000), ("1KiB", 1_024), ("512MiB", 512 * 2**20),
        ("512MB", 512_000_000), ("2GiB", 2 * 2**30), ("2 GiB", 2 * 2**30), (" 2gib ", 2 * 2**30), ("2G", 2 * 10**9), ("1.5GiB", 3 * 2**29),
        ("1TiB", 2**40), ("0.5TB", 5 * 10**11),
    ],
)  # fmt: skip
def test_sizes(text: str, expected: int) -> None:
    assert memory_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "lots", "0", "0GiB", "-1GiB", "1 2", "1PiB", "GiB", "1e9", "50%", "1.GiB", "1,5GiB", "١GiB?"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match=r"engine.memory: must be a size such as 512MiB or 2GiB, got"):
        memory_bytes(text)


def test_an_engine_is_closed_whatever_happens() -> None:
    closed: list[str] = []

    class Engine:
        def __init__(self, config: EngineConfig, *, scratch: object) -> None:
            self.config = config

        def close(self) -> None:
            closed.append("yes")

    with pytest.raises(KeyError), open_engine(EngineConfig(data=Engine)) as engine:  # type: ignore[arg-type]
        assert isinstance(engine, Engine)
        raise KeyError
    assert closed == ["yes"]
    with pytest.raises(NotFound, match="engine 'loca' is not known"), open_engine(EngineConfig(data="loca")):
        pass
