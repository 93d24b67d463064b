"""Packages as Triton and KServe read them: held against Triton's own schema, and the fields of KServe's resource."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import descriptor_pool, message_factory, text_format

from tidemill import cli
from tidemill.core.errors import ConfigError, Unsupported
from tidemill.core.package import Package, Predictor
from tidemill.packaging.layouts import export, kserve, triton
from tidemill.testing.packages import EXAMPLE, TinyTask, tiny_package

TASKS: tuple[TinyTask, ...] = ("binary", "multiclass", "regression", "interval", "text", "embedding")
NUMPY = {"TYPE_FP64": np.float64, "TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_UINT8": np.uint8, "TYPE_BOOL": np.bool_}

# Fields of serving.kserve.io/v1beta1 InferenceService that a manifest may use, from its resource definition.
FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "metadata": {"name", "annotations", "labels", "namespace"},
    "spec": {"predictor", "transformer", "explainer"},
    "spec.predictor": {"minReplicas", "maxReplicas", "model", "timeout", "serviceAccountName"},
    "spec.predictor.model": {"modelFormat", "runtime", "protocolVersion", "storageUri", "runtimeVersion", "resources", "args", "env"},
    "spec.predictor.model.modelFormat": {"name", "version"},
}


@pytest.fixture(scope="module")
def parsed(ask_client: Callable[..., Any]) -> Callable[[str], Any]:
    """Reads a `config.pbtxt` as Triton's own schema has it."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(bytes.fromhex(ask_client("ask_triton.py", what="schema")))
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    return lambda text: text_format.Parse(text, config())


@pytest.mark.parametrize("max_batch", [0, 256])
@pytest.mark.parametrize("task", TASKS)
def test_tritons_schema_takes_every_config(parsed: Callable[[str], Any], task: TinyTask, max_batch: int, tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "tiny", task=task, version="3")
    notes = export(package, tmp_path / "out", layout="triton", max_batch=max_batch)
    folder = tmp_path / "out" / "tiny"
    made = parsed((folder / "config.pbtxt").read_text(encoding="utf-8"))
    assert (made.name, made.backend, made.max_batch_size) == ("tiny", "onnxruntime", max_batch)
    assert made.HasField("dynamic_batching") == bool(max_batch)
    graph = ort.InferenceSession(folder / "3" / "model.onnx")
    assert [tensor.name for tensor in made.input] == [node.name for node in graph.get_inputs()]
    assert [tensor.name for tensor in made.output] == [node.name for node in graph.get_outputs()]
    for tensor, node in zip([*made.input, *made.output], [*graph.get_inputs(), *graph.get_outputs()], strict=True):
        given = [max_batch or -1, *tensor.dims] if max_batch else list(tensor.dims)
        if tensor.HasField("reshape"):
            assert (list(tensor.dims), list(tensor.reshape.shape)) == ([1], [])
            given = [max_batch]
        assert len(given) == len(node.shape)
        assert given[1:] == node.shape[1:]
        assert tensor.dims, "Triton takes no tensor without dimensions"
    assert any("up to 256 rows" in note for note in notes) == bool(max_batch)


def test_types_are_those_that_the_graph_takes(parsed: Callable[[str], Any], tmp_path: Path) -> None:
    """A request made from the config alone runs, and answers as the package does."""
    package = tiny_package(tmp_path / "tiny")
    export(package, tmp_path / "out", layout="triton")
    made = parsed((tmp_path / "out" / "tiny" / "config.pbtxt").read_text(encoding="utf-8"))
    predictor = Predictor(package)
    inputs = predictor.signature.from_record(EXAMPLE)
    kinds = {
        tensor.name: made.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number[tensor.data_type].name for tensor in made.input
    }
    assert kinds.keys() == inputs.keys()
    sent = {name: values.astype(NUMPY[kinds[name]]) if kinds[name] in NUMPY else values.astype(object) for name, values in inputs.items()}
    graph = ort.InferenceSession(tmp_path / "out" / "tiny" / "1" / "model.onnx")
    (answer,) = graph.run(["probability"], sent)
    assert answer == pytest.approx(predictor.run(inputs).probability)


def test_classes_become_labels(parsed: Callable[[str], Any], tmp_path: Path) -> None:
    export(tiny_package(tmp_path / "tiny", classes=["no", "yes"]), tmp_path / "out", layout="triton")
    assert (tmp_path / "out" / "tiny" / triton.LABELS).read_text() == "no\nyes\n"
    made = parsed((tmp_path / "out" / "tiny" / "config.pbtxt").read_text(encoding="utf-8"))
    assert [tensor.label_filename for tensor in made.output if tensor.name == "probability"] == [triton.LABELS]


def test_what_callers_must_know_is_written_down(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "tiny")
    plain = replace(package, manifest={**package.manifest, "runtime": {**package.manifest["runtime"], "domains": ["com.microsoft"]}})
    notes = export(plain, tmp_path / "out", layout="triton")
    text = (tmp_path / "out" / "tiny" / "config.pbtxt").read_text(encoding="utf-8")
    for words in (
        "operators of com.microsoft",
        "booleans are UINT8",
        "U+FFFF (string)",
        "BOOL input <name>__valid",
        "requests run as they come",
    ):
        assert any(words in note for note in notes), words
        assert words in text


@pytest.mark.parametrize("layout", ["triton", "kserve"])
def test_what_triton_does_not_run_is_refused_and_leaves_nothing(layout: str, tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "tiny", task="text")
    manifest = {**package.manifest, "signature": {**package.manifest["signature"], "preprocess": "tokenizer"}}
    uri = "s3://a/b" if layout == "kserve" else None
    with pytest.raises(Unsupported, match=r"preprocessing 'tokenizer', which Triton's .* does not run; tidemill serve runs both"):
        export(Package(package.path, manifest), tmp_path / "out", layout=layout, storage_uri=uri)
    manifest = {**package.manifest, "runtime": {"kind": "torch", "graph": "full.onnx"}}
    with pytest.raises(Unsupported, match="a package of runtime 'torch'"):
        export(Package(package.path, manifest), tmp_path / "out", layout=layout, storage_uri=uri)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny"}


def fields(value: Any, at: str = "") -> list[tuple[str, set[str]]]:
    """Every level of a manifest with the names in it."""
    if not isinstance(value, dict) or at == "metadata.annotations":
        return []
    return [(at, set(value)), *(found for key, item in value.items() for found in fields(item, f"{at}.{key}".lstrip(".")))]


def test_kserves_resource_has_every_field(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")
    package = tiny_package(tmp_path / "tiny", name="late_flights", version="3")
    export(package, tmp_path / "out", layout="kserve", storage_uri='s3://models/it\'s: "here"'.replace(" ", "_"))
    made = yaml.safe_load((tmp_path / "out" / kserve.MANIFEST).read_text(encoding="utf-8"))
    for at, names in fields(made):
        assert names <= FIELDS[at], at
    assert (made["apiVersion"], made["kind"], made["metadata"]["name"]) == ("serving.kserve.io/v1beta1", "InferenceService", "late-flights")
    model = made["spec"]["predictor"]["model"]
    assert model["storageUri"] == 's3://models/it\'s:_"here"'
    assert (model["runtime"], model["modelFormat"], model["protocolVersion"]) == (
        "kserve-tritonserver",
        {"name": "triton", "version": "2"},
        "v2",
    )
    assert made["metadata"]["annotations"]["tidemill/identity"] == package.identity
    assert (tmp_path / "out" / kserve.REPOSITORY / "late_flights" / "3" / "model.onnx").read_bytes() == package.graph_file.read_bytes()


@pytest.mark.parametrize(
    ("name", "expected"), [("flights", "flights"), ("a_b--c", "a-b-c"), ("2024", "m-2024"), ("x" * 80, "x" * 63), ("_a_", "a")]
)
def test_names_are_such_as_kubernetes_takes(name: str, expected: str) -> None:
    assert kserve.service_name(name) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "kserve"}, "--storage-uri: must say where"),
        ({"layout": "kserve", "storage_uri": "bucket/models"}, "--storage-uri: must be like s3://"),
        ({"layout": "kserve", "storage_uri": "s3://a\nb: c"}, "--storage-uri: must be like s3://"),
        ({"layout": "triton", "storage_uri": "s3://a"}, "--storage-uri: must go with --layout kserve"),
        ({"layout": "triton", "max_batch": -1}, "--max-batch: must be in 0"),
        ({"layout": "bento"}, "--layout: must be one of triton, kserve, transformers, got 'bento'"),
    ],
)
def test_a_wrong_call(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        export(tiny_package(tmp_path / "tiny"), tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_package(tmp_path / "tiny", task="text")
    assert cli.main(["models", "export", "./tiny", "--layout", "triton", "out", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["layout"] == "triton"
    assert (tmp_path / "out" / "tiny" / "1" / "model.onnx").is_file()
    assert cli.main(["models", "export", "./tiny", "out", "--layout", "triton"]) == 2
    assert "out: must not exist yet" in capsys.readouterr().err
    assert cli.main(["models", "export", "tiny", "other", "--max-batch", "5"]) == 2
    assert "--layout: must be given" in capsys.readouterr().err
