"""Arrays cross a socket as they are, whole or not at all."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import numpy as np
import pytest

from tidemill.core.errors import ConfigError, DataError, Unsupported
from tidemill.core.package import Package, Predictor
from tidemill.core.project import build
from tidemill.core.ranks.wire import packed, receive, send, unpacked
from tidemill.serve.config import ServeConfig
from tidemill.testing.packages import tiny_package


def test_arrays_come_back_as_they_were() -> None:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {
        "turned": whole.T, "part": whole[::2, 1:5], "none": np.empty((0, 3), np.int64), "one": np.array(7.5),
        "flags": np.array([[True], [False]]), "missing": np.array([np.nan, np.inf, -0.0], np.float32),
    }  # fmt: skip
    found = unpacked(packed(arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.writeable


def test_an_array_that_could_hold_anything_is_refused() -> None:
    with pytest.raises(DataError, match="must hold numbers"):
        unpacked(b'[["x", "|O", [1]]]\n' + bytes(8))


def test_messages_are_whole_and_their_end_is_seen() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(5)
        send(other, b"")
        send(other, b"second")
        assert (receive(one), receive(one)) == (b"", b"second")
        other.sendall(struct.pack("<Q", 10) + b"cut")
        other.close()
        assert receive(one) is None


def test_ranks_are_asked_for_where_they_act() -> None:
    assert build(ServeConfig, {"runtime": "torch", "parallel": {"tensor": 2}}, path="serve").parallel.ranks == 2
    with pytest.raises(ConfigError, match=r"serve\.parallel: needs serve\.runtime torch, got 'auto'"):
        build(ServeConfig, {"parallel": {"tensor": 2}}, path="serve")


def test_a_package_without_its_network_says_how_to_get_one(tmp_path: Path) -> None:
    package: Package = tiny_package(tmp_path / "package")
    with pytest.raises(Unsupported, match=r"carries none; a project's \[contract\] torch = \{ tensor = 2 \}"):
        Predictor(package, runtime="torch")
