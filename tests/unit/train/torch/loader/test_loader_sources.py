from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill.core.artifact import Artifact, write_json, writing
from tidemill.core.errors import DataError
from tidemill.core.events import Events
from tidemill.core.load import load
from tidemill.core.project import from_tree
from tidemill.features import stage
from tidemill.train.matrix import FeatureMatrix
from tidemill.train.torch.loader import lengths, raw
from tidemill.train.torch.loader.arrays import ArraySource
from tidemill.train.torch.loader.augment import Augment
from tidemill.train.torch.loader.config import LoaderConfig
from tidemill.train.torch.loader.image import ImageSource
from tidemill.train.torch.loader.labels import Labels
from tidemill.train.torch.loader.loader import Loader
from tidemill.train.torch.loader.raw import ParquetRows, TableRows
from tidemill.train.torch.loader.source import Source
from tidemill.train.torch.loader.table import TableSource
from tidemill.train.torch.loader.text import TextSource
from tidemill.train.torch.loader.tokens import TokenSource

Stages = Callable[..., tuple[Artifact, Artifact]]

LABELS = Labels(target="y")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(50))]


def config(**settings: Any) -> LoaderConfig:
    return LoaderConfig(**{"workers": 2, "cache_mib": 0, **settings})


def collected(source: Source, **settings: Any) -> dict[str, np.ndarray]:
    """All of an epoch by row, in the order of the split; inputs of differing shape as objects."""
    rows: dict[int, dict[str, Any]] = {}
    ranks = settings.pop("ranks", 1)
    for rank in range(ranks):
        loader = Loader(source, **{"batch_rows": 37, "config": config(), **settings}, rank=rank, ranks=ranks)
        for step in loader.steps(1):
            for micro in step.micro:
                for place, row in enumerate(micro.rows.tolist()):
                    found = {name: value[place].numpy() for name, value in micro.inputs.items()}
                    weight = {} if micro.weight is None else {"weight": micro.weight[place].numpy()}
                    rows[row] = {**found, "target": micro.target[place].numpy(), **weight}
    rows.pop(-1, None)
    return {name: np.array([rows[row][name] for row in range(len(rows))]) for name in rows[0]}


# Tables


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_table_gives_what_the_feature_matrix_holds(finished_stages: Stages, task: str, ranks: int) -> None:
    data, features = finished_stages(task, weight=True)
    source = TableSource(data, features, "train")
    assert source.sizes == [400, 400, 100, 400, 400, 100, 200]
    made = collected(source, ranks=ranks, accumulate=2)
    matrix = FeatureMatrix(data, features, "train")
    y_N, weight_N = matrix.targets()
    np.testing.assert_array_equal(made["features"], np.concatenate([batch.x_NF for batch in matrix.batches()]))
    assert made["target"].dtype == (np.float32 if task == "regression" else np.int64)
    np.testing.assert_array_equal(made["target"], y_N.astype(made["target"].dtype))
    np.testing.assert_array_equal(made["weight"], np.asarray(weight_N, np.float32))


def test_class_weights_multiply_the_weight_of_a_row(finished_stages: Stages) -> None:
    data, features = finished_stages("multiclass", weight=True)
    source = TableSource(data, features, "train", class_weight=[1.0, 2.0, 0.5])
    made = collected(source)
    y_N, weight_N = FeatureMatrix(data, features, "train").targets()
    np.testing.assert_allclose(made["weight"], np.array([1.0, 2.0, 0.5])[y_N.astype(int)] * np.asarray(weight_N), rtol=1e-6)
    np.testing.assert_array_equal(np.concatenate([source.weights(block) for block in range(7)]), made["weight"])


@pytest.mark.parametrize("keys", [["id"], []])
def test_training_rows_see_what_the_other_folds_teach(finished_stages: Stages, tmp_path: Path, keys: list[str]) -> None:
    data, _ = finished_stages("binary")
    facts = data.read_json("schema.json")
    columns = [*facts["columns"][1:3], {"name": "outcome", "type": "boolean", "nullable": False}]
    write_json(data.path / "schema.json", facts | {"keys": keys, "columns": columns})
    project = from_tree({"name": "n", "data": {"source": "x.parquet", "target": "outcome"}, "features": {"carrier": ["target"]}})
    with writing(tmp_path / "fitted", stage="features") as out:
        stage.run(project, data, out, events=Events())
    features = Artifact.open(tmp_path / "fitted")
    made = [collected(TableSource(data, features, split), ranks=2)["features"] for split in ("train", "valid")]
    expected = [np.concatenate([batch.x_NF for batch in FeatureMatrix(data, features, split).batches()]) for split in ("train", "valid")]
    np.testing.assert_array_equal(made[0], expected[0])
    np.testing.assert_array_equal(made[1], expected[1])
    assert len(np.unique(made[0])) > len(np.unique(made[1]))  # by fold


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_row_of_a_table_is_named(finished_stages: Stages, workers: int) -> None:
    data, features = finished_stages("regression")
    path = sorted((data.path / "train").glob("*.parquet"))[1]
    table = pq.read_table(path)
    values = table["outcome"].to_pylist()
    values[450] = float("nan")
    pq.write_table(table.set_column(table.schema.get_field_index("outcome"), "outcome", pa.array(values)), path, row_group_size=400)
    loader = Loader(TableSource(data, features, "train"), batch_rows=50, config=config(workers=workers))
    with pytest.raises(DataError, match=r"row 450 of .*part-1.parquet \(row group 1\): column 'outcome' must be finite") as caught:
        list(loader.steps(0))
    assert caught.value.field == "outcome"


def test_a_split_without_files_is_named(finished_stages: Stages) -> None:
    data, features = finished_stages()
    with pytest.raises(DataError, match="extra must hold Parquet files"):
        TableSource(data, features, "extra")


def test_pieces_of_a_row_group_are_put_together(finished_stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    data, features = finished_stages("multiclass")
    whole = collected(TableSource(data, features, "train"))
    monkeypatch.setattr(raw, "LEAST_ROWS", 30)
    monkeypatch.setattr(raw, "PIECE_BYTES", 1)
    pieces = collected(TableSource(data, features, "train"), ranks=2)
    for name, column in whole.items():
        np.testing.assert_array_equal(column, pieces[name])


# Texts


@pytest.fixture
def tokenize(tmp_path: Path) -> Any:
    """The package's tokenizer, of words divided by spaces."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made.save(str(tmp_path / "tokenizer.json"))
    return load("preprocess", "text")(tmp_path, column="text", max_length=12, inputs=["input_ids", "attention_mask"])


def texts(count: int) -> pa.Table:
    rng = np.random.default_rng(0)
    made = [" ".join(rng.choice(WORDS[4:], rng.integers(0, 16))) for _ in range(count)]
    made[3] = None
    return pa.table({"text": made, "y": rng.normal(size=count)})


def text_source(rows: Any, tokenize: Any, **settings: Any) -> TextSource:
    return TextSource(rows, LABELS, column="text", tokenize=tokenize, max_length=12, vocabulary=len(WORDS), **settings)


@pytest.mark.parametrize("batch", [{"batch_rows": 16}, {"batch_rows": None, "batch_tokens": 64}])
@pytest.mark.parametrize("ranks", [1, 2])
def test_texts_are_tokenized_as_the_package_does(tokenize: Any, batch: dict[str, Any], ranks: int) -> None:
    table = texts(500)
    seen = set()
    for rank in range(ranks):
        for step in Loader(text_source(TableRows(table), tokenize), rank=rank, ranks=ranks, config=config(), **batch).steps(0):
            for micro in step.micro:
                rows = micro.rows[micro.rows >= 0]
                seen.update(rows.tolist())
                if not len(rows):
                    continue
                said = ["￿" if value is None else value for value in table["text"].take(pa.array(rows)).to_pylist()]
                expected = tokenize({"text": np.array(said, object)[:, None]})
                for name, value in expected.items():
                    np.testing.assert_array_equal(micro.inputs[name].numpy()[: len(rows)], value)
    assert seen == set(range(500))


def test_a_step_says_how_many_tokens_it_has_and_stays_within_the_budget(tokenize: Any) -> None:
    table, total = texts(500), 0
    for step in Loader(text_source(TableRows(table), tokenize), batch_tokens=100, accumulate=2, config=config()).steps(0):
        assert step.tokens == sum(int(micro.inputs["attention_mask"].sum()) for micro in step.micro)
        assert sum(micro.inputs["input_ids"].numel() for micro in step.micro) <= 100
        total += step.tokens
    assert total == sum(len(row.ids) for row in tokenize.rows({"text": np.array([text or "" for text in table["text"].to_pylist()])}))


def test_lengths_are_counted_once(tokenize: Any, tmp_path: Path) -> None:
    calls = []

    def counting(inputs: Any) -> Any:
        calls.append(len(inputs["text"]))
        return tokenize(inputs)

    source = text_source(TableRows(texts(500)), counting)
    found = lengths.measured(source, threads=2, folder=tmp_path / "kept")
    assert sum(calls) == 500
    np.testing.assert_array_equal(found, source.read(0)["tokens"].lengths)
    calls.clear()
    np.testing.assert_array_equal(lengths.measured(text_source(TableRows(texts(500)), counting), folder=tmp_path / "kept"), found)
    assert not calls
    lengths.measured(text_source(TableRows(texts(499)), counting), folder=tmp_path / "kept")
    assert sum(calls) == 499
    calls.clear()
    loader = Loader(source, batch_tokens=100, config=config(cache_mib=1))  # what was read to count stays where it fits
    assert sum(calls) == 500
    assert len(list(loader.steps(0))) == loader.num_steps(0)
    assert sum(calls) == 500


def test_texts_of_parquet_files_are_the_same(tokenize: Any, tmp_path: Path) -> None:
    table = texts(300)
    (tmp_path / "train").mkdir()
    pq.write_table(table.slice(0, 200), tmp_path / "train" / "part-0.parquet", row_group_size=90)
    pq.write_table(table.slice(200), tmp_path / "train" / "part-1.parquet", row_group_size=90)
    source = text_source(ParquetRows(Artifact(tmp_path, {}), "train", ["text", "y"]), tokenize)
    assert source.sizes == [90, 90, 20, 90, 10]
    found = collected(source, batch_rows=10, static=True, ranks=2)
    expected = collected(text_source(TableRows(table), tokenize), batch_rows=300, static=True)
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column)


def test_a_column_that_holds_no_texts_is_named(tokenize: Any) -> None:
    source = text_source(TableRows(pa.table({"text": [1, 2], "y": [0.0, 1.0]})), tokenize)
    with pytest.raises(DataError, match="row 0: column 'text' must be texts, is int64"):
        list(Loader(source, batch_rows=2, config=config()).steps(0))


# Images


def png(pixels: np.ndarray) -> bytes:
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def decode(tmp_path: Path) -> Any:
    pytest.importorskip("PIL")
    (tmp_path / "image.json").write_text(json.dumps({"width": 6, "height": 5, "mode": "L", "type": "uint8"}))
    return load("preprocess", "image")(tmp_path, column="image", input="x")


@pytest.mark.parametrize("held", ["bytes", "base64", "path"])
def test_files_of_images_are_decoded_and_drawn_as_arrays_are(decode: Any, tmp_path: Path, held: str) -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (40, 1, 5, 6), np.uint8)
    files: list[Any] = [png(image[0]) for image in pixels]
    if held == "base64":
        files = [base64.b64encode(file).decode() for file in files]
    elif held == "path":
        for place, file in enumerate(files):
            (tmp_path / f"{place}.png").write_bytes(file)
        files = [f"{place}.png" for place in range(40)]
    table = pa.table({"image": files, "y": np.arange(40.0)})
    for augment in (None, Augment(crop=1, flip=0.5, erase=0.5)):
        source = ImageSource(
            TableRows(table),
            LABELS,
            column="image",
            decode=decode,
            shape=(1, 5, 6),
            augment=augment,
            seed=3,
            folder=tmp_path if held == "path" else None,
        )
        made = collected(source, batch_rows=7, ranks=2)
        expected = collected(ArraySource({"pixels": pixels}, np.arange(40.0), augment=augment, seed=3))
        for name in ("pixels", "target"):
            np.testing.assert_array_equal(made[name], expected[name])


@pytest.mark.parametrize(
    ("bad", "said"), [(b"no image", "row 17: .*must be an image of"), (png(np.zeros((5, 6), np.uint8))[:40], "row 17: ")]
)
def test_an_image_that_cannot_be_decoded_is_named(decode: Any, bad: bytes, said: str) -> None:
    files = [png(np.full((5, 6), place, np.uint8)) for place in range(30)]
    files[17] = bad
    source = ImageSource(
        TableRows(pa.table({"image": files, "y": np.arange(30.0)})), LABELS, column="image", decode=decode, shape=(1, 5, 6)
    )
    with pytest.raises(DataError, match=said):
        list(Loader(source, batch_rows=7, config=config()).steps(0))


def test_a_file_that_is_not_there_is_named(decode: Any, tmp_path: Path) -> None:
    table = pa.table({"image": ["absent.png"], "y": [0.0]})
    source = ImageSource(TableRows(table), LABELS, column="image", decode=decode, shape=(1, 5, 6), folder=tmp_path)
    with pytest.raises(DataError, match=r"row 0: column 'image' must name files: .*absent.png"):
        list(Loader(source, batch_rows=7, config=config()).steps(0))


# Tokens


@pytest.mark.parametrize("suffix", [".npy", ".bin", None])
def test_windows_of_tokens_are_followed_by_the_next_token(tmp_path: Path, suffix: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.train.torch.loader.tokens.BLOCK_BYTES", 200)
    tokens_T = np.random.default_rng(0).integers(0, 60_000, 1003).astype(np.uint16)
    given: Any = tokens_T
    if suffix == ".npy":
        np.save(given := tmp_path / "tokens.npy", tokens_T)
    elif suffix == ".bin":
        (given := tmp_path / "tokens.bin").write_bytes(tokens_T.tobytes())
    source = TokenSource(given, length=10)
    assert source.sizes == [10] * 10
    made = collected(source, batch_rows=6, ranks=2, accumulate=2)
    np.testing.assert_array_equal(made["input_ids"], tokens_T[:1000].reshape(100, 10))
    np.testing.assert_array_equal(made["target"], tokens_T[1:1001].reshape(100, 10))
    step = next(Loader(source, batch_tokens=65, static=True, config=config()).steps(0))
    assert (step.rows, step.total, step.tokens) == (6, 60.0, 60)
    last = list(Loader(source, batch_rows=99, rank=1, ranks=2, config=config()).steps(0))[-1]
    assert last.total == 10.0
    assert last.micro[0].weight is not None
    assert last.micro[0].weight.shape == last.micro[0].target.shape == (1, 10)
    assert float(last.micro[0].weight.sum()) == 0.0


@pytest.mark.parametrize(
    ("tokens", "said"), [(np.zeros(10, np.int64), "more than the 10"), (np.zeros((3, 20), int), "one row"), (np.zeros(30), "whole numbers")]
)
def test_what_is_no_row_of_tokens_is_refused(tokens: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        TokenSource(tokens, length=10)


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.npy must be a file of tokens"):
        TokenSource(tmp_path / "absent.npy", length=10)


# Arrays


def test_mapped_arrays_come_in_the_order_of_arrays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.train.torch.loader.arrays.BLOCK_BYTES", 64 * 20)
    x_NF, y_N, weight_N = (
        np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32),
        np.arange(1000) % 2 == 0,
        1.0 + np.arange(1000) % 3,
    )
    np.save(tmp_path / "x.npy", x_NF)
    seen = []
    for held in (x_NF, np.load(tmp_path / "x.npy", mmap_mode="r")):
        source = ArraySource({"features": held}, y_N, weight_N)
        assert source.sizes == [64] * 15 + [40]
        made = collected(source, ranks=3)
        np.testing.assert_array_equal(made["features"], x_NF)
        np.testing.assert_array_equal(made["target"], y_N)
        np.testing.assert_array_equal(made["weight"], weight_N)
        steps = list(Loader(source, batch_rows=100, config=config()).steps(0))
        assert [step.total for step in steps] == [float(weight_N[step.micro[0].rows].sum()) for step in steps]
        seen.append([step.micro[0].rows.tolist() for step in steps])
        np.testing.assert_array_equal(source.read(1, np.array([0, 5]))["features"], x_NF[[64, 69]])
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("target", "weight", "said"),
    [
        (np.zeros(2), None, "as many rows"),
        (np.array([0.0, np.nan, 1.0]), None, "target .* got nan in row 1"),
        (np.zeros(3), np.array([0.0, 1.0, -1.0]), "weight .* got -1.0 in row 2"),
    ],
)
def test_arrays_that_are_no_rows_are_refused(target: np.ndarray, weight: np.ndarray | None, said: str) -> None:
    with pytest.raises(DataError, match=said):
        ArraySource({"features": np.zeros((3, 1))}, target, weight)
