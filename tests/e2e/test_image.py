"""An image model in ONNX: packaged with its preprocessing, held to NumPy, served and run over files."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.datasets
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tidemill.cli import main
from tidemill.core.errors import ConfigError, DataError, Unsupported
from tidemill.core.events import Events
from tidemill.core.graph import IR_VERSION, OPSETS
from tidemill.core.package import Package, Predictor
from tidemill.packaging import gate, image_reference
from tidemill.packaging.image_config import ImageConfig
from tidemill.packaging.imports import package_model
from tidemill.serve.config import ImagesConfig, ServeConfig
from tidemill.serve.http import Request
from tidemill.serve.server import load

DECLARED = {"width": 32, "height": 24, "resize": "shorter", "shorter": 40, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CLASSES = ["china", "flower"]
SAMPLES = Path(sklearn.datasets.__file__).parent / "images"


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LATENCY_S", 0.01)


def network(path: Path, *, shape: tuple[Any, ...] = ("N", 3, 24, 32), head: str = "classes", element: int = TensorProto.FLOAT) -> Path:
    """A small convolutional network: three filters, the mean over the image, two classes."""
    rng = np.random.default_rng(1)
    node = helper.make_node
    nodes = [
        node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
        node("Conv", ["x", "filters"], ["seen"], strides=[2, 2]),
        node("Relu", ["seen"], ["active"]),
        node("GlobalAveragePool", ["active"], ["pooled"]),
        node("Flatten", ["pooled"], ["flat"]),
        node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    nodes.append(node("Softmax", ["logits"], ["probabilities"], axis=1) if head == "classes" else node("Identity", ["logits"], ["numbers"]))
    output = helper.make_tensor_value_info("probabilities" if head == "classes" else "numbers", TensorProto.FLOAT, ["N", 2])
    constants = {
        "filters": rng.normal(size=(4, 3, 5, 5)).astype(np.float32) / 5,
        "weights": rng.normal(size=(4, 2)).astype(np.float32),
    }
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("pixels", element, shape)], [output],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSETS[""])], ir_version=IR_VERSION).SerializeToString()
    )
    return path


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def crops(count: int) -> list[bytes]:
    """Pieces of two photographs, in three formats."""
    rng, made = np.random.default_rng(2), []
    for i in range(count):
        photo = Image.open(SAMPLES / ("china.jpg" if i % 2 == 0 else "flower.jpg"))
        width, height = int(rng.integers(41, 400)), int(rng.integers(41, 300))
        left, top = int(rng.integers(0, photo.width - width)), int(rng.integers(0, photo.height - height))
        piece = photo.crop((left, top, left + width, top + height))
        made.append(encoded(piece, ("JPEG", "PNG", "WEBP")[i % 3]))
    return made


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return crops(40)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, images: list[bytes]) -> Iterator[Package]:
    tmp_path = tmp_path_factory.mktemp("pictures")
    table = pa.table({"image": pa.array(images, pa.binary()), "what": [CLASSES[i % 2] for i in range(len(images))]})
    pq.write_table(table, tmp_path / "sample.parquet")
    try:
        return package_model(
            network(tmp_path / "net.onnx"),
            data=tmp_path / "sample.parquet",
            target=None,
            name="pictures",
            out=tmp_path / "out",
            image=DECLARED,
        )
    finally:
        (tmp_path / "sample.parquet").unlink()


def test_a_package_of_images_holds_no_code_and_keeps_parity(package: Package) -> None:
    assert {path.suffix for path in package.path.rglob("*") if path.is_file()} <= {".onnx", ".json", ".md"}
    assert package.kind == "image"
    assert package.evidence()["parity"]["max_difference"] < 1e-6
    assert package.evidence()["parity"]["rows"] == 40
    stated = json.loads((package.path / "image.json").read_text())
    assert (stated["width"], stated["height"], stated["resize"]) == (32, 24, "shorter")
    assert base64.b64decode(package.example["image"])


def test_what_is_declared_is_part_of_the_identity(package: Package, tmp_path: Path, images: list[bytes]) -> None:
    table = pa.table({"image": pa.array(images, pa.binary())})
    other = package_model(
        network(tmp_path / "net.onnx"),
        data=table,
        target=None,
        name="pictures",
        out=tmp_path / "other",
        image={**DECLARED, "mean": 0.5, "std": 0.5},
    )
    assert other.identity != package.identity


def test_numpy_says_what_is_answered(package: Package, images: list[bytes]) -> None:
    predictor = Predictor(package)
    found = predictor.run(predictor.signature.from_tensors({"image": np.array(images, object)}))
    prepared = np.stack([image_reference.prepare(image, ImageConfig.of(DECLARED)) for image in images])
    expected = predictor.runtime.run({"image": prepared})["probability"]
    assert np.allclose(found.probability, expected, atol=1e-7)
    one_by_one = [predictor.records([{"image": base64.b64encode(image).decode()}]).values[0] for image in images[:5]]
    assert np.allclose(found.values[:5], one_by_one, atol=1e-6)
    assert predictor.run(predictor.signature.from_tensors({"image": np.empty(0, object)})).values.shape == (0, 2)


@pytest.fixture
def ask(package: Package) -> Callable[..., tuple[int, Any]]:
    """Sends a body and reads the answer; images of at most a million pixels and 300 kB are taken."""
    config = ServeConfig(images=ImagesConfig(max_mb=0.3, max_mpixels=1), max_batch_rows=50)
    app = load([package], config=config, events=Events())

    def asked(path: str, body: Any, kind: str = "application/json", **headers: str) -> tuple[int, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = app.handle(Request("POST", path, "", {"content-type": kind, **headers}, content))
        return response.status, json.loads(response.body) if response.body.startswith(b"{") else response.body

    return asked


def b64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def test_every_door_gives_one_answer(ask: Callable[..., tuple[int, Any]], package: Package, images: list[bytes]) -> None:
    image = images[3]
    status, raw = ask("/predict", image, "image/png")
    assert status == 200, raw
    assert raw["prediction"] in (0, 1)
    assert ask("/predict", {"image": b64(image)})[1] == raw
    assert ask("/predict", {"image": "data:image/png;base64," + b64(image)})[1] == raw
    status, many = ask("/predict_batch", {"images": [b64(one) for one in images[:7]]})
    assert status == 200, many
    assert many["predictions"][3]["probability"] == pytest.approx(raw["probability"], abs=1e-6)
    assert ask("/predict_batch", {"records": [{"image": b64(image)}]})[1]["predictions"][0]["probability"] == pytest.approx(
        raw["probability"]
    )
    for instance in (b64(image), {"b64": b64(image)}, {"image": {"b64": b64(image)}}):
        status, answered = ask("/v1/models/pictures:predict", {"instances": [instance]})
        assert (status, answered["predictions"][0]["probability"]) == (200, pytest.approx(raw["probability"])), answered
    described = {"name": "image", "shape": [1], "datatype": "BYTES"}
    status, answered = ask("/v2/models/pictures/infer", {"inputs": [{**described, "data": [b64(image)]}]})
    assert status == 200, answered
    assert answered["outputs"][1]["data"][1] == pytest.approx(raw["probability"])
    content = len(image).to_bytes(4, "little") + image
    head = json.dumps({"inputs": [{**described, "parameters": {"binary_data_size": len(content)}}]}).encode()
    status, binary = ask(
        "/v2/models/pictures/infer", head + content, "application/octet-stream", **{"inference-header-content-length": str(len(head))}
    )
    assert status == 200, binary
    assert binary["outputs"][1]["data"] == answered["outputs"][1]["data"]
    sink = pa.BufferOutputStream()
    table = pa.table({"image": pa.array(images[:2], pa.binary())})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    status, answered = ask("/predict_batch", sink.getvalue().to_pybytes(), "application/vnd.apache.arrow.stream", accept="application/json")
    assert (status, len(answered["predictions"])) == (200, 2)


def test_what_is_no_sound_image_is_refused(ask: Callable[..., tuple[int, Any]], images: list[bytes]) -> None:
    photo = Image.open(SAMPLES / "flower.jpg")
    whole = encoded(photo.crop((0, 0, 300, 300)), "JPEG")
    large = encoded(Image.new("RGB", (1200, 1000)))
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    frames = io.BytesIO()
    Image.new("RGB", (50, 50)).save(frames, "WEBP", save_all=True, append_images=[Image.new("RGB", (50, 50), "red")])
    refused = {
        "must be an image of JPEG, PNG, WEBP": [
            b"no image",
            encoded(photo.crop((0, 0, 9, 9)), "GIF"),
            encoded(photo.crop((0, 0, 9, 9)), "TIFF"),
        ],
        "must be a whole image": [whole[: len(whole) // 2]],
        "pixels": [large, bomb],
        "bytes": [encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)))],
        "must be one image, holds 2": [frames.getvalue()],
    }
    for reason, contents in refused.items():
        for content in contents:
            for status, answered in (ask("/predict", content, "image/jpeg"), ask("/predict", {"image": b64(content)})):
                assert status == 422, answered
                assert answered["error"]["field"] == "image"
                assert reason in answered["error"]["reason"]
    for value in (None, 7, "%%%", "", [], {"b65": ""}):
        status, answered = ask("/predict", {"image": value})
        assert status == 422, answered
        assert answered["error"]["field"] == "image"
    assert ask("/predict", b"", "image/png")[0] == 422
    status, answered = ask("/predict_batch", {"images": [b64(images[0]), b64(b"broken")]})
    assert (status, "in row 1" in answered["error"]["reason"]) == (422, True)
    assert ask("/predict", {"picture": ""})[0] == 422
    assert ask("/predict", whole, "image/jpeg")[0] == 200


def test_paths_and_bytes_in_a_table_are_predicted(package: Package, tmp_path: Path, images: list[bytes]) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    for i, image in enumerate(images[:6]):
        (folder / f"{i}.img").write_bytes(image)
    (folder / "list.csv").write_text("image,number\n" + "".join(f"{i}.img,{i}\n" for i in range(6)))
    assert main(["predict", str(package.path), str(folder / "list.csv"), str(tmp_path / "out.parquet"), "--keep", "number"]) == 0
    by_path = pq.read_table(tmp_path / "out.parquet")
    assert by_path.schema.names == ["number", "prediction", "probability"]
    pq.write_table(pa.table({"image": pa.array(images[:6], pa.binary())}), folder / "bytes.parquet")
    assert main(["predict", str(package.path), str(folder / "bytes.parquet"), str(tmp_path / "raw.parquet")]) == 0
    assert pq.read_table(tmp_path / "raw.parquet")["probability"].to_pylist() == by_path["probability"].to_pylist()
    (folder / "3.img").unlink()
    assert main(["predict", str(package.path), str(folder / "list.csv"), str(tmp_path / "again.parquet")]) == 1
    assert not (tmp_path / "again.parquet").exists()


def test_the_command_packages_images_with_labels(tmp_path: Path, images: list[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    network(tmp_path / "net.onnx")
    (tmp_path / "image.json").write_text(json.dumps(DECLARED))
    for i, image in enumerate(images):
        (tmp_path / f"{i}.img").write_bytes(image)
    predictor = None
    table = pa.table({"image": [f"{i}.img" for i in range(len(images))]})
    pq.write_table(table, tmp_path / "sample.parquet")
    common = [str(tmp_path / "net.onnx"), "--data", str(tmp_path / "sample.parquet"), "--image", str(tmp_path / "image.json")]
    assert main(["package", *common, "--out", str(tmp_path / "plain")]) == 0
    predictor = Predictor(Package.open(tmp_path / "plain"))
    answers = predictor.run(predictor.signature.from_tensors({"image": np.array(images, object)}))
    found = answers.probability[:, 1] > np.median(answers.probability[:, 1])  # type: ignore[index]
    labels = np.where(answers.prediction == 1, 1, 0) if len(set(answers.prediction.tolist())) == 2 else found.astype(int)
    pq.write_table(table.append_column("what", pa.array([int(label) for label in labels])), tmp_path / "sample.parquet")
    if len(set(answers.prediction.tolist())) == 2:
        assert main(["package", *common, "--target", "what", "--out", str(tmp_path / "labelled")]) == 0
        assert Package.open(tmp_path / "labelled").evidence()["quality"]["value"] == pytest.approx(1.0)
    capsys.readouterr()


def test_a_declaration_that_does_not_fit_is_refused(tmp_path: Path, images: list[bytes]) -> None:
    table = pa.table({"image": pa.array(images[:4], pa.binary())})

    def make(image: Any = DECLARED, data: pa.Table = table, **shape: Any) -> Package:
        source = network(tmp_path / "net.onnx", **shape)
        return package_model(source, data=data, target=None, name="pictures", out=tmp_path / "out", image=image)

    with pytest.raises(Unsupported, match=r"input 'pixels' must be H = 20 as image.json says, is 24"):
        make({**DECLARED, "height": 20})
    with pytest.raises(Unsupported, match=r"must be uint8 as image.json says, is float"):
        make({**DECLARED, "type": "uint8"})
    with pytest.raises(Unsupported, match="must take any number of images, takes 1"):
        make(shape=(1, 3, 24, 32))
    with pytest.raises(ConfigError, match=r"image.json: 'widht' is no key"):
        make({**DECLARED, "widht": 3})
    with pytest.raises(ConfigError, match=r"image.json: height must be given"):
        make({"width": 3})
    with pytest.raises(ConfigError, match=r"image.json: std must be above 0"):
        make({**DECLARED, "std": 0})
    with pytest.raises(DataError, match="must be a whole image"):
        make(data=pa.table({"image": pa.array([images[0], b"none"], pa.binary())}))
    with pytest.raises(DataError, match="is null in 1"):
        make(data=pa.table({"image": pa.array([images[0], None], pa.binary())}))
    (tmp_path / "trees.ubj").write_bytes(b"")
    with pytest.raises(Unsupported, match="a model of images must be an ONNX file"):
        package_model(tmp_path / "trees.ubj", data=table, target=None, name="pictures", out=tmp_path / "o", image=DECLARED)
    embeds = make(head="numbers")
    assert (embeds.task, embeds.outputs[0]["shape"]) == ("embedding", [-1, 2])
