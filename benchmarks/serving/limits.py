"""What the machine can do in process: length-sorted batches of the text workload straight through a runtime, no server, no tokenizer.

Usage: `python limits.py` prints, for each precision and way, sentences a second, as JSON. Runs as a process of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np
from workloads import WORKLOADS

Inputs = dict[str, np.ndarray]
Run = Callable[[Inputs], Any]
# Every so many-th batch of the sorted ones is run: a sample of all lengths alike.
STEP = 4
SECONDS = 2.0


def main() -> None:
    text = WORKLOADS["text"]
    batches = {size: sorted_batches(text.package, [record["text"] for record in text.records], size) for size in (8, 32)}
    graph = str(text.package / "model.onnx")
    found = {"fp32": {f"batches of {size}, 1 session of 2 threads": rate([onnx(graph, 2)], batches[size]) for size in (8, 32)}}
    found["fp32"]["batches of 8, 2 sessions of 1 thread"] = rate([onnx(graph, 1), onnx(graph, 1)], batches[8])
    if find_spec("openvino") is not None:
        found["bf16"] = {f"batches of {size}, 2 threads": rate([openvino(graph)], batches[size]) for size in (8, 32)}
    print(json.dumps({precision: {way: round(value, 1) for way, value in ways.items()} for precision, ways in found.items()}))


def sorted_batches(package: Any, texts: list[str], size: int) -> list[Inputs]:
    """Every `STEP`-th batch of the texts in the order of their lengths, in a seeded random order."""
    from tokenizers import Tokenizer

    settings = json.loads((package / "tidemill.json").read_text(encoding="utf-8"))["signature"]["preprocess_config"]
    tokenizer = Tokenizer.from_file(str(package / "tokenizer.json"))
    tokenizer.enable_truncation(settings["max_length"])
    tokenizer.no_padding()
    encoded = sorted((tokenizer.encode(text).ids for text in texts), key=len)
    made = []
    for start in range(0, len(encoded), size * STEP):
        rows = encoded[start : start + size]
        ids_BL = np.full((len(rows), max(map(len, rows))), settings["pad_id"], np.int64)
        mask_BL = np.zeros_like(ids_BL)
        for place, row in enumerate(rows):
            ids_BL[place, : len(row)] = row
            mask_BL[place, : len(row)] = 1
        values = {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": np.zeros_like(ids_BL)}
        made.append({name: values[name] for name in settings["inputs"]})
    np.random.default_rng(11).shuffle(made)  # type: ignore[arg-type]
    return made


def rate(runs: list[Run], batches: list[Inputs]) -> float:
    """Sentences a second over whole passes, each runtime on a thread of its own with its share of the batches."""
    shares = [batches[place :: len(runs)] for place in range(len(runs))]

    def go(run: Run, share: list[Inputs]) -> float:
        run(share[0])
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            for batch in share:
                run(batch)
                done += len(batch["input_ids"])
        return done / (time.perf_counter() - start)

    with ThreadPoolExecutor(len(runs)) as pool:
        return sum(pool.map(go, runs, shares))


def onnx(graph: str, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def openvino(graph: str) -> Run:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": 2, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
    return request.infer  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
