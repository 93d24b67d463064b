"""Jobs of the ranks that hold N ranks against one: the same steps under a layout, and what came of them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tidemill.models.networks.base import Shape
from tidemill.models.networks.decoder import Decoder, DecoderParams, Transformer
from tidemill.models.networks.quantiles import Quantiles
from tidemill.train.torch.loader.step import MicroBatch, Step
from tidemill.train.torch.objective import IGNORED, objective
from tidemill.train.torch.parallel.layout import Layout, ParallelConfig
from tidemill.train.torch.parallel.parallel import parallelize
from tidemill.train.torch.precision import Precision

VOCABULARY = 61
ROWS, LENGTH = 24, 12


def train(
    *,
    parallel: dict[str, Any],
    micro: int = 2,
    steps: int = 20,
    network: str = "decoder",
    params: dict[str, Any] | None = None,
    precision: str = "fp32",
    max_norm: float = 1.0,
    optimizer: str = "sgd",
    even: bool = False,
    scale: float = 1.0,
    wrong: str = "",
) -> dict[str, Any]:
    """Losses and norms of some steps, the first and last gradient, the weights before and after, and scores of a batch.

    `wrong` breaks something on purpose, to see that the tests can fail.
    """
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    layout = Layout.of(ParallelConfig(**parallel), ranks=ranks, micro_batches=micro)
    kind, task = NETWORKS[network]

    def build() -> nn.Module:
        torch.manual_seed(7)
        return kind(params or {})  # type: ignore[no-any-return]

    how = None if precision == "fp32" else Precision(precision)  # type: ignore[arg-type]
    model = parallelize(build, layout, device=torch.device("cpu"), precision=how)
    lowered = objective("multiclass" if task == "texts" else task)
    found: dict[str, Any] = {"losses": [], "norms": [], "gradients": [], "before": arrays(model.full_state())}
    weights = list(model.parameters())
    made = torch.optim.SGD(weights, lr=0.1, momentum=0.9) if optimizer == "sgd" else torch.optim.AdamW(weights, lr=1e-3)
    for number in range(steps):
        step = dealt(number, task, layout.reader(rank), layout.readers, micro, even=even)
        if wrong == "micro":  # the mean of the micro-batches' means
            own = [weight_of(one) * micro * layout.readers for one in step.micro]
            step = Step(micro=reweighted(step.micro, own, step.total), total=step.total, epoch=0, number=number, rows=ROWS, tokens=0)
        found["losses"].append(model.forward_backward(step, lowered, scale=scale))
        found["norms"].append(model.clip(max_norm, scale=scale))
        if number in (0, steps - 1):
            found["gradients"].append({name: whole(weight.grad) for name, weight in model.named_parameters() if weight.grad is not None})
        made.step()
        made.zero_grad()
    for part in model.parts:
        part.eval()
    found["after"] = arrays(model.full_state())
    found["scores"] = model.scores(dealt(0, task, 0, 1, 1).micro[0].inputs).float().numpy()
    return found


def dealt(number: int, task: str, reader: int, readers: int, micro: int, *, even: bool = False) -> Step:
    """One reader's part of a step whose rows are cut into unlike pieces."""
    inputs, target, weight = {"next_token": tokens, "texts": texts}.get(task, features)(number)
    total = float(weight_sum(target, weight))
    pieces = readers * micro
    generator = np.random.default_rng(number)
    inner = np.arange(1, pieces) * (ROWS // pieces) if even else np.sort(generator.permutation(np.arange(1, ROWS))[: pieces - 1])
    cuts = [0, *inner.tolist(), ROWS]
    mine = [slice(cuts[place], cuts[place + 1]) for place in range(reader * micro, (reader + 1) * micro)]
    batches = [
        MicroBatch(
            inputs=shortened({name: value[rows] for name, value in inputs.items()}),
            target=target[rows],
            weight=weight[rows],
            rows=np.arange(ROWS)[rows],
        )
        for rows in mine
    ]
    batches = [
        MicroBatch(inputs=one.inputs, target=one.target[:, : one.inputs["input_ids"].shape[1]], weight=one.weight, rows=one.rows)
        if task == "next_token"
        else one
        for one in batches
    ]
    return Step(micro=batches, total=total, epoch=0, number=number, rows=ROWS, tokens=0)


def tokens(number: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator)
    lengths = torch.randint(3, LENGTH + 1, (ROWS,), generator=generator)
    mask = (torch.arange(LENGTH)[None, :] < lengths[:, None]).long()
    target = torch.where(mask.bool(), (ids * 7 + 3) % VOCABULARY, IGNORED)
    weight = torch.rand(ROWS, generator=generator) + 0.1
    weight[number % ROWS] = 0.0
    return {"input_ids": ids, "attention_mask": mask}, target, weight


def texts(number: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    inputs, _, weight = tokens(number)
    return inputs, inputs["input_ids"][:, 1] % 3, weight


def features(number: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    x_NF = torch.randn(ROWS, 8, generator=generator)
    x_NF[:, 7] = torch.randint(0, 11, (ROWS,), generator=generator)
    return {"features": x_NF}, x_NF[:, :3].argmax(dim=1), torch.rand(ROWS, generator=generator) + 0.1


def shortened(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the tokens that are padding in all rows, as a loader cuts them."""
    if "attention_mask" not in inputs:
        return inputs
    longest = int(inputs["attention_mask"].sum(dim=1).max())
    return {name: value[:, :longest] for name, value in inputs.items()}


def weight_sum(target: Tensor, weight: Tensor) -> Tensor:
    return ((target != IGNORED).sum(dim=1) * weight).sum() if target.ndim == 2 else weight.sum()


def weight_of(one: MicroBatch) -> float:
    assert one.weight is not None
    return float(weight_sum(one.target, one.weight))


def reweighted(micro: Any, own: list[float], total: float) -> list[MicroBatch]:
    return [
        MicroBatch(inputs=one.inputs, target=one.target, weight=one.weight * total / mine, rows=one.rows)
        for one, mine in zip(micro, own, strict=True)
    ]


def whole(tensor: Any) -> np.ndarray:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().numpy().copy()


def arrays(state: dict[str, Tensor] | None) -> dict[str, np.ndarray] | None:
    return None if state is None else {name: value.numpy() for name, value in state.items()}


def decoder(params: dict[str, Any]) -> nn.Module:
    made = DecoderParams(**{"depth": 4, "width": 32, "heads": 4, "hidden": 48, **params})
    return Decoder().build(Shape(task="next_token", num_outputs=VOCABULARY), made)


def reader(params: dict[str, Any]) -> nn.Module:
    """A decoder that answers once for a whole text."""
    made = DecoderParams(**{"depth": 4, "width": 32, "heads": 4, "hidden": 48, **params})
    return Transformer(VOCABULARY, made, answers=Shape(task="multiclass", num_outputs=3))


class Own(nn.Module):
    """A module as users write them: biases, a plan with older names, cuts by layer."""

    tp_plan = {
        "start": "colwise_rep",
        "blocks.*.norm": "replicate",
        "blocks.*.up": "colwise",
        "blocks.*.down": "rowwise",
        "end": "rowwise_rep",
    }
    split_points = ["blocks.1"]

    def __init__(self, features: int = 8, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.start = nn.Linear(features, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.end = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        x = self.start(features).tanh()
        for block in self.blocks:
            x = block(x)
        return self.end(x)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class ByPosition(nn.Module):
    """Tokens through a norm that each tensor rank computes for some of the positions."""

    tp_plan = {"norm": "sequence_parallel", "up": "colwise", "down": "rowwise"}

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(VOCABULARY, 16), nn.LayerNorm(16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        return self.head(x + self.down(self.up(self.norm(x)).relu()))


def mlp(params: dict[str, Any]) -> nn.Module:
    from tidemill.models.networks.mlp import Mlp, MlpParams

    return Mlp().build(mixed(), MlpParams(depth=3, width=16, dropout=0.0, **params))


def dcn(params: dict[str, Any]) -> nn.Module:
    from tidemill.models.networks.dcn import Dcn, DcnParams

    return Dcn().build(mixed(), DcnParams(width=16, dropout=0.0, **params))


def mixed() -> Shape:
    """Seven numbers and a category."""
    lines = [tuple(np.linspace(-3, 3, 25).tolist())] * 7
    spread = Quantiles(places=tuple(range(7)), knots=tuple(lines), values=tuple(lines), gaps=(2,))
    tables = {"f7": {"rows": 12, "width": 6}}
    return Shape(task="multiclass", num_outputs=3, names=tuple(f"f{place}" for place in range(8)), tables=tables, quantiles=spread)


def text(params: dict[str, Any]) -> nn.Module:
    from tidemill.models.networks.text import Text, TextParams

    shape = Shape(task="multiclass", num_outputs=3, folder=".")
    return Text().build(shape, TextParams(dropout=0.0, max_length=16, **params))


NETWORKS: dict[str, Any] = {
    "decoder": (decoder, "next_token"),
    "reader": (reader, "texts"),
    "own": (lambda params: Own(**params), "multiclass"),
    "by_position": (lambda params: ByPosition(), "next_token"),
    "mlp": (mlp, "multiclass"),
    "dcn": (dcn, "multiclass"),
    "text": (text, "texts"),
}
