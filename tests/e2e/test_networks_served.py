"""One project file from rows to a served answer, for each thing that networks read; and a text network in transformers."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tidemill.core.errors import ConfigError, Unsupported
from tidemill.core.events import Events
from tidemill.core.package import Package, Predictor
from tidemill.core.project import from_tree
from tidemill.packaging import gate
from tidemill.packaging.layouts import export
from tidemill.pipeline import run
from tidemill.serve.config import ServeConfig
from tidemill.serve.http import Request
from tidemill.serve.server import load


@pytest.fixture(scope="module", autouse=True)
def short_measurements() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "LATENCY_S", 0.01)
        yield


def made(folder: Path, table: pa.Table, **sections: Any) -> Package:
    pq.write_table(table, folder / "rows.parquet")
    data = {"source": "rows.parquet", "target": "target", "split": {"valid": 0.2, "test": 0.2}, **sections.pop("data", {})}
    found = run(from_tree({"name": "net", "data": data, "engine": {"threads": 1}, **sections}, folder=folder), home=folder / "home")
    assert found.refused is None, found.refused
    assert found.package is not None
    return found.package


def asked(package: Package, record: dict[str, Any]) -> Any:
    app = load([package], config=ServeConfig(), events=Events())
    try:
        response: Any = app.handle(Request("POST", "/predict", "", {"content-type": "application/json"}, json.dumps(record).encode()))
        return response.status, json.loads(response.body)
    finally:
        app.close()


def said() -> pa.Table:
    """Sentences that use good words or bad ones."""
    rng = np.random.default_rng(0)
    words = {True: ["good", "great", "fine"], False: ["bad", "awful", "dull"]}
    liked_N = rng.random(200) < 0.5
    texts = [" ".join(rng.permutation(["the", "film", "was", *rng.choice(words[bool(liked)], 2)]).tolist()) for liked in liked_N]
    texts[0] = ""
    return pa.table({"said": texts, "target": liked_N, "number": np.arange(200)})


@pytest.fixture(scope="module")
def texts(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return made(
        tmp_path_factory.mktemp("texts"),
        said(),
        data={"keys": ["number"]},
        model={"kind": "text", "encoder": str(tiny_encoder), "max_length": 12, "dropout": 0.0, "calibrate": "platt"},
        train={"epochs": 20, "batch_size": 16, "optimizer": {"learning_rate": 5e-3}},
    )


def test_texts_are_learned_and_served(texts: Package) -> None:
    assert texts.kind == "text"
    assert texts.evidence()["quality"]["metrics"]["accuracy"]["point"] > 0.9
    assert texts.evidence()["parity"]["max_difference"] <= 1e-5
    status, answer = asked(texts, {"said": "a great great film"})
    assert (status, answer["prediction"]) == (200, True)
    alone = Predictor(texts).records([{"said": "a great great film"}]).probability
    assert alone is not None
    assert answer["probability"] == pytest.approx(alone[0, 1], abs=1e-6)
    assert asked(texts, {"said": "good " * 300})[0] == 200


def test_a_decoder_learns_texts_and_is_served(tiny_encoder: Path, tmp_path: Path) -> None:
    package = made(
        tmp_path,
        said(),
        data={"keys": ["number"]},
        model={"kind": "decoder", "tokenizer": str(tiny_encoder), "max_length": 12, "depth": 2, "width": 32, "hidden": 64},
        train={"epochs": 12, "batch_size": 16, "optimizer": {"learning_rate": 3e-3}},
    )
    assert package.kind == "text"
    assert package.evidence()["quality"]["metrics"]["accuracy"]["point"] > 0.9
    assert package.evidence()["parity"]["max_difference"] <= 1e-5
    status, answer = asked(package, {"said": "a great great film"})
    assert (status, answer["prediction"]) == (200, True)
    with pytest.raises(Unsupported, match="needs a package of a text network"):
        export(package, tmp_path / "folder", layout="transformers")


def test_a_number_is_learned_from_texts(tiny_encoder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good_N = rng.integers(0, 4, 240)
    texts = [" ".join(["film", *rng.permutation(["good"] * good + ["bad"] * (3 - good))]) for good in good_N]
    package = made(
        tmp_path,
        pa.table({"said": texts, "target": 100.0 + 10.0 * good_N, "number": np.arange(240)}),
        task="regression",
        data={"keys": ["number"]},
        model={"kind": "text", "encoder": str(tiny_encoder), "max_length": 8, "dropout": 0.0},
        train={"epochs": 20, "batch_size": 16, "optimizer": {"learning_rate": 5e-3}},
    )
    assert package.evidence()["quality"]["metrics"]["rmse"]["point"] < 3.0
    assert package.evidence()["parity"]["max_difference"] <= 1e-4
    status, answer = asked(package, {"said": "film good bad good"})
    assert (status, answer["prediction"]) == (200, pytest.approx(120.0, abs=3.0))
    with pytest.raises(Unsupported, match="needs a package of a text network that classifies"):
        export(package, tmp_path / "folder", layout="transformers")


def test_transformers_loads_what_is_exported(texts: Package, tmp_path: Path) -> None:
    import transformers

    export(texts, tmp_path / "folder", layout="transformers")
    classify = transformers.pipeline("text-classification", model=str(tmp_path / "folder"), top_k=None)
    said = ["a great great film", "so dull was the plot", "film", "awful " * 30]
    expected = Predictor(texts).records([{"said": text} for text in said]).probability
    assert expected is not None
    for found, probability in zip(classify(said, truncation=True), expected, strict=True):
        assert {entry["label"]: entry["score"] for entry in found} == pytest.approx(
            {"false": probability[0], "true": probability[1]}, abs=1e-5
        )


def test_images_are_learned_and_served(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 3, 240)

    def drawn(label: int) -> bytes:
        pixels = rng.integers(0, 60, (9, 8), np.uint8)
        pixels[(slice(0, 3), slice(3, 6), slice(6, 9))[label]] += 160
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    files = [drawn(int(label)) for label in label_N]
    package = made(
        tmp_path,
        pa.table({"picture": pa.array(files, pa.binary()), "target": [("low", "middle", "high")[label] for label in label_N]}),
        model={"kind": "image", "height": 9, "width": 8, "mode": "L", "channels": 8, "stages": 1, "augment": {"crop": 0, "flip": 0.5}},
        train={"epochs": 10, "batch_size": 16, "optimizer": {"learning_rate": 1e-2}},
    )
    assert package.kind == "image"
    assert package.evidence()["quality"]["metrics"]["accuracy"]["point"] > 0.9
    status, answer = asked(package, {"picture": base64.b64encode(drawn(1)).decode()})
    assert (status, answer["prediction"]) == (200, "middle")
    with pytest.raises(Unsupported, match="needs a package of a text network"):
        export(package, tmp_path / "folder", layout="transformers")


@pytest.mark.parametrize("kind", ["mlp", "dcn", "net_of_e2e:build"])
def test_embedded_categories_are_learned_and_served(kind: str, tmp_path: Path) -> None:
    (tmp_path / "net_of_e2e.py").write_text(
        "from torch import nn\n"
        "from tidemill.models.networks.inputs import Head, Inputs\n"
        "def build(shape):\n"
        "    inputs = Inputs(shape, max_embedding=4)\n"
        "    return Named(inputs, nn.Linear(inputs.width, 16), Head(16, shape))\n"
        "class Named(nn.Module):\n"
        "    def __init__(self, inputs, hidden, head):\n"
        "        super().__init__()\n"
        "        self.inputs, self.hidden, self.head = inputs, hidden, head\n"
        "    def forward(self, features):\n"
        "        return self.head(self.hidden(self.inputs(features)).relu())\n",
        encoding="utf-8",
    )
    rng = np.random.default_rng(0)
    city_N = rng.integers(0, 40, 600)
    table = pa.table(
        {
            "city": [f"c{city}" for city in city_N],
            "noise": pa.array(rng.normal(size=600), mask=rng.random(600) < 0.1),
            "target": city_N % 2 == 0,
        }
    )
    package = made(
        tmp_path,
        table,
        features={"city": [{"op": "embedding", "width": 8}]},
        model={"kind": kind},
        train={"epochs": 25, "batch_size": 32, "optimizer": {"learning_rate": 1e-2}},
    )
    assert package.evidence()["quality"]["metrics"]["accuracy"]["point"] > 0.9
    assert asked(package, {"city": "c8", "noise": 0.0})[1]["prediction"] is True
    assert asked(package, {"city": "c7", "noise": None})[1]["prediction"] is False
    assert asked(package, {"city": "nowhere", "noise": 0.0})[0] == 200


def test_steps_beside_a_text_network_are_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    table = pa.table({"said": [f"film {place}" for place in range(40)], "target": [True, False] * 20})
    with pytest.raises(ConfigError, match=r"features\.said: has no effect"):
        made(tmp_path, table, model={"kind": "text", "encoder": str(tiny_encoder), "max_length": 8}, features={"said": ["vocabulary"]})
