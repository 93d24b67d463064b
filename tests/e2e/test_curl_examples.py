"""Every curl line of the page on serving, typed in order against one running server; and every address of the server has one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sklearn.datasets
from onnx import TensorProto, helper, numpy_helper

from tidemill.core.graph import IR_VERSION, OPSETS
from tidemill.core.ledger import Ledger
from tidemill.core.package import Package, write
from tidemill.packaging.imports import package_model
from tidemill.serve.access import keys
from tidemill.serve.app import App
from tidemill.serve.model import Model
from tidemill.testing.packages import tiny_package

pytestmark = [pytest.mark.server, pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")]

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
EXAMPLE = {"distance": 1400.0, "carrier": "UA"}


def lines() -> list[str]:
    """The curl lines of the page, in order."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    typed = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in typed if re.search(r"(^|\| )curl ", line)]


@dataclass(frozen=True)
class Typing:
    """Where lines are typed: three servers, and a folder with what they read."""

    folder: Path
    plain: str
    guarded: str
    pictures: str
    key: str

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        is_guarded = "$KEY" in line or "https://" in line.split(" -H ", maxsplit=1)[0]
        port = self.pictures if "photo.jpg" in line else self.plain
        at = f"--cacert cert.pem https://localhost:{self.guarded}" if is_guarded else f"localhost:{port}"
        typed = re.sub(r"(--cacert cert\.pem )?(https://)?localhost:(8000|8443)", at, line).replace(
            "curl ", "curl -sS --fail-with-body ", 1
        )
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", typed], cwd=self.folder, env={**os.environ, "KEY": self.key}, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip


@pytest.fixture(scope="module")
def typing(tmp_path_factory: pytest.TempPathFactory, certify: Callable[..., bytes]) -> Iterator[Typing]:
    folder = tmp_path_factory.mktemp("curl")
    ledger = Ledger(folder / ".tidemill" / "ledger.db", packages=folder / ".tidemill" / "packages")
    for version in (1, 2, 3):
        ledger.register(flights(folder / f"flights-{version}", weight=version))
    ledger.promote("flights", 3, why="newest")
    ledger.register(tiny_package(folder / "reviews", task="text", name="reviews"))
    key = keys.add(folder / "keys.json", "alice", scopes=["predict", "read"])
    certify(folder)
    rows = pa.Table.from_pylist([EXAMPLE, {"distance": None, "carrier": "DL"}])
    with pa.ipc.new_stream(folder / "rows.arrow", rows.schema) as out:
        out.write_table(rows)
    (folder / "records.json").write_text(json.dumps({"records": [EXAMPLE] * 2000}))
    shutil.copy(Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg", folder / "photo.jpg")
    pictures(folder)
    with ExitStack() as open_servers:
        plain = open_servers.enter_context(serving(folder, '[serve.cors]\norigins = ["https://app.example.com"]\n'))
        secure = f'[serve.tls]\ncert = "cert.pem"\nkey = "key.pem"\n[serve.auth]\nkeys = "{folder / "keys.json"}"\n'
        guarded = open_servers.enter_context(serving(folder, secure))
        yield Typing(folder, plain, guarded, open_servers.enter_context(serving(folder, "", "pictures")), key)


@contextmanager
def serving(folder: Path, config: str, *models: str) -> Iterator[str]:
    """`tidemill serve flights reviews`, or other models, with this configuration; its port."""
    (folder / "tidemill.toml").write_text('name = "flights"\n[data]\nsource = "a.csv"\ntarget = "late"\n' + config)
    command = [sys.executable, "-m", "tidemill.cli", "serve", *(models or ("flights", "reviews")), "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as started:
        try:
            assert started.stderr is not None
            said = []
            for line in started.stderr:
                said.append(line)
                if found := re.search(r"https?://[\w.]+:(\d+)", line):
                    yield found[1]
                    break
            else:
                pytest.fail("".join(said))
        finally:
            started.terminate()
            started.communicate(timeout=60)


def flights(path: Path, *, weight: float = 1.0) -> Package:
    """A package of two columns."""
    nodes = [
        helper.make_node("Cast", ["distance"], ["miles"], to=TensorProto.FLOAT),
        helper.make_node("IsNaN", ["miles"], ["absent"]),
        helper.make_node("Where", ["absent", "zero", "miles"], ["known"]),
        helper.make_node("Mul", ["known", "weight"], ["far"]),
        helper.make_node(
            "LabelEncoder",
            ["carrier"],
            ["airline"],
            domain="ai.onnx.ml",
            keys_strings=["UA", "DL"],
            values_floats=[0.5, -0.5],
            default_float=0.0,
        ),
        helper.make_node("Add", ["far", "airline"], ["score"]),
        helper.make_node("Sigmoid", ["score"], ["late"]),
        helper.make_node("Sub", ["one", "late"], ["early"]),
        helper.make_node("Concat", ["early", "late"], ["probability"], axis=1),
    ]
    constants = {"zero": 0.0, "one": 1.0, "weight": weight / 1000}
    inputs = [
        helper.make_tensor_value_info("distance", TensorProto.DOUBLE, [None, 1]),
        helper.make_tensor_value_info("carrier", TensorProto.STRING, [None, 1]),
    ]
    graph = helper.make_graph(
        nodes, "flights", inputs, [helper.make_tensor_value_info("probability", TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(np.array([[value]], np.float32), name) for name, value in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid(domain, number) for domain, number in OPSETS.items()]
    signature = {
        "kind": "row", "example": EXAMPLE, "classes": [False, True], "outputs": [{"name": "probability", "type": "float32"}],
        "inputs": [{"name": "distance", "type": "float64", "nullable": True}, {"name": "carrier", "type": "string", "nullable": True}],
    }  # fmt: skip
    content = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
    documents = {"contract.json": {"promises": []}}
    return write(path, name="flights", task="binary", signature=signature, files={"full.onnx": content}, documents=documents, lineage={})


def pictures(folder: Path) -> Package:
    """A package that tells by an image's mean colour, in the folder `pictures`."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["colour"]),
        helper.make_node("MatMul", ["colour", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes, "pictures", [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, 24, 32])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.array([[1, -1], [0.5, 0], [-1, 1]], np.float32), "weights")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSETS[""])]
    (folder / "net.onnx").write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString())
    rows = pa.table({"image": [(folder / "photo.jpg").read_bytes()] * 4})
    return package_model(
        folder / "net.onnx", data=rows, target=None, name="pictures", out=folder / "pictures", image={"width": 32, "height": 24}
    )


@pytest.mark.parametrize("line", list(dict.fromkeys(lines())))
def test_a_line_of_the_page_is_answered(typing: Typing, line: str) -> None:
    done = typing.run(line)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_answers_are_what_the_page_says(typing: Typing) -> None:
    [one, *_] = [line for line in lines() if line.startswith("curl localhost:8000/predict -d '{")]
    answer = json.loads(typing.run(one).stdout)
    assert answer["probability"] == pytest.approx(1 / (1 + np.exp(-4.7)), abs=1e-6)
    assert (answer["prediction"], answer["model"], answer["version"]) == (True, "flights", "3")
    assert pa.ipc.open_stream((typing.folder / "answers.arrow").read_bytes()).read_all().column_names == ["prediction", "probability"]


def test_a_wrong_line_fails(typing: Typing) -> None:
    assert typing.run('curl localhost:8000/predict -d \'{"distance": "far"}\'').returncode != 0
    assert typing.run("curl localhost:8000/nowhere").returncode != 0
    assert typing.run("false | curl localhost:8000/health").returncode != 0


def test_every_address_has_a_line(tmp_path: Path) -> None:
    models = [Model(flights(tmp_path / "flights")), Model(tiny_package(tmp_path / "reviews", task="text", name="reviews"))]
    app = App(models)
    asked = {(method(line), generic(re.search(r"localhost:\d+(/[^\s']*)", line)[1])) for line in lines()}  # type: ignore[index]
    wanted = {(route.method, generic(route.path)) for known in app._table.routes.values() for route in known.values()}
    versioned = {(verb, path) for verb, path in wanted if "/versions/" in path}  # a version is named like its model; one line shows it
    assert wanted - versioned - asked == set()


def method(line: str) -> str:
    if found := re.search(r"-X (\w+)", line):
        return found[1]
    return "POST" if re.search(r" (-d|--data-binary) ", line) else "GET"


def generic(path: str) -> str:
    """An address whatever the model."""
    return re.sub(r"/versions/[^/:]+", "/versions/V", re.sub(r"/models/[^/:]+", "/models/M", path))
