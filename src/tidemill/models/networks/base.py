"""What a network is: a module that is built from what the data tell and from parameters, and fitted by the training loop."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from tidemill.core.errors import DataError
from tidemill.core.load import load, need
from tidemill.core.project import build as build_struct
from tidemill.models import base, export
from tidemill.models.networks.fitted import FACTS, WEIGHTS, FittedNetwork
from tidemill.models.networks.quantiles import Quantiles

if TYPE_CHECKING:
    import torch

# Rows of a matrix to the module's inputs by name.
Reader = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the data tell a network; plain values, so that it can be sent to other processes and kept with the weights."""

    task: str
    """regression, binary, multiclass, or next_token."""
    num_outputs: int
    """Scores of a row: 1 for regression and binary, K for K classes, the vocabulary for next_token."""
    names: tuple[str, ...] = ()
    """Columns of the feature matrix."""
    tables: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Features that are codes of categories, each with the `rows` and the `width` of its table."""
    quantiles: Quantiles = field(default_factory=Quantiles)
    """How the other features are spread over the training rows."""
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    """What is done to a text or an image before the network, as `features.json` says it."""
    folder: str = "."
    """What relative paths among the parameters are resolved against."""
    unseen: tuple[int, ...] = ()
    """Classes that no training row has; they are never answered."""
    center: float = 0.0
    """Regression: the mean of the target on the training rows."""
    scale: float = 1.0
    """Regression: its standard deviation, above 0."""


class Network(Protocol):
    """What the training loop needs of a kind of network.

    `build` gives a module with weights to start from; the caller seeds PyTorch before. Its `forward` takes named tensors and
    gives scores [N, S]: `features` float32 [N, F], or `input_ids` and `attention_mask` int64 [N, L], or `pixels` uint8
    [N, C, H, W]; of regression in the target's own units. A module may carry `tp_plan` (such as `{"layers.*.attn.q":
    "colwise"}`, in Hugging Face's notation), `split_points` and `shard_units`.
    """

    Params: ClassVar[type]
    ref: str
    """What `load("model", ref)` finds the kind by in another process."""
    defaults: ClassVar[Mapping[str, Any]]
    """What it trains with where the project does not say: a tree as `[train]`."""

    def shape(self, train: base.Matrix, *, task: str, num_classes: int | None) -> Shape: ...
    def build(self, shape: Shape, params: Any) -> torch.nn.Module: ...


class NetworkModel(ABC):
    """A kind of model that is a network over features; one that reads texts or images overrides more than `build`."""

    Params: ClassVar[type]
    space: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}
    ref: str
    reads: ClassVar[str] = "features"
    """features, text or image: what the rows of its matrix are."""
    embeds: ClassVar[bool] = True
    """Whether it learns a table for each feature that is codes of categories."""
    predict_rows: ClassVar[int] = 8_192
    """Rows that go through it at once while it answers."""
    double: ClassVar[bool] = True
    """Whether it answers in double precision, by which its graph is judged."""

    def __init__(self) -> None:
        self.training: Any = None
        """How to train, a `train.torch.config.Training`; None means the kind's defaults."""

    @abstractmethod
    def build(self, shape: Shape, params: Any) -> torch.nn.Module:
        """The module, with weights to start from."""

    def rebuild(self, shape: Shape, params: Any, folder: Path | None) -> torch.nn.Module:
        """The module whose weights come from somewhere else; `folder` is where it was saved, None before that."""
        del folder
        return self.build(shape, params)

    def shape(self, train: base.Matrix, *, task: str, num_classes: int | None) -> Shape:
        """What the training rows tell.

        Raises:
            DataError: If there are no rows that count, or they hold a single class.
        """
        y_N, weight_N = train.targets()
        if not len(y_N):
            raise DataError("training needs rows, got none")
        if weight_N is not None and not (weight_N > 0).any():
            raise DataError("training needs rows with a weight above 0, got none")
        if task == "regression":
            center = float(np.average(y_N, weights=weight_N))
            spread = float(np.sqrt(np.average((y_N - center) ** 2, weights=weight_N)))
            return Shape(task=task, num_outputs=1, center=center, scale=spread or 1.0, **self.told(train))
        seen = np.unique(y_N if weight_N is None else y_N[weight_N > 0]).astype(np.int64).tolist()
        if len(seen) < 2:
            raise DataError("training rows must hold at least two classes, got one", hint="look at the split and the target")
        classes = num_classes or 2
        unseen = tuple(k for k in range(classes) if k not in seen)
        return Shape(task=task, num_outputs=1 if classes == 2 else classes, unseen=unseen, **self.told(train))

    def told(self, train: base.Matrix) -> dict[str, Any]:
        """What the inputs of the training rows tell: fields of `Shape`."""
        tables = {name: dict(table) for name, table in getattr(train, "tables", {}).items()}
        numbers = [place for place, name in enumerate(train.names) if name not in tables]
        return {"names": tuple(train.names), "tables": tables, "quantiles": Quantiles.of(train, numbers)}

    def reader(self, shape: Shape, params: Any, folder: Path | None) -> Reader:
        """What turns rows of a matrix into the module's inputs; `folder` as `rebuild` has it."""
        del shape, params, folder
        return lambda rows: {export.FEATURES: rows}

    def axes(self, shape: Shape, params: Any) -> dict[str, list[str | int]]:
        """The inputs' shapes in the graph, a name for an axis of any length."""
        del params
        return {export.FEATURES: ["N", len(shape.names)]}

    def trial(self, shape: Shape, params: Any) -> np.ndarray:
        """Rows on which the graph is held against the module: random, missing, far off and unseen ones."""
        del params
        random = np.random.default_rng(0)
        x_NF = (random.normal(size=(64, len(shape.names))) * 10.0 ** random.integers(-3, 4, (64, 1))).astype(np.float32)
        x_NF[:8], x_NF[8], x_NF[9], x_NF[10] = 0, np.nan, np.inf, -np.inf
        x_NF[11:32][random.random((21, len(shape.names))) < 0.3] = np.nan
        for place, name in enumerate(shape.names):
            if name in shape.tables:
                x_NF[:, place] = random.integers(0, shape.tables[name]["rows"], 64)
        return x_NF

    def settled(self, state: dict[str, np.ndarray], params: Any) -> dict[str, np.ndarray]:
        """The weights as the module of `rebuild` has them, made of those that were trained."""
        del params
        return state

    def keep(self, shape: Shape, params: Any, folder: Path | None) -> list[Path]:
        """Files that `rebuild` and `reader` need beside weights and facts, to be saved with them; `folder` as `rebuild` has it."""
        del shape, params, folder
        return []

    def fit(
        self,
        train: base.Matrix,
        valid: base.Matrix | None,
        *,
        task: str,
        num_classes: int | None,
        params: Any,
        seed: int,
        threads: int,
        on_round: base.OnRound | None = None,
    ) -> FittedNetwork:
        """The network, fitted by the training loop. `on_round` is called after each evaluation.

        Raises:
            DataError: If there are no training rows that count, or they hold a single class.
        """
        trained = load("fit", "network")(
            self, train, valid,
            task=task, num_classes=num_classes, params=params, seed=seed, threads=threads, on_round=on_round, training=self.training,
        )  # fmt: skip
        state = self.settled({name: tensor.detach().cpu().numpy() for name, tensor in trained.state.items()}, params)
        fitted = FittedNetwork(self, trained.shape, params, state, num_classes=num_classes, best_round=trained.best_round)
        fitted.weigh(valid if valid is not None and valid.num_rows else train, seed=seed)
        return fitted

    def load(self, folder: Path) -> FittedNetwork:
        """The network that `FittedNetwork.save` left.

        Raises:
            DataError: If it cannot be read.
        """
        numpy = need("safetensors.numpy", "a network")
        try:
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            shape = build_struct(Shape, facts["shape"], path="shape", where=str(folder))
            params = build_struct(self.Params, facts["params"], path="params", where=str(folder))
            state = numpy.load_file(folder / WEIGHTS)
        except Exception as error:
            raise DataError(f"{folder} must hold the weights of a network: {error}", hint="run the train stage again") from error
        fitted = FittedNetwork(self, shape, params, state, num_classes=facts["num_classes"], best_round=facts["best_round"], folder=folder)
        fitted.shares = [float(share) for share in facts["importance"]]
        return fitted

    def pace(self, params: Any) -> float:
        del params
        return 1.0
