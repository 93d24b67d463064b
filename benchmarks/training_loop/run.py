"""Claim: the training loop takes at least 97 % of the steps/s of a loop written by hand in PyTorch, and is ahead of Trainer and Lightning.

All train the same perceptron on the same 65,536 rows of 32 numbers in memory: AdamW in one kernel, clipping by the global norm, a
cosine schedule with warm-up, no validation. In one process and in turn, the order turned round every other time; the ratio is taken within a repeat. Processor
time stands beside wall time, since it holds still on a busy machine. Usage: run.py [repeats] [width] [batch] [threads]

Hugging Face's Trainer and Lightning are installed into .cache/peers beside this file, without touching the environment.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from tidemill.core.contract import hardware
from tidemill.core.events import Events
from tidemill.models.base import MemoryMatrix
from tidemill.models.networks.mlp import Mlp, MlpParams
from tidemill.train.torch.config import NetworkConfig, resolve
from tidemill.train.torch.loader.config import LoaderConfig
from tidemill.train.torch.optim import rate
from tidemill.train.torch.rank import Job, train
from tidemill.train.torch.sources import described

HERE = Path(__file__).parent
PEERS = HERE / ".cache" / "peers"
INSTALLED = ("accelerate", "pytorch-lightning", "lightning-utilities", "torchmetrics", "psutil", "aiohttp", "fsspec")
ROWS, FEATURES, EPOCHS, RATE, DECAY, CLIP = 65_536, 32, 2, 2e-3, 0.01, 1.0


def main(repeats: int, width: int, batch: int, threads: int) -> None:
    torch.set_num_threads(threads)
    install()
    random = np.random.default_rng(0)
    x_NF = random.normal(size=(ROWS, FEATURES)).astype(np.float32)
    y_N = (x_NF[:, 0] * x_NF[:, 1] + x_NF[:, 2] > 0).astype(np.float64)
    work = Work(MemoryMatrix(x_NF, y_N), width, batch)
    ways: dict[str, Callable[[], float]] = {
        "hand": work.hand, "tidemill": work.tidemill, "transformers": work.transformers, "lightning": work.lightning,
    }  # fmt: skip
    for way in ways.values():
        way()
    taken: list[dict[str, dict[str, float]]] = []
    for repeat in range(repeats):
        found = {}
        for name in ways if repeat % 2 == 0 else reversed(ways):
            wall, cpu = time.perf_counter(), time.process_time()
            loss = ways[name]()
            found[name] = {"wall": work.steps / (time.perf_counter() - wall), "cpu": work.steps / (time.process_time() - cpu), "loss": loss}
        taken.append(found)
        print(f"repeat {repeat + 1}: " + ", ".join(f"{name} {value['wall']:.0f} steps/s" for name, value in found.items()), flush=True)
    ratios = {
        f"{unit}: tidemill to {name}": summary([found["tidemill"][unit] / found[name][unit] for found in taken])
        for unit in ("wall", "cpu")
        for name in ways
        if name != "tidemill"
    }
    result: dict[str, Any] = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "width": width, "batch": batch, "threads": threads, "steps": work.steps, "ratios": ratios, "taken": taken,
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("torch", "transformers")} | {name: _peer(name) for name in INSTALLED[:2]},
    }  # fmt: skip
    (HERE / "results").mkdir(exist_ok=True)
    name = f"{result['at'][:10]}-mlp-{width}-{batch}.json"
    (HERE / "results" / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(ratios, indent=1))


class Work:
    """The same training, as four people would write it; each way gives the mean loss of the last epoch."""

    def __init__(self, matrix: MemoryMatrix, width: int, batch: int) -> None:
        self.kind, self.matrix, self.batch = Mlp(), matrix, batch
        self.params = MlpParams(width=width, depth=3)
        self.shape = self.kind.shape(matrix, task="binary", num_classes=2)
        (rows,) = matrix.batches()
        self.x, self.y = torch.from_numpy(rows.x_NF), torch.from_numpy(rows.y_N).float()
        self.steps = EPOCHS * -(-ROWS // batch)
        tree = {"epochs": EPOCHS, "batch_size": batch, "clip": CLIP, "early_stopping": 0}
        optimizer = {"learning_rate": RATE, "weight_decay": DECAY}
        made = NetworkConfig(loader=LoaderConfig(workers=0))
        self.config = resolve(made, {**tree, "optimizer": optimizer})
        self.rate = rate(self.config.schedule, steps=self.steps)

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        return self.kind.build(self.shape, self.params).train()

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=DECAY, fused=True)

    def hand(self) -> float:
        module = self.module()
        optimizer = self.optimizer(module)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        total = 0.0
        for _ in range(EPOCHS):
            order, total = torch.randperm(ROWS), 0.0
            for first in range(0, ROWS, self.batch):
                rows = order[first : first + self.batch]
                loss = binary_cross_entropy_with_logits(module(self.x[rows]).squeeze(1), self.y[rows])
                loss.backward()
                nn.utils.clip_grad_norm_(module.parameters(), CLIP)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                total += loss.item()
        return total * EPOCHS / self.steps

    def tidemill(self) -> float:
        job = Job(
            kind=self.kind, shape=self.shape, params=self.params, config=self.config, valid=None, seed=0,
            train=described(self.matrix, None, split="train", classes=True),
        )  # fmt: skip
        lines = train(job, events=Events(), on_round=None).steps
        return statistics.fmean(line["loss"] for line in lines if line["epoch"] == EPOCHS - 1)

    def transformers(self) -> float:
        from transformers import Trainer, TrainerCallback, TrainingArguments

        losses: list[float] = []

        class Keep(TrainerCallback):  # type: ignore[misc]
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                if logs and "loss" in logs:
                    losses.append(float(logs["loss"]))

        class Scored(nn.Module):
            def __init__(self, module: nn.Module) -> None:
                super().__init__()
                self.module = module

            def forward(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
                scores = self.module(features)
                return {"loss": binary_cross_entropy_with_logits(scores.squeeze(1), labels), "logits": scores}

        class Rows(torch.utils.data.Dataset):  # type: ignore[misc]
            def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
                self.x, self.y = x, y

            def __len__(self) -> int:
                return len(self.x)

            def __getitems__(self, places: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
                rows = torch.tensor(places)
                return self.x[rows], self.y[rows]

        model = Scored(self.module())
        optimizer = self.optimizer(model)
        arguments = TrainingArguments(
            output_dir=str(HERE / ".cache" / "trainer"), num_train_epochs=EPOCHS, per_device_train_batch_size=self.batch, max_grad_norm=CLIP,
            logging_steps=self.steps // EPOCHS, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, seed=0,
        )  # fmt: skip
        Trainer(
            model=model, args=arguments, train_dataset=Rows(self.x, self.y), callbacks=[Keep()],
            data_collator=lambda batch: {"features": batch[0], "labels": batch[1]},
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)),
        ).train()  # fmt: skip
        return losses[-1]

    def lightning(self) -> float:
        import pytorch_lightning as pl
        from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

        work = self

        class Lit(pl.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.module, self.total = work.module(), 0.0

            def training_step(self, batch: Any, _: int) -> torch.Tensor:
                x, y = batch
                loss = binary_cross_entropy_with_logits(self.module(x).squeeze(1), y)
                self.total += loss.item()
                return loss

            def on_train_epoch_start(self) -> None:
                self.total = 0.0

            def configure_optimizers(self) -> Any:
                optimizer = work.optimizer(self)
                schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, work.rate)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        data = TensorDataset(self.x, self.y)
        # Whole batches at once: row by row the loader alone would take longer than the network.
        sampler = BatchSampler(RandomSampler(data), self.batch, drop_last=False)
        loader = DataLoader(data, sampler=sampler, batch_size=None)
        model = Lit()
        pl.Trainer(
            max_epochs=EPOCHS, gradient_clip_val=CLIP, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model, loader)  # fmt: skip
        return model.total * EPOCHS / self.steps


def install() -> None:
    """Put the peers where they touch nothing else."""
    if not (PEERS / "pytorch_lightning").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(PEERS), *INSTALLED]
        subprocess.run(command, check=True)
    sys.path.append(str(PEERS))
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning", "transformers", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _peer(name: str) -> str:
    found = next(PEERS.glob(f"{name.replace('-', '_')}-*.dist-info"), None)
    return found.name.split("-")[1] if found else ""


def summary(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "low": round(min(values), 3), "high": round(max(values), 3)}


if __name__ == "__main__":
    given = [int(text) for text in sys.argv[1:]]
    main(*(given + [5, 128, 256, 1][len(given) :]))
