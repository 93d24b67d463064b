"""A small network and its loop, for tests of the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from tidemill.core.events import Event, Events  # noqa: E402
from tidemill.core.project import build  # noqa: E402
from tidemill.train.torch.checkpoint import Checkpoints  # noqa: E402
from tidemill.train.torch.config import NetworkConfig, resolve  # noqa: E402
from tidemill.train.torch.loader.arrays import ArraySource  # noqa: E402
from tidemill.train.torch.loader.loader import Loader  # noqa: E402
from tidemill.train.torch.loop import Loop, OnRound, num_steps  # noqa: E402
from tidemill.train.torch.objective import objective  # noqa: E402
from tidemill.train.torch.parallel.layout import Layout  # noqa: E402
from tidemill.train.torch.parallel.parallel import parallelize  # noqa: E402
from tidemill.train.torch.precision import Precision  # noqa: E402
from tidemill.train.torch.record import Record  # noqa: E402


class Small(nn.Module):
    """`features` [N, F] to scores [N, S], with all that has a state of its own: dropout, running statistics."""

    def __init__(self, features: int, *, scores: int = 1, width: int = 16, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(features, width)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, scores)

    def forward(self, features: Tensor) -> Tensor:
        made: Tensor = self.head(self.dropout(torch.relu(self.norm(self.first(features)))))
        return made


@pytest.fixture
def rows() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return _rows


@pytest.fixture
def loop() -> Callable[..., Loop]:
    return _loop


def _rows(count: int = 512, *, features: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features and a class of two that a small network can learn from them."""
    random = np.random.default_rng(seed)
    x_NF = random.normal(size=(count, features)).astype(np.float32)
    return x_NF, (x_NF[:, 0] * x_NF[:, 1] + x_NF[:, 2] > 0).astype(np.int64)


def _loop(
    config: Mapping[str, Any],
    *,
    train: tuple[np.ndarray, ...] | None = None,
    valid: tuple[np.ndarray, ...] | None = None,
    task: str = "binary",
    events: list[Event] | None = None,
    on_round: OnRound | None = None,
    folder: Path | None = None,
    seed: int = 0,
    **network: Any,
) -> Loop:
    """A loop on one rank that is ready to run; `config` is a tree as `[train]`."""
    made = resolve(build(NetworkConfig, {"loader": {"workers": 0}, **config}, path="train"), {"early_stopping": 0})
    train = train or _rows()

    def loader(arrays: tuple[np.ndarray, ...], *, shuffle: bool) -> Loader:
        x_NF, *labels = arrays
        return Loader(
            ArraySource({"features": x_NF}, *labels), batch_rows=made.batch_size, seed=seed, accumulate=made.accumulate, shuffle=shuffle,
            config=made.loader,
        )  # fmt: skip

    def module() -> nn.Module:
        torch.manual_seed(seed)
        return Small(train[0].shape[1], **network)

    parallel = parallelize(
        module, Layout.of(made.parallel, ranks=1, micro_batches=made.accumulate), device=torch.device("cpu"),
        precision=Precision(made.precision),
    )  # fmt: skip
    torch.manual_seed(seed + 1)
    listener = Events(*([events.append] if events is not None else []))
    steps = loader(train, shuffle=True)
    ready = Loop(
        parallel,
        steps,
        loader(valid, shuffle=False) if valid is not None else None,
        config=made,
        objective=objective(task, label_smoothing=made.label_smoothing),
        judge=objective(task),
        report=lambda loss: ("log_loss", loss),
        record=Record(epochs=made.epochs or 1, steps=num_steps(made, steps), events=listener),
        events=listener,
        on_round=on_round,
        saving=Checkpoints(folder, made.checkpoint) if folder is not None else None,
    )
    ready.resume()
    return ready
