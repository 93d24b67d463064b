"""What is trained: a network, its rows and the settings, said once for all the loops."""

from __future__ import annotations

import importlib.util
import shutil
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.utils.rnn import pad_sequence

from tidemill.core.artifact import Artifact, writing
from tidemill.core.events import Events
from tidemill.core.project import from_tree
from tidemill.data import stage as data_stage
from tidemill.features import stage as features_stage
from tidemill.models.base import MemoryMatrix
from tidemill.models.networks.mlp import Mlp, MlpParams
from tidemill.train.rows import RowMatrix
from tidemill.train.torch.config import NetworkConfig, resolve
from tidemill.train.torch.loader.loader import Loader
from tidemill.train.torch.optim import rate
from tidemill.train.torch.rank import Job
from tidemill.train.torch.sources import described, opened
from tidemill.train.workload import prepare_model

EXAMPLES = Path(__file__).parents[2] / "examples"
CACHE = Path(__file__).parent / ".cache"

# Rows by their places to a batch: what the network takes by name, and the targets.
Take = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A training as each of the loops is given it."""

    job: Job
    """As tidemill takes it; the others take kind, shape, parameters and settings from it."""
    threads: int
    steps: list[int]
    """Of each epoch."""
    load: Callable[[], Take]
    """What a user does once, before the first step."""
    plan: Callable[[int], list[Tensor]]
    """The rows of each step of an epoch."""
    loss: Callable[[Tensor, Tensor], Tensor]

    @property
    def bf16(self) -> bool:
        return self.job.config.precision == "bf16"

    def brief(self) -> Workload:
        """The same for one epoch, to warm up with."""
        return replace(self, steps=self.steps[:1], job=replace(self.job, config=replace(self.job.config, epochs=1)))

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        module: nn.Module = self.job.kind.build(self.job.shape, self.job.params)
        return module.train()

    def autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """All weights in one kernel, the quickest that PyTorch has."""
        config = self.job.config.optimizer
        given: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": True}
        if config.name == "sgd":
            return torch.optim.SGD(module.parameters(), momentum=config.momentum, **given)
        return torch.optim.AdamW(module.parameters(), **given)

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, rate(self.job.config.schedule, steps=sum(self.steps)))


def mlp(*, width: int = 128, batch: int = 256, rows: int = 65_536, epochs: int = 5) -> Workload:
    """A perceptron over 32 numbers that are in memory, AdamW."""
    random = np.random.default_rng(0)
    x_NF = random.normal(size=(rows, 32)).astype(np.float32)
    matrix = MemoryMatrix(x_NF, (x_NF[:, 0] * x_NF[:, 1] + x_NF[:, 2] > 0).astype(np.float64))
    kind = Mlp()
    optimizer = {"learning_rate": 2e-3, "weight_decay": 0.01}
    job = Job(
        kind=kind, shape=kind.shape(matrix, task="binary", num_classes=2), params=MlpParams(width=width), valid=None, seed=0,
        config=resolve(NetworkConfig(), {"epochs": epochs, "batch_size": batch, "clip": 1.0, "early_stopping": 0, "optimizer": optimizer}),
        train=described(matrix, None, split="train", classes=True),
    )  # fmt: skip

    def load() -> Take:
        x, y = torch.from_numpy(x_NF), torch.from_numpy(matrix.targets()[0]).float()
        return lambda rows: ({"features": x[rows]}, y[rows])

    return Workload(
        job=job, threads=1, steps=[-(-rows // batch)] * epochs, load=load, plan=lambda _: shuffled(rows, batch),
        loss=lambda scores, target: binary_cross_entropy_with_logits(scores.squeeze(1), target),
    )  # fmt: skip


def text(*, rows: int = 240, epochs: int = 3) -> Workload:
    """The project examples/reviews on its first sentences: MiniLM, batches of like length of up to 1,024 tokens, bf16, AdamW."""
    job, data = example("reviews", "fold-0.parquet", rows, epochs=epochs)
    loader = Loader(opened(job.train, seed=0), batch_tokens=job.config.batch_tokens, seed=0, config=job.config.loader)
    plans = [[torch.from_numpy(step.micro[0].rows) for step in loader.steps(epoch)] for epoch in range(epochs)]
    left = epochs * len(plans[0])  # how many steps a run takes where epochs differ in steps
    for place, plan in enumerate(plans):
        plans[place] = plan[:left]
        left -= len(plans[place])

    def load() -> Take:
        from tokenizers import Tokenizer

        held = split(data)
        tokenizer = Tokenizer.from_file(str(Path(job.params.encoder) / "tokenizer.json"))
        tokenizer.enable_truncation(max_length=job.params.max_length)
        tokenizer.no_padding()
        tokens = [torch.tensor(made.ids) for made in tokenizer.encode_batch(held["sentence"].to_pylist())]
        target = torch.from_numpy(np.array(held["liked"])).float()

        def take(rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            ids = pad_sequence([tokens[row] for row in rows.tolist()], batch_first=True)
            return {"input_ids": ids, "attention_mask": (ids != 0).long()}, target[rows]

        return take

    return Workload(
        job=job, threads=1, steps=[len(plan) for plan in plans], load=load, plan=lambda epoch: plans[epoch],
        loss=lambda scores, target: binary_cross_entropy_with_logits(scores.float().squeeze(1), target),
    )  # fmt: skip


def image(*, rows: int = 2_200, epochs: int = 3) -> Workload:
    """The project examples/fashion on its first images: a small ResNet, images moved and mirrored, bf16, SGD."""
    job, data = example("fashion", "fashion.parquet", rows, epochs=epochs)
    crop, flip = job.params.augment.crop, job.params.augment.flip
    high, wide = job.params.height, job.params.width
    count, batch = split(data).num_rows, job.config.batch_size or 1

    def load() -> Take:
        import io

        from PIL import Image

        held = pq.read_table(data.path.parent / "fashion.parquet").slice(0, count)
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in held["image"].to_pylist()])
        padded = torch.from_numpy(np.pad(pixels, ((0, 0), (crop, crop), (crop, crop))))
        classes = data.read_json("schema.json")["classes"]
        target = torch.tensor([classes.index(garment) for garment in held["garment"].to_pylist()])
        down, right = torch.arange(high), torch.arange(wide)

        def take(rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            top, left = torch.randint(0, 2 * crop + 1, (2, len(rows), 1))
            moved = padded[rows[:, None, None], (top + down)[:, :, None], (left + right)[:, None, :]]
            mirrored = torch.rand(len(rows)) < flip
            return {"pixels": torch.where(mirrored[:, None, None], moved.flip(2), moved)[:, None]}, target[rows]

        return take

    return Workload(
        job=job, threads=1, steps=[-(-count // batch)] * epochs, load=load, plan=lambda _: shuffled(count, batch),
        loss=lambda scores, target: cross_entropy(scores.float(), target, label_smoothing=job.config.label_smoothing),
    )  # fmt: skip


def example(name: str, file: str, rows: int, *, epochs: int) -> tuple[Job, Artifact]:
    """The project of an example on the first rows of its table, as its stages `data` and `features` leave it; and those rows."""
    folder = EXAMPLES / name
    spec = importlib.util.spec_from_file_location(f"get_{name}", folder / "get_data.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{folder} must hold get_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.get_data()
    tree = tomllib.loads((folder / "tidemill.toml").read_text(encoding="utf-8"))
    work = CACHE / f"{name}-{rows}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    table = (made if made.is_file() else made / file, work / file)
    pq.write_table(pq.read_table(table[0]).slice(0, rows), table[1])
    tree["data"] |= {"source": str(table[1]), "split": {**tree["data"]["split"], "valid": 0.02, "test": 0.02}}
    tree["train"] |= {"epochs": epochs}
    if "encoder" in tree["model"]:
        tree["model"]["encoder"] = str(folder / tree["model"]["encoder"])
    project = from_tree(tree, folder=folder)
    with writing(work / "data", stage="data") as out:
        data_stage.run(project, out, events=Events())
    data = Artifact.open(work / "data")
    with writing(work / "features", stage="features") as out:
        features_stage.run(project, data, out, events=Events())
    kind: Any
    kind, params = prepare_model(project)
    matrix = RowMatrix(data, Artifact.open(work / "features"), "train")
    facts = data.read_json("schema.json")
    job = Job(
        kind=kind, shape=kind.shape(matrix, task=tree["task"], num_classes=len(facts["classes"])), params=params,
        config=resolve(project.train, {**kind.defaults, "early_stopping": 0}), valid=None, seed=0,
        train=described(matrix, None, split="train", classes=True),
    )  # fmt: skip
    return job, data


def split(data: Artifact) -> Any:
    return pq.read_table(sorted((data.path / "train").glob("*.parquet")))


def shuffled(rows: int, batch: int) -> list[Tensor]:
    return list(torch.randperm(rows).split(batch))
