"""What every runtime must do, for runtimes of third parties too. Needs `onnx`.

Example:
    `check_runtime("openvino")`, or any extension of the kind `runtime`.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.core.errors import DataError, Unsupported
from tidemill.core.graph import IR_VERSION, OPSETS
from tidemill.core.runtime import Precision, RanksConfig, Runtime, open_runtime

WIDTH, HIDDEN, VOCABULARY = 16, 32, 50
# Rounding of sums in single precision, and of products in bf16, for answers of about 1.
TOLERANCE: dict[str, float] = {"fp32": 1e-5, "bf16": 0.03}


def check_runtime(
    name: str, folder: Path, *, precision: Precision = "fp32", model: Path | None = None, ranks: RanksConfig | None = None
) -> None:
    """Hold a runtime to its contract on a small encoder of token ids, whose answers NumPy knows.

    Args:
        folder: Where files may be written.
        model: The encoder's network, made of `weights`, for a runtime that takes no graph.
        ranks: What that is divided over.

    Raises:
        AssertionError: If it breaks the contract.
    """
    content = encoder()
    file = folder / "encoder.onnx"
    file.write_bytes(content)
    runtime = open_runtime(name, model or file, threads=2, parallel=2, precision=precision, ranks=ranks)
    limit = TOLERANCE[precision]
    _describes_itself(runtime, precision)
    _answers_for_any_shape(runtime, limit)
    _answers_the_same_in_company(runtime, limit)
    _keeps_no_array(runtime)
    _answers_from_several_threads(runtime, limit)
    _sleeps_while_idle(runtime)
    if model is None:
        assert np.array_equal(_run(open_runtime(name, content, precision=precision), tokens(2, 4)), _run(runtime, tokens(2, 4))), (
            "a file and its bytes are one graph"
        )
    _closes(runtime)
    _refuses((DataError, Unsupported), lambda: open_runtime(name, b"no graph"))
    strange: Any = "fp11"
    _refuses((Unsupported,), lambda: open_runtime(name, content, precision=strange))


def tokens(rows: int, length: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Token ids and mask of texts, the second half of them padded by one."""
    rng = np.random.default_rng(seed)
    ids_NL = rng.integers(1, VOCABULARY, (rows, length))
    mask_NL = np.ones_like(ids_NL)
    if length > 1:
        mask_NL[rows // 2 :, -1] = 0
    return {"input_ids": ids_NL * mask_NL, "attention_mask": mask_NL}


def expected(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What the encoder answers, in NumPy: embed, mix, attend to each other, mean over the mask, normalise."""
    table, first, second = weights()
    mask_NL1 = inputs["attention_mask"][..., None].astype(np.float64)
    x_NLD = np.tanh(table.astype(np.float64)[inputs["input_ids"]] @ first)
    scores = x_NLD @ x_NLD.transpose(0, 2, 1) / np.sqrt(HIDDEN) + (mask_NL1.transpose(0, 2, 1) - 1) * 1e4
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    x_NLD = shares / shares.sum(axis=-1, keepdims=True) @ x_NLD @ second
    pooled = (x_NLD * mask_NL1).sum(axis=1) / mask_NL1.sum(axis=1)
    return np.asarray(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))


def encoder() -> bytes:
    """A text encoder of one attention layer: `input_ids` and `attention_mask` int64 [N, L] to `prediction` float32 [N, D]."""
    from onnx import TensorProto, helper, numpy_helper

    table, first, second = weights()
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "input_ids"], ["embedded"]),
        node("MatMul", ["embedded", "first"], ["mixed"]),
        node("Tanh", ["mixed"], ["x"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "one"], ["mask_row"]),
        node("Unsqueeze", ["mask", "two"], ["mask_column"]),
        node("Transpose", ["x"], ["turned"], perm=[0, 2, 1]),
        node("MatMul", ["x", "turned"], ["products"]),
        node("Div", ["products", "root"], ["scaled"]),
        node("Sub", ["mask_row", "unit"], ["hidden"]),
        node("Mul", ["hidden", "far"], ["away"]),
        node("Add", ["scaled", "away"], ["scores"]),
        node("Softmax", ["scores"], ["shares"], axis=-1),
        node("MatMul", ["shares", "x"], ["attended"]),
        node("MatMul", ["attended", "second"], ["y"]),
        node("Mul", ["y", "mask_column"], ["known"]),
        node("ReduceSum", ["known", "one"], ["sum"], keepdims=0),
        node("ReduceSum", ["mask", "one"], ["count"], keepdims=1),
        node("Div", ["sum", "count"], ["pooled"]),
        node("ReduceL2", ["pooled", "one"], ["norm"], keepdims=1),
        node("Div", ["pooled", "norm"], ["prediction"]),
    ]
    constants: dict[str, Any] = {
        "table": table, "first": first, "second": second, "one": np.array([1], np.int64), "two": np.array([2], np.int64),
        "root": np.float32(np.sqrt(HIDDEN)), "unit": np.float32(1), "far": np.float32(1e4),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "L"]) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["N", HIDDEN])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSETS[""])]
    # ReduceL2 has its axes as an attribute up to opset 17.
    for made in graph.node:
        if made.op_type == "ReduceL2" and OPSETS[""] < 18:
            made.input.pop()
            made.attribute.append(helper.make_attribute("axes", [1]))
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString())


def _describes_itself(runtime: Runtime, precision: str) -> None:
    assert sorted(runtime.inputs) == ["attention_mask", "input_ids"]
    assert runtime.outputs == ["prediction"]
    assert runtime.precision == precision
    assert runtime.name
    assert runtime.version
    assert runtime.device in ("cpu", "cuda")
    assert runtime.compiles_shapes in (True, False)


def _answers_for_any_shape(runtime: Runtime, limit: float) -> None:
    for rows, length in ((1, 1), (1, 7), (3, 7), (5, 2), (1, 7), (16, 33)):
        found = runtime.run(tokens(rows, length))
        assert list(found) == ["prediction"]
        assert found["prediction"].dtype == np.float32
        assert np.abs(found["prediction"] - expected(tokens(rows, length))).max() <= limit, f"{rows} rows of {length} tokens"
    turned = {name: np.asfortranarray(array) for name, array in tokens(4, 6).items()}
    assert np.abs(_run(runtime, turned) - expected(tokens(4, 6))).max() <= limit, "arrays may lie in any order"


def _answers_the_same_in_company(runtime: Runtime, limit: float) -> None:
    """Whatever it does otherwise for a run that is not alone: on other threads, by other kernels."""
    inputs = tokens(3, 7)
    (company,) = runtime.run(inputs, ["prediction"], alone=False).values()
    assert np.abs(company - _run(runtime, inputs)).max() <= limit


def _keeps_no_array(runtime: Runtime) -> None:
    inputs = tokens(3, 5)
    first = _run(runtime, inputs)
    kept = first.copy()
    for array in inputs.values():
        array[:] = 1
    _run(runtime, tokens(3, 5, seed=1))
    gc.collect()
    assert np.array_equal(first, kept), "an answer is the caller's"
    first[:] = 0
    assert np.array_equal(_run(runtime, tokens(3, 5)), kept), "nor does it belong to the runtime"


def _answers_from_several_threads(runtime: Runtime, limit: float) -> None:
    def ask(seed: int) -> float:
        inputs = tokens(1 + seed % 4, 1 + seed % 9, seed=seed)
        (found,) = runtime.run(inputs, ["prediction"], alone=seed % 2 == 0).values()
        return float(np.abs(found - expected(inputs)).max())

    with ThreadPoolExecutor(6) as pool:
        assert max(pool.map(ask, range(200))) <= limit, "answers are not mixed"


def _sleeps_while_idle(runtime: Runtime) -> None:
    import time

    for alone in (True, False):
        runtime.run(tokens(16, 33), alone=alone)
    before, start = time.process_time(), time.perf_counter()
    threading.Event().wait(0.3)
    busy = (time.process_time() - before) / (time.perf_counter() - start)
    assert busy < 0.5, f"threads of a runtime sleep while there is nothing to do, these took {busy:.0%} of a core"


def _closes(runtime: Runtime) -> None:
    runtime.close()
    for alone in (True, False):
        _refuses((RuntimeError,), partial(runtime.run, tokens(1, 1), alone=alone))


def _refuses(kinds: tuple[type[Exception], ...], call: Callable[[], object]) -> None:
    try:
        call()
    except kinds:
        return
    raise AssertionError(f"must raise {' or '.join(kind.__name__ for kind in kinds)}")


def _run(runtime: Runtime, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return runtime.run(inputs, ["prediction"])["prediction"]


def weights() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The encoder's table [V, D] and both matrices [D, H] and [H, H]."""
    rng = np.random.default_rng(7)
    shapes = ((VOCABULARY, WIDTH), (WIDTH, HIDDEN), (HIDDEN, HIDDEN))
    table, first, second = ((rng.normal(size=shape) / np.sqrt(shape[0] if i else 1)).astype(np.float32) for i, shape in enumerate(shapes))
    return table, first, second
