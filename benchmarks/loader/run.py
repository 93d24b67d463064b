"""Claim: the loader alone feeds at least 3 times what each model eats, and more than torch's DataLoader doing the same work.

Rows/s and rows per second of processor time (of all processes) of an epoch, first step included, for a table (39 columns of clicks through
the feature graph), texts (tokenized) and images of 28 x 28 (moved, mirrored, partly wiped out), with as many threads as the DataLoader has processes; and what each network eats, forward, backward
and AdamW on batches at hand, by the processor's time. Repeats alternate. Usage: run.py TEXTS [--rows 1000000] [--repeats 3] [--only table,text,image]

TEXTS is a file of texts, the last of each line's fields that are divided by tabs, such as movieReviewSnippets_GroundTruth.txt of the
source package of vaderSentiment.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import onnxruntime
import peers
import pyarrow as pa
import tokenizers
import torch
from artifacts import clicks, minilm

from tidemill.core.contract import hardware
from tidemill.core.load import load
from tidemill.models.base import MemoryMatrix
from tidemill.models.networks.base import Shape
from tidemill.models.networks.image import Image, ImageParams
from tidemill.models.networks.mlp import Mlp, MlpParams
from tidemill.models.networks.text import Text, TextParams
from tidemill.train.torch.loader.arrays import ArraySource
from tidemill.train.torch.loader.augment import Augment
from tidemill.train.torch.loader.config import LoaderConfig
from tidemill.train.torch.loader.labels import Labels
from tidemill.train.torch.loader.loader import Loader
from tidemill.train.torch.loader.raw import TableRows
from tidemill.train.torch.loader.source import Source
from tidemill.train.torch.loader.table import TableSource
from tidemill.train.torch.loader.text import TextSource

HERE = Path(__file__).parent
WORKERS = 2
MAX_LENGTH = 128
Ways = dict[str, Callable[[], int]]


def main(texts: Path, rows: int, repeats: int, only: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ways: Ways = {}
        if "table" in only:
            ways |= table(rows)
        if "text" in only:
            ways |= text(read_texts(texts), Path(folder))
        if "image" in only:
            ways |= image()
        rates, processor = interleaved(ways, repeats)
    result = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "workers": WORKERS,
        "repeats": repeats,
        "rows_per_s": {name: spread(values) for name, values in rates.items()},
        "rows_per_processor_s": {name: spread(values) for name, values in processor.items()},
        "ratio_to_dataloader": {
            name: {clock: ratio(values[name], values[peer]) for clock, values in (("wall", rates), ("processor", processor))}
            for name, peer in PEERS.items()
            if name in rates
        },
        "ratio_to_network": {
            name: ratio(processor[name], processor[network]) for name, network in EATEN.items() if name in rates
        },
        "hardware": hardware(),
        "load": os.getloadavg(),
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "pyarrow": pa.__version__,
            "tokenizers": tokenizers.__version__, "numpy": np.__version__,
        },
    }  # fmt: skip
    (HERE / "results").mkdir(exist_ok=True)
    file = HERE / "results" / f"{result['at'][:10]}.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("rows_per_s", "ratio_to_dataloader", "ratio_to_network")}, indent=1))


# What is compared with what.
PEERS = {
    "table, read and transformed": "DataLoader: table, read and transformed, 2 processes",
    "table, in memory": "DataLoader: table, in memory, no process",
    "text, tokenized, padded to the longest": "DataLoader: text, 2 processes",
    "text, lengths, tokens and batches of like length": "DataLoader: text, 2 processes",
    "text, later epochs": "DataLoader: text, 2 processes",
    "image": "DataLoader: image, 2 processes",
}
EATEN = {
    "table, read and transformed": "network: mlp",
    "table, in memory": "network: mlp",
    "text, tokenized, padded to the longest": "network: text",
    "text, lengths, tokens and batches of like length": "network: text",
    "text, later epochs": "network: text",
    "image": "network: image",
}


def table(rows: int) -> Ways:
    data, features = clicks(rows)
    source = TableSource(data, features, "train")
    window_bytes = 256 << 20
    window = max(1, window_bytes // source.sizes_bytes[0])
    kept = loader(source, batch_rows=1024, cache_mib=1 << 20)
    count(kept.steps(0))
    columns = [source.read(block) for block in range(len(source.sizes))]
    x_NF, y_N = (np.concatenate([column[name] for column in columns]) for name in ("features", "target"))
    shape = Mlp().shape(MemoryMatrix(x_NF[:20_000], y_N[:20_000].astype(float), names=source.names), task="binary", num_classes=2)
    return {
        "table, read and transformed": lambda: count(loader(source, batch_rows=1024, cache_mib=0).steps(0)),
        "table, read and transformed, no thread": lambda: count(loader(source, batch_rows=1024, cache_mib=0, workers=0).steps(0)),
        "table, in memory": lambda: count(kept.steps(1)),
        "DataLoader: table, read and transformed, 2 processes": lambda: batches(
            peers.row_groups(data, features, batch_rows=1024, workers=WORKERS, window=window)
        ),
        "DataLoader: table, in memory, no process": lambda: batches(peers.tensors(x_NF, y_N, batch_rows=1024, workers=0)),
        "network: mlp": eaten(Mlp(), MlpParams(), shape, loader(source, batch_rows=1024), 10),
        "DataLoader: table, in memory, 2 processes": lambda: batches(peers.tensors(x_NF, y_N, batch_rows=1024, workers=WORKERS)),
    }


def text(rows: list[str], folder: Path) -> Ways:
    tokenizer = minilm() / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    tokenize = load("preprocess", "text")(folder, column="text", max_length=MAX_LENGTH, inputs=("input_ids", "attention_mask"))
    raw = TableRows(pa.table({"text": rows, "y": np.zeros(len(rows))}))
    source = TextSource(raw, Labels(target="y"), column="text", tokenize=tokenize, max_length=MAX_LENGTH, vocabulary=30_522)
    kept = loader(source, batch_tokens=1024, cache_mib=1024)
    return {
        "text, tokenized, padded to the longest": lambda: count(loader(source, batch_rows=32, cache_mib=0).steps(0)),
        "text, lengths, tokens and batches of like length": lambda: count(loader(source, batch_tokens=1024, cache_mib=1024).steps(0)),
        "text, later epochs": lambda: count(kept.steps(1)),
        "DataLoader: text, 2 processes": lambda: batches(
            peers.texts(rows, tokenizer, batch_rows=32, workers=WORKERS, max_length=MAX_LENGTH)
        ),
        "network: text": eaten(
            Text(), TextParams(encoder=str(minilm())), Shape(task="regression", num_outputs=1), loader(source, batch_tokens=1024), 2
        ),
        "DataLoader: text, no process": lambda: batches(peers.texts(rows, tokenizer, batch_rows=32, workers=0, max_length=MAX_LENGTH)),
    }


def image() -> Ways:
    pixels_NCHW = np.random.default_rng(0).integers(0, 256, (60_000, 1, 28, 28), np.uint8)
    y_N = np.zeros(60_000, np.int64)
    source = ArraySource({"pixels": pixels_NCHW}, y_N, augment=Augment(crop=2, flip=0.5, erase=0.5))
    return {
        "image": lambda: count(loader(source, batch_rows=128).steps(0)),
        "network: image": eaten(
            Image(),
            ImageParams(height=28, width=28, mode="L"),
            Shape(task="multiclass", num_outputs=10),
            loader(source, batch_rows=128),
            10,
        ),
        "image, no thread": lambda: count(loader(source, batch_rows=128, workers=0).steps(0)),
        "DataLoader: image, 2 processes": lambda: batches(peers.images(pixels_NCHW, y_N, batch_rows=128, workers=WORKERS, crop=2)),
    }


def eaten(kind: Any, params: Any, shape: Shape, rows: Loader, steps: int) -> Callable[[], int]:
    """Trains the network on some batches that are there."""
    torch.manual_seed(0)
    module = kind.build(shape, params).train()
    optimizer = torch.optim.AdamW([weight for weight in module.parameters() if weight.requires_grad], lr=1e-5)
    some = [step.micro[0] for step in itertools.islice(rows.steps(0), steps)]

    def run() -> int:
        for micro in some:
            optimizer.zero_grad()
            scores = module(**micro.inputs)
            loss = (
                torch.nn.functional.cross_entropy(scores, micro.target)
                if shape.num_outputs > 1
                else torch.nn.functional.mse_loss(scores[:, 0], micro.target.float())
            )
            loss.backward()
            optimizer.step()
        return sum(len(micro.rows) for micro in some)

    run()
    return run


def loader(source: Source, *, workers: int = WORKERS, cache_mib: int = 256, **settings: Any) -> Loader:
    return Loader(source, config=LoaderConfig(workers=workers, cache_mib=cache_mib), **settings)


def count(steps: Iterator[Any]) -> int:
    return sum(step.rows for step in steps)


def batches(made: Iterable[Any]) -> int:
    """Rows of all batches."""
    total = 0
    for batch in made:
        first = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
        total += len(first)
    return total


def interleaved(ways: Ways, repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    rates: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name in ways if repeat % 2 == 0 else reversed(ways):
            start, before = time.perf_counter(), sum(os.times()[:4])
            rows = ways[name]()
            rates[name].append(rows / (time.perf_counter() - start))
            processor[name].append(rows / max(sum(os.times()[:4]) - before, 0.01))
            print(f"{rates[name][-1]:>12,.0f} rows/s {processor[name][-1]:>12,.0f} rows/processor s  {name}", flush=True)
    return rates, processor


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def read_texts(file: Path) -> list[str]:
    return [line.split("\t")[-1] for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]


def spread(values: list[float]) -> dict[str, float]:
    digits = 2 if max(values) < 1000 else None
    return {"median": round(statistics.median(values), digits), "min": round(min(values), digits), "max": round(max(values), digits)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("texts", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="table,text,image")
    given = parser.parse_args()
    main(given.texts, given.rows, given.repeats, given.only.split(","))
