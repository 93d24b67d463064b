"""Large constants in 16 bits beside products in bf16: which, and that it is memory that becomes less."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tidemill.core.graph import IR_VERSION, OPSETS
from tidemill.core.runtimes.openvino import HALVED_BYTES, OpenVino, halve_weights, has_bf16

rounds = pytest.mark.skipif(not has_bf16(), reason="this processor does not compute in bf16")

# In a process of its own: a table of 64 MB, of which the compiled graphs hold 32.
PROGRAM = """
import os, sys
import numpy as np
from pathlib import Path
from tidemill.core.runtimes.openvino import OpenVino
from tidemill.testing.memory import tree_pss

small, large = Path(sys.argv[1]), Path(sys.argv[2])

def held(file):
    before = tree_pss(os.getpid())
    runtime = OpenVino(file, threads=2, parallel=2, precision="bf16")
    ids = np.arange(64)
    for alone in (True, False):
        runtime.run({"ids": ids}, alone=alone)
    return tree_pss(os.getpid()) - before, runtime

first = held(small)  # the library's own
print(held(large)[0] >> 20)
"""


@rounds
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_a_table_takes_half_its_size(tmp_path: Path) -> None:
    files = [tmp_path / "small.onnx", tmp_path / "large.onnx"]
    for file, rows in zip(files, (1_000, 128 * 1024), strict=True):
        file.write_bytes(graph(np.random.default_rng(0).normal(size=(rows, 128)).astype(np.float32)))
    done = subprocess.run([sys.executable, "-c", PROGRAM, *map(str, files)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 48


@rounds
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_weights_of_any_size_answer_as_bf16_does(scale: float) -> None:
    table = (scale * np.random.default_rng(1).normal(size=(512, 128))).astype(np.float32)
    table[0, 0] = 300 * scale
    ids = np.arange(512)
    found = OpenVino(graph(table), precision="bf16").run({"ids": ids})["y"]
    assert np.abs(found - table[ids]).max() <= 2.0**-8 * np.abs(table).max()
    assert np.all(np.isfinite(found))


@pytest.mark.parametrize(
    ("table", "kept"),
    [
        (np.full((128, 256), 0.1), "f16"),
        (np.zeros((128, 256)), "f32"),  # compressed or not, nothing depends on it
        (np.eye(128, 256) * 65_505.0, "f32"),
        (-np.eye(128, 256) * 65_505.0, "f32"),
        (np.full((128, 256), 2.0**-15), "f32"),
        (np.full((128, 256), np.nan), "f32"),
        (np.full((HALVED_BYTES // 4 - 1, 1), 0.1), "f32"),
        (np.full((128, 256), 0.1), "f64"),
    ],
)
def test_what_would_change_is_kept(table: np.ndarray, kept: str) -> None:
    import openvino

    table = table if kept == "f64" else table.astype(np.float32)
    model = openvino.Core().read_model(graph(table))
    halve_weights(model)
    sizes = {
        node.get_element_type().get_type_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant" and len(node.get_output_shape(0)) == 2
    }
    assert sizes == {kept}


def graph(table: np.ndarray) -> bytes:
    """Rows of a table by their numbers."""
    kind = TensorProto.DOUBLE if table.dtype == np.float64 else TensorProto.FLOAT
    made = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "rows",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", kind, ["N", table.shape[1]])],
        [numpy_helper.from_array(table, "table")],
    )
    opsets = [helper.make_opsetid("", OPSETS[""])]
    return bytes(helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString())
