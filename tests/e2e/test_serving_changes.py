"""A server that follows its ledger: versions change while callers ask, and nobody is turned away."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidemill.core.graph import IR_VERSION, OPSETS
from tidemill.core.ledger import Ledger
from tidemill.core.package import Package, write
from tidemill.testing.packages import EXAMPLE, tiny_package

pytestmark = pytest.mark.server

Register = Callable[..., int]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


@pytest.fixture
def register(ledger: Ledger, tmp_path: Path) -> Register:
    """Registers a tiny package that differs from those before it; its version."""

    def made(name: str = "tiny", **options: object) -> int:
        number = len(ledger.versions(name))
        package = tiny_package(tmp_path / f"{name}-{number}", name=name, classes=[f"no{number}", f"yes{number}"], **options)  # type: ignore[arg-type]
        return ledger.register(package).version

    return made


def version(server: Any) -> str:
    found: str = server.get("/health")["models"][0]["version"]
    return found


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_versions_change_under_load_and_no_request_fails(
    serving: Any, ledger: Ledger, register: Register, tmp_path: Path, replicas: int
) -> None:
    for _ in range(6):
        register()
    with serving.served("tiny", ledger=tmp_path / "ledger.db", replicas=replicas) as server, serving.Callers(server.url) as callers:
        for wanted in range(2, 7):
            ledger.promote("tiny", wanted, why="newer")
            serving.until(lambda wanted=wanted: version(server) == str(wanted) and str(wanted) in callers.versions())
        # Replicas switch one after the other, within milliseconds; the deployment stands at a version when all have.
        serving.until(lambda: server.get("/health")["deployment"][0]["version"] == "6")
        assert callers.failures == []
        assert callers.versions() == {"1", "2", "3", "4", "5", "6"}
        # What came after the change came from the new one: nobody is left with an old one.
        assert server.get("/models")["models"] == [{"name": "tiny", "version": "6", "task": "binary", "default": True}]
        assert "yes5" in str(server.get("/openapi.json"))
        assert server.metric('tidemill_deployment_info{model="tiny",alias="champion",version="6",wanted="6",state="serving"}') == 1
    kinds = [(entry.kind, entry.version) for entry in ledger.history("tiny") if entry.kind == "deployed"]
    assert kinds == [("deployed", number) for number in range(1, 7)]


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_that_cannot_be_deployed_leaves_the_old_one(
    serving: Any, ledger: Ledger, register: Register, tmp_path: Path, replicas: int
) -> None:
    register()
    broken = register(promises=[{"name": "latency p99_ms", "measure": "latency.p99_ms", "relation": "<=", "limit": 1e-9}])
    missing = register()
    graph = ledger.version("tiny", missing).path / "full.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    good = register()
    with (
        serving.served("tiny", ledger=tmp_path / "ledger.db", replicas=replicas) as server,
        serving.Callers(server.url, threads=2) as callers,
    ):
        for wanted in (broken, missing):
            ledger.promote("tiny", wanted, why="newer")
            serving.until(lambda wanted=wanted: server.get("/health")["deployment"][0]["wanted"] == str(wanted))
            [state] = server.get("/health")["deployment"]
            assert state == {"model": "tiny", "alias": "champion", "version": "1", "wanted": str(wanted), "state": "failed"}
            assert server.get("/models")["failed"][0]["version"] == str(wanted)
        assert server.get("/health/ready") == {"status": "ready"}
        ledger.promote("tiny", good, why="mended")
        serving.until(lambda: version(server) == str(good))
        serving.until(lambda: server.get("/health")["deployment"][0]["state"] == "serving")
        assert callers.failures == []
        assert callers.versions() <= {"1", str(good)}
        refused = server.events("serve.not_deployed")
    assert [event["version"] for event in refused] == [str(broken), str(missing)]  # each was tried once
    assert "contract broken: tiny 2: latency p99_ms: promised" in refused[0]["message"]
    assert [entry.version for entry in ledger.history("tiny") if entry.kind == "not_deployed"] == [broken, missing]


def test_what_is_served_at_a_version_stays(serving: Any, ledger: Ledger, register: Register, tmp_path: Path) -> None:
    register()
    register()
    register("other")
    with serving.served("tiny@1", "other", ledger=tmp_path / "ledger.db") as server:
        ledger.promote("tiny", 2, why="newer")
        register("other")
        ledger.promote("other", 2, why="newer")
        serving.until(lambda: [model["version"] for model in server.get("/models")["models"]] == ["1", "2"])
        assert [(one["model"], one["alias"]) for one in server.get("/health")["deployment"]] == [("tiny", None), ("other", "champion")]


def test_a_server_told_not_to_follow_stays(serving: Any, ledger: Ledger, register: Register, tmp_path: Path) -> None:
    register()
    register()
    with serving.served("tiny", "tiny@2", ledger=tmp_path / "ledger.db", follow=False) as server:
        assert [one["alias"] for one in server.get("/health")["deployment"]] == [None, None]
        assert server.get("/models/tiny/versions/2/model_info")["version"] == "2"


def test_two_aliases_may_come_to_the_same_version_and_part_again(serving: Any, ledger: Ledger, register: Register, tmp_path: Path) -> None:
    register()
    register()
    ledger.promote("tiny", 2, alias="challenger", why="try")
    with serving.served("tiny", "tiny@challenger", ledger=tmp_path / "ledger.db") as server:
        assert [model["version"] for model in server.get("/models")["models"]] == ["1", "2"]
        ledger.promote("tiny", 2, why="better")
        serving.until(lambda: [model["version"] for model in server.get("/models")["models"]] == ["2"])
        ledger.promote("tiny", 1, alias="challenger", why="compare")
        serving.until(lambda: [model["version"] for model in server.get("/models")["models"]] == ["2", "1"])


def test_a_ledger_that_goes_away_changes_nothing(serving: Any, ledger: Ledger, register: Register, tmp_path: Path) -> None:
    register()
    with serving.served("tiny", ledger=tmp_path / "ledger.db") as server:
        # It answers before it has entered that it does: an entry under way would write the ledger whole again, over what lies there.
        serving.until(lambda: "deployed" in {entry.kind for entry in ledger.history("tiny")})
        content = (tmp_path / "ledger.db").read_bytes()
        exchange(tmp_path / "ledger.db", b"no database at all " * 100)
        serving.until(lambda: server.events("serve.ledger"))
        assert server.post("/predict", EXAMPLE)[0] == 200
        exchange(tmp_path / "ledger.db", content)
        ledger.promote("tiny", register(), why="newer")
        serving.until(lambda: version(server) == "2")


def exchange(file: Path, content: bytes) -> None:
    """Put a file in the place of one, in one piece."""
    other = file.with_name("exchanged")
    other.write_bytes(content)
    other.replace(file)


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_names_are_loaded_and_unloaded(serving: Any, ledger: Ledger, register: Register, tmp_path: Path, replicas: int) -> None:
    for name in ("tiny", "other", "third"):
        register(name)
    with serving.served("tiny", "other", ledger=tmp_path / "ledger.db", replicas=replicas) as server:
        assert server.post("/v2/repository/models/other/unload")[0] == 200
        serving.until(lambda: server.post("/models/other/predict", EXAMPLE)[0] == 404)
        states = {entry["name"]: entry["state"] for entry in server.post("/v2/repository/index")[1]}
        assert states == {"tiny": "READY", "other": "UNAVAILABLE"}
        assert [entry["name"] for entry in server.post("/v2/repository/index", {"ready": True})[1]] == ["tiny"]
        for name in ("other", "third"):
            assert server.post(f"/v2/repository/models/{name}/load")[0] == 200
            assert server.post(f"/models/{name}/predict", EXAMPLE)[0] == 200
        register("third")
        ledger.promote("third", 2, why="newer")  # what was loaded by name follows too
        serving.until(lambda: server.post("/models/third/predict", EXAMPLE)[1]["version"] == "2")
        for action in ("load", "unload"):
            status, said = server.post(f"/v2/repository/models/none/{action}")
            assert (status, "model 'none' is not known" in said["error"]) == (404, True)
        for name, status in (("other", 200), ("third", 200), ("tiny", 400)):  # one must answer
            assert server.post(f"/v2/repository/models/{name}/unload")[0] == status
        assert server.post("/v2/repository/models/..%2f..%2fetc/load")[0] == 404


@pytest.mark.parametrize("over", ["http", "grpc", "http.aio", "grpc.aio"])
def test_triton_clients_load_and_unload(
    serving: Any, ledger: Ledger, register: Register, tmp_path: Path, ask_client: Callable[..., Any], over: str
) -> None:
    for name in ("tiny", "other"):
        register(name)
    with serving.served("tiny", "other", ledger=tmp_path / "ledger.db", grpc_port=0) as server:
        address = server.grpc if over.startswith("grpc") else server.url.removeprefix("http://")
        both, one, again = ask_client("ask_triton.py", what="repository", over=over, address=address, model="other")
        assert both == again == [["tiny", "READY"], ["other", "READY"]]
        assert one == [["tiny", "READY"], ["other", "UNAVAILABLE"]]
        assert server.post("/models/other/predict", EXAMPLE)[0] == 200


MEGABYTES = 32


def heavy_package(folder: Path, name: str, seed: int) -> Package:
    """A package whose graph holds many megabytes of constants that all of its answers need."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    side = 1024
    weights = [
        numpy_helper.from_array(np.random.default_rng(seed + i).normal(size=(side, side)).astype(np.float32), f"w{i}")
        for i in range(MEGABYTES * 2**20 // (side * side * 4))
    ]
    nodes = [helper.make_node("Expand", ["x", "shape"], ["h0"])]
    for i in range(len(weights)):
        nodes += [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"m{i}"]), helper.make_node("Tanh", [f"m{i}"], [f"h{i + 1}"])]
    nodes += [
        helper.make_node("ReduceMean", [f"h{len(weights)}", "axis"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "flat"], ["prediction"]),
    ]
    constants = [
        *weights,
        numpy_helper.from_array(np.array([1, side], np.int64), "shape"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        numpy_helper.from_array(np.array([-1], np.int64), "flat"),
    ]
    graph = helper.make_graph(
        nodes, name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, [None])],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*entry) for entry in OPSETS.items()], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    signature = {
        "kind": "row", "inputs": [{"name": "x", "type": "float32", "nullable": True}], "example": {"x": 1.0},
        "outputs": [{"name": "prediction", "type": "float32"}],
    }  # fmt: skip
    return write(
        folder, name=name, task="regression", signature=signature, files={"full.onnx": model.SerializeToString()}, documents={}, lineage={}
    )


def test_a_server_that_is_stopped_in_the_middle_of_a_change_ends_well(serving: Any, ledger: Ledger, tmp_path: Path) -> None:
    for seed in range(2):
        ledger.register(heavy_package(tmp_path / f"heavy-{seed}", "heavy", seed))
    for pause_s in (0.0, 0.5, 0.6):
        with serving.served("heavy", ledger=tmp_path / "ledger.db") as server:
            ledger.promote("heavy", 2, why="newer")
            time.sleep(pause_s)
            assert server.stop() == 0
        ledger.rollback("heavy", why="again")


@pytest.mark.slow
def test_what_answers_no_more_gives_its_memory_back(serving: Any, ledger: Ledger, tmp_path: Path) -> None:
    for seed in range(3):
        ledger.register(heavy_package(tmp_path / f"heavy-{seed}", "heavy", seed))
    ledger.register(tiny_package(tmp_path / "tiny", name="tiny"))
    with serving.served("tiny", "heavy", ledger=tmp_path / "ledger.db") as server:
        pid = server.process.pid
        with serving.Callers(server.url, threads=2, path="/models/heavy/predict", body={"x": 1.0}) as callers:
            serving.until(lambda: len(callers.answered) > 10)
            one = serving.pss_kb(pid)
            for wanted in (2, 3):
                ledger.promote("heavy", wanted, why="newer")
                serving.until(lambda wanted=wanted: str(wanted) in callers.versions())
            # Three of them would take twice as much more.
            serving.until(lambda: serving.pss_kb(pid) < one + MEGABYTES * 1024 * 0.5)
            assert callers.failures == []
        assert server.post("/v2/repository/models/heavy/unload")[0] == 200
        serving.until(lambda: serving.pss_kb(pid) < one - MEGABYTES * 1024 * 0.8)
        assert server.post("/predict", EXAMPLE)[0] == 200
