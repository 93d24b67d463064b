"""Every runtime answers as its contract says; those whose library or device is absent say so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidemill.core.errors import MissingDependency, NotFound, Unsupported
from tidemill.core.load import names
from tidemill.core.runtime import Precision, open_runtime, threads_each
from tidemill.testing.runtime import check_runtime, encoder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", names("runtime"))
def test_a_runtime_keeps_its_contract(name: str, precision: Precision, tmp_path: Path) -> None:
    try:
        open_runtime(name, encoder(), precision=precision).close()
    except (Unsupported, MissingDependency) as error:
        pytest.skip(str(error))
    check_runtime(name, tmp_path, precision=precision)


def test_two_runtimes_are_known_to_work_here() -> None:
    for name in ("onnxruntime", "openvino"):
        open_runtime(name, encoder()).close()


@pytest.mark.parametrize(("threads", "parallel", "each"), [(1, 1, 1), (4, 1, 4), (2, 2, 2), (4, 4, 1), (4, 3, 1), (4, 16, 1), (8, 1, 8)])
def test_runs_at_once_share_the_processor_evenly(threads: int, parallel: int, each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert threads_each(threads, parallel) == each


def test_an_unknown_runtime_names_those_that_there_are() -> None:
    with pytest.raises(NotFound, match="cuda, onnxruntime, openvino, tensorrt"):
        open_runtime("onxruntime", encoder())
