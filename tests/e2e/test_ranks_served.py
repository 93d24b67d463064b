"""Networks that PyTorch ranks answer for: equal to the graph, gone and back after a failure, never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill.core.events import Event, Events
from tidemill.core.package import Package, Predictor
from tidemill.core.project import from_tree
from tidemill.core.runtime import RanksConfig
from tidemill.packaging import gate
from tidemill.pipeline import run
from tidemill.predict.batch import predict
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import Request
from tidemill.serve.model import Model

pytestmark = pytest.mark.slow

BUILD = "net_of_ranks:build"
MODULE = """
from torch import nn
from tidemill.models.networks.inputs import Head, Inputs

def build(shape):
    return Net(Inputs(shape, max_embedding=4), shape)

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return x + self.down(self.up(x).relu())

class Net(nn.Module):
    tp_plan = {"layers.*.up": "colwise", "layers.*.down": "rowwise"}
    split_points = "layers"

    def __init__(self, inputs, shape):
        super().__init__()
        self.inputs, self.first = inputs, nn.Linear(inputs.width, 16)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = Head(16, shape)

    def forward(self, features):
        x = self.first(self.inputs(features))
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
"""
# A server's process in small: answers once, then waits to be killed.
SERVER = """
import sys, time
from tidemill.core.package import Package, Predictor
from tidemill.core.runtime import RanksConfig
package = Package.open(sys.argv[1])
predictor = Predictor(package, runtime="torch", ranks=RanksConfig(tensor=2, build=sys.argv[2]))
predictor.records([package.example])
print("answered", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "net_of_ranks.py").write_text(MODULE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(gate, "LATENCY_S", 0.01)
        yield folder


@pytest.fixture(scope="module")
def package(patched: Path) -> Package:
    """A package whose contract promises two stages of a pipeline; calibrated, so that more than a link follows the scores."""
    return made(patched, {"kind": BUILD, "calibrate": "platt"}, {"pipeline": 2}, classes=2)


def made(folder: Path, model: dict[str, Any], torch: dict[str, int], *, classes: int) -> Package:
    rng = np.random.default_rng(0)
    place_N, city_N = rng.normal(size=400), rng.integers(0, 9, 400)
    value_N = place_N + city_N % 3
    target = np.clip(value_N.round(), 0, classes - 1).astype(int) if classes else value_N
    cities = [f"c{city}" for city in city_N]
    table = pa.table({"place": pa.array(place_N, mask=rng.random(400) < 0.1), "city": cities, "target": target})
    pq.write_table(table, folder / "rows.parquet")
    tree = {
        "name": "net", "engine": {"threads": 1},
        "data": {"source": "rows.parquet", "target": "target", "split": {"valid": 0.2, "test": 0.2}},
        "features": {"city": [{"op": "embedding", "width": 4}]},
        "model": model, "train": {"epochs": 4, "batch_size": 32, "optimizer": {"learning_rate": 1e-2}},
        "contract": {"torch": torch},
    }  # fmt: skip
    found = run(from_tree(tree, folder=folder), home=folder / "home")
    assert found.refused is None, found.refused
    assert found.package is not None
    return found.package


def test_the_gate_holds_ranks_to_the_graph_before_there_is_a_package(package: Package) -> None:
    evidence = package.evidence()["torch"]
    assert evidence["runtime"].endswith("tensor 1 x pipeline 2")
    assert evidence["rows"] == package.evidence()["parity"]["rows"] > 0
    assert 0 < evidence["max_difference"] <= 1e-5
    assert {"network/weights.safetensors", "network/link.onnx"} <= package.manifest["files"].keys()
    assert package.ranks == RanksConfig(pipeline=2)


def test_a_rank_that_is_killed_costs_some_requests_and_none_is_left_in_the_end(package: Package) -> None:
    records = [{"place": place, "city": city} for place in (None, -1.0, 0.3) for city in ("c1", "c8", "nowhere")]
    expected = Predictor(package).records(records).probability
    assert expected is not None
    heard: list[Event] = []
    model = Model(package, runtime="torch", ranks=RanksConfig(tensor=2, build=BUILD), events=Events(heard.append))
    app = App([model], config=ServeConfig())
    try:
        first = children()
        assert len(first) == 2
        status, answers = asked(app, records)
        assert status == 200
        assert [answer["probability"] for answer in answers["predictions"]] == pytest.approx(expected[:, 1], abs=1e-5)
        os.kill(first[1], signal.SIGKILL)
        status, refused = until(lambda: asked(app, records), lambda found: found[0] != 200)
        assert status == 503
        assert "being started again" in refused["error"]["reason"]
        status, again = until(lambda: asked(app, records), lambda found: found[0] == 200)
        assert [answer["probability"] for answer in again["predictions"]] == pytest.approx(expected[:, 1], abs=1e-5)
        assert any("was killed by SIGKILL" in event.message for event in heard if event.kind == "ranks.failed")
        assert not set(first) & set(children())
    finally:
        app.close()
        model.close()
    assert children() == []


def test_ranks_end_with_a_process_that_is_killed(package: Package, patched: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(patched)}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(package.path), BUILD], stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "answered\n"
            ranks = children(server.pid)
            assert len(ranks) == 2
        finally:
            server.kill()
    assert until(lambda: [rank for rank in ranks if runs(rank)], lambda left: not left) == []


@pytest.mark.parametrize(("kind", "classes"), [pytest.param(BUILD, 4, marks=pytest.mark.long), ("mlp", 0)])
def test_layers_and_stages_at_once_answer_as_the_graph_does(kind: str, classes: int, patched: Path, tmp_path: Path) -> None:
    model = {"kind": kind} if classes else {"kind": kind, "depth": 2, "width": 16}
    package = made(tmp_path, model, {"tensor": 2, "pipeline": 2}, classes=classes)
    evidence = package.evidence()["torch"]
    assert evidence["runtime"].endswith("tensor 2 x pipeline 2")
    assert evidence["max_difference"] <= 1e-5
    if kind == "mlp":  # of a kind that is built in, no function need be allowed
        rows, answers = tmp_path / "rows.parquet", tmp_path / "answers.parquet"
        predict(package, rows, answers, runtime="torch")
        by_ranks = pq.read_table(answers)["prediction"].to_numpy()
        predict(package, rows, answers)
        np.testing.assert_allclose(by_ranks, pq.read_table(answers)["prediction"].to_numpy(), rtol=1e-5, atol=1e-5)
    assert children() == []


@pytest.mark.long
def test_texts_are_read_on_ranks(tiny_encoder: Path, patched: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    liked_N = rng.random(150) < 0.5
    texts = [" ".join(["the", "film", "was", *rng.choice(["good", "great"] if liked else ["bad", "dull"], 2)]) for liked in liked_N]
    pq.write_table(pa.table({"said": texts, "target": liked_N}), tmp_path / "rows.parquet")
    tree = {
        "name": "net", "engine": {"threads": 1},
        "data": {"source": "rows.parquet", "target": "target", "split": {"valid": 0.2, "test": 0.2}},
        "model": {"kind": "decoder", "tokenizer": str(tiny_encoder), "max_length": 12, "depth": 2, "width": 32, "heads": 2, "hidden": 64},
        "train": {"epochs": 6, "batch_size": 16, "optimizer": {"learning_rate": 3e-3}},
        "contract": {"torch": {"tensor": 2, "pipeline": 2}},
    }  # fmt: skip
    found = run(from_tree(tree, folder=tmp_path), home=tmp_path / "home")
    assert found.refused is None, found.refused
    assert found.package is not None
    evidence = found.package.evidence()["torch"]
    assert evidence["runtime"].endswith("tensor 2 x pipeline 2")
    assert evidence["max_difference"] <= 1e-5


def asked(app: App, records: list[dict[str, Any]]) -> tuple[int, Any]:
    body = json.dumps({"records": records}).encode()
    response = app.handle(Request("POST", "/predict_batch", "", {"content-type": "application/json"}, body))
    return response.status, json.loads(response.body)


def until(look: Callable[[], Any], enough: Callable[[Any], bool], *, limit_s: float = 120) -> Any:
    end = time.monotonic() + limit_s
    while not enough(found := look()):
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def children(pid: int | None = None) -> list[int]:
    """Ranks that a process has started and that run."""
    pid = pid or os.getpid()
    told = " ".join(task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children")).split()
    return sorted(int(child) for child in told if runs(int(child)) and b"ranks.entry" in Path(f"/proc/{child}/cmdline").read_bytes())


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
