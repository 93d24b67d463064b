"""Every runtime answers as its contract says; those whose library or device is absent say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.core.errors import MissingDependency, NotFound, Unsupported
from tidemill.core.load import names
from tidemill.core.runtime import Precision, open_runtime
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


def test_an_unknown_runtime_names_those_that_there_are() -> None:
    with pytest.raises(NotFound, match="cuda, onnxruntime, openvino, tensorrt"):
        open_runtime("onxruntime", encoder())
