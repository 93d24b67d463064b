"""Claim: training on batches of like length runs at least 1.5 times the rows of padded batches on the same texts in the same time.

all-MiniLM-L6-v2 is fine-tuned whole on the same texts in three ways, on one core: batches under a budget of tokens; random batches of so many rows
that they hold as many real tokens on average, padded to the longest of the batch; the same padded to the longest of all texts. Some steps of an
epoch, evenly chosen, forward, backward and AdamW, the loader included, by the processor's time.
Repeats alternate. Usage: bucket.py TEXTS [--tokens 1024] [--steps 30] [--repeats 3]
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pyarrow as pa
import torch
from artifacts import minilm
from run import HERE, loader, ratio, read_texts, spread

from tidemill.core.contract import hardware
from tidemill.core.load import load
from tidemill.models.networks.base import Shape
from tidemill.models.networks.text import Text, TextParams
from tidemill.train.torch.loader.labels import Labels
from tidemill.train.torch.loader.lengths import measured
from tidemill.train.torch.loader.loader import Loader
from tidemill.train.torch.loader.raw import TableRows
from tidemill.train.torch.loader.text import TextSource


def main(texts: Path, tokens: int, steps: int, repeats: int) -> None:
    torch.set_num_threads(1)
    rows = read_texts(texts)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_bytes((minilm() / "tokenizer.json").read_bytes())
        tokenize = load("preprocess", "text")(Path(folder), column="text", max_length=128, inputs=("input_ids", "attention_mask"))
        raw = TableRows(pa.table({"text": rows, "y": np.zeros(len(rows))}))
        lengths = measured(source(raw, tokenize, 128))
        longest = int(lengths.max())
        same = source(raw, tokenize, longest)
        like = loader(same, batch_tokens=tokens)
        batch_rows = round(len(rows) / like.num_steps(0))
        ways = {
            "like lengths": epoch(like, steps),
            "padded to the longest of the batch": epoch(loader(same, batch_rows=batch_rows), steps),
            "padded to the longest of all": epoch(loader(same, batch_rows=batch_rows, static=True), steps),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        padding = {
            "like lengths": padded(like),
            "padded to the longest of the batch": padded(loader(same, batch_rows=batch_rows)),
            "padded to the longest of all": padded(loader(same, batch_rows=batch_rows, static=True)),
        }
        print(padding, f"{batch_rows} rows a step", flush=True)
        for repeat in range(repeats):
            for name in ways if repeat % 2 == 0 else reversed(ways):
                count, taken_s = ways[name]()
                rates[name].append(count / taken_s)
                print(f"{rates[name][-1]:>8,.1f} rows/processor s  {name}", flush=True)
    result = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "texts": len(rows),
        "tokens_of_a_text": {"mean": round(float(lengths.mean()), 1), "longest": longest},
        "batch": {"tokens": tokens, "rows": batch_rows},
        "ratio": {name: ratio(rates["like lengths"], values) for name, values in rates.items()},
        "rows_per_processor_s": {name: spread(values) for name, values in rates.items()},
        "tokens_with_padding_to_without": padding,
        "hardware": hardware(),
        "load": os.getloadavg(),
        "torch": torch.__version__,
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{result['at'][:10]}-bucket.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["ratio"], indent=1))


def source(raw: TableRows, tokenize: Any, max_length: int) -> TextSource:
    return TextSource(raw, Labels(target="y"), column="text", tokenize=tokenize, max_length=max_length, vocabulary=30_522)


def padded(rows: Loader) -> float:
    """The tokens of an epoch with padding, to those without."""
    steps = [step.micro[0].inputs["attention_mask"] for step in rows.steps(0)]
    return round(sum(mask.numel() for mask in steps) / sum(int(mask.sum()) for mask in steps), 3)


def epoch(rows: Loader, steps: int) -> Callable[[], tuple[int, float]]:
    """Trains on so many steps of an epoch, evenly chosen; rows, and seconds of processor time."""
    torch.manual_seed(0)
    module = Text().build(Shape(task="regression", num_outputs=1), TextParams(encoder=str(minilm()))).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5)
    every = max(1, rows.num_steps(0) // steps)

    def run() -> tuple[int, float]:
        count, taken_s, start = 0, 0.0, time.process_time()
        for step in rows.steps(0):
            if step.number % every == 0:
                (micro,) = step.micro
                optimizer.zero_grad()
                loss = torch.nn.functional.mse_loss(module(**micro.inputs)[:, 0], micro.target)
                loss.backward()
                optimizer.step()
                count += step.rows
                taken_s += time.process_time() - start
            start = time.process_time()  # waiting for a step that is trained on counts, for others not
        return count, taken_s

    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("texts", type=Path)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    main(given.texts, given.tokens, given.steps, given.repeats)
