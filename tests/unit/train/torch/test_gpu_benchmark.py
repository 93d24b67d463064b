"""The benchmark of GPUs, where there is none: what it says, and that its counts are right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def benchmark(script: Callable[[str], Any]) -> Any:
    return script("benchmarks/gpu/run.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([]) == 2
    captured = capsys.readouterr()
    assert "there is no GPU" in captured.err
    assert captured.out == ""


def test_it_counts_the_work_of_a_step(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    width, depth, length, batch = 64, 2, 32, 2
    sizes = {"width": width, "depth": depth, "heads": 4, "length": length, "batch": batch, "steps": 2, "repeats": 1, "threads": 1}
    asked = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    assert benchmark.main(["--device", "cpu", "--out", str(tmp_path / "found.json"), *asked]) == 0
    assert "bf16 to fp32" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    hidden = benchmark.feed(width)
    matrices = depth * (4 * width * width + 3 * width * hidden) + width * benchmark.VOCABULARY
    attention = depth * 2 * length * width  # products with keys, and with values
    for way in found["ways"]:
        flops = way["tflops"] * 1e12 * way["step_s"]
        # Forward once, backward twice; the first layer's products are all differentiated, the embedding is a look-up.
        assert flops == pytest.approx(6 * (matrices + attention) * batch * length, rel=0.02)
        assert way["tokens_per_s"] == pytest.approx(batch * length / way["step_s"])
        assert way["loss"] == pytest.approx(torch.tensor(benchmark.VOCABULARY).log().item(), rel=0.05)
        assert way["of_ceiling"] > 0
    assert {way["precision"] for way in found["ways"]} == {"fp32", "bf16"}
