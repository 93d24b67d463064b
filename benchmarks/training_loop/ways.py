"""The same training as four people would write it. Each tells what the clock showed: at its start, and behind every epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from workloads import Workload

from tidemill.core.events import Events
from tidemill.train.torch.rank import train

OUTPUT = Path(__file__).parent / ".cache" / "trainer"


@dataclass(kw_only=True)
class Timed:
    """What a run took."""

    at: list[tuple[int, float, float]] = field(default_factory=lambda: [(0, time.perf_counter(), time.process_time())])
    """Steps behind, wall seconds, seconds of the processor."""
    loss: float = 0.0
    """Mean of the last epoch."""

    def mark(self, steps: int) -> None:
        if steps > self.at[-1][0]:
            self.at.append((steps, time.perf_counter(), time.process_time()))

    def rates(self) -> dict[str, float]:
        """Steps a second from the end of the first epoch to the end; and what the run took beyond its steps at that rate."""
        (_, begun, _), (first, wall, cpu), (last, wall_end, cpu_end) = self.at[0], self.at[1], self.at[-1]
        steps = last - first
        return {
            "wall": steps / (wall_end - wall), "cpu": steps / (cpu_end - cpu), "loss": self.loss,
            "start_s": wall_end - begun - last * (wall_end - wall) / steps,
        }  # fmt: skip


def hand(work: Workload) -> Timed:
    timed = Timed()
    config, take, module = work.job.config, work.load(), work.module()
    optimizer = work.optimizer(module)
    schedule = work.schedule(optimizer)
    steps = 0
    for epoch in range(len(work.steps)):
        total = 0.0
        for rows in work.plan(epoch):
            inputs, target = take(rows)
            with work.autocast():
                loss = work.loss(module(**inputs), target)
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), config.clip or 0.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item()
            steps += 1
        timed.mark(steps)
        timed.loss = total / work.steps[epoch]
    return timed


def tidemill(work: Workload) -> Timed:
    timed = Timed()

    def behind(_: int, measured: Any) -> bool:
        timed.mark(measured["step"])
        timed.loss = measured.get("train_log_loss", measured.get("train_smoothed_loss"))
        return False

    train(work.job, events=Events(), on_round=behind)
    return timed


def transformers(work: Workload) -> Timed:
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    timed = Timed()
    take = work.load()

    class Marks(TrainerCallback):  # type: ignore[misc]
        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            timed.mark(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                timed.loss = float(logs["loss"])

    class Scored(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, inputs: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
            scores = self.module(**inputs)
            return {"loss": work.loss(scores, labels), "logits": scores}

    class Batched(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return loader(work, take, named=True)

    model = Scored(work.module())
    optimizer = work.optimizer(model)
    arguments = TrainingArguments(
        output_dir=str(OUTPUT), num_train_epochs=len(work.steps), max_grad_norm=work.job.config.clip, logging_steps=work.steps[0],
        save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, bf16=work.bf16, seed=0, remove_unused_columns=False,
    )  # fmt: skip
    trainer = Batched(
        model=model, args=arguments, train_dataset=[], callbacks=[Marks()], optimizers=(optimizer, work.schedule(optimizer))
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return timed


def lightning(work: Workload) -> Timed:
    import pytorch_lightning as pl

    timed = Timed()
    take = work.load()

    class Lit(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.module, self.total = work.module(), 0.0

        def training_step(self, batch: Any, _: int) -> Tensor:
            inputs, target = batch
            with work.autocast():  # by precision="bf16-mixed" Lightning refuses to clip what an optimizer in one kernel takes
                loss = work.loss(self.module(**inputs), target)
            self.total += loss.item()
            return loss

        def on_train_epoch_start(self) -> None:
            self.total = 0.0

        def on_train_epoch_end(self) -> None:
            timed.mark(self.global_step)
            timed.loss = self.total / work.steps[self.current_epoch]

        def configure_optimizers(self) -> Any:
            optimizer = work.optimizer(self)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": work.schedule(optimizer), "interval": "step"}}

    pl.Trainer(
        max_epochs=len(work.steps), gradient_clip_val=work.job.config.clip, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(Lit(), loader(work, take))  # fmt: skip
    return timed


def loader(work: Workload, take: Any, *, named: bool = False) -> Any:
    """Whole batches at once, in this process: row by row the loader alone would take longer than the network."""
    from torch.utils.data import DataLoader, Dataset, Sampler

    class Rows(Dataset):  # type: ignore[type-arg]
        def __getitem__(self, rows: Tensor) -> Any:
            inputs, target = take(rows)
            return {"inputs": inputs, "labels": target} if named else (inputs, target)

    class Plan(Sampler):  # type: ignore[type-arg]
        epoch = 0

        def __len__(self) -> int:
            return work.steps[0]

        def __iter__(self) -> Iterator[Tensor]:
            self.epoch += 1
            return iter(work.plan(self.epoch - 1))

    return DataLoader(Rows(), sampler=Plan(), batch_size=None)


WAYS = {"hand": hand, "tidemill": tidemill, "transformers": transformers, "lightning": lightning}
