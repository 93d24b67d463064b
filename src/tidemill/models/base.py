"""What a model is: something that fits a matrix and leaves a graph.

A model sees numbers only: the feature matrix that `features.onnx` makes, in batches, as often as it asks. What it leaves
has two paths to the same answer: its own library's predict, and an ONNX graph. The parity gate compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from tidemill.core.errors import DataError
from tidemill.core.metrics import evaluate

if TYPE_CHECKING:
    import onnx

# Called after each round with its number from 0 and what was measured in it, such as `valid_log_loss` and `train_log_loss`;
# the first entry is the measure that the model itself goes by, and its name after `valid_` is a metric's. True stops the fit there.
OnRound = Callable[[int, Mapping[str, float]], bool]


@dataclass(frozen=True)
class Batch:
    """Rows of a matrix: features float32 (N, F) with NaN for missing, targets float64 (N,), weights float64 (N,) or None.

    A classification target is the index of its class.
    """

    x_NF: np.ndarray
    y_N: np.ndarray
    weight_N: np.ndarray | None = None


class Matrix(Protocol):
    """Features, targets and weights in batches.

    `batches` may be called many times and gives the same rows in the same order each time. `targets` gives all targets
    and weights, shape (N,), without the features. The arrays belong to the matrix: read them, never write. Not safe from
    several threads.
    """

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_features(self) -> int: ...
    def batches(self) -> Iterator[Batch]: ...
    def targets(self) -> tuple[np.ndarray, np.ndarray | None]: ...


class Fitted(Protocol):
    """A fitted model. Immutable; `predict` may be called from one thread at a time."""

    best_round: int | None
    """The round that was kept, from 0, where fitting goes in rounds."""

    def predict(self, x_NF: np.ndarray) -> np.ndarray:
        """Probabilities (N, K), K = 2 for binary, or predictions (N,), float64, by the model's own library."""

    def to_onnx(self) -> onnx.ModelProto:
        """The same as a graph: `features` float32 [N, F] to `probability` float32 [N, K] or `prediction` float32 [N]."""

    def importance(self) -> dict[str, float]:
        """How much each feature matters, shares that sum to 1 (or all 0), by feature name."""

    def save(self, folder: Path) -> None:
        """Write files into `folder` that hold numbers and text, no code."""


@runtime_checkable
class Scored(Fitted, Protocol):
    """A fitted model whose answer is a link over scores, so that calibration can take the link's place.

    Scores are log-odds (N, 1) for binary, class scores before the softmax (N, K) for multiclass, and the prediction
    itself (N, 1) for regression.
    """

    task: str

    def score(self, x_NF: np.ndarray) -> np.ndarray:
        """Scores by the model's own library, float64."""

    def score_graph(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Nodes and initializers from `features` to the tensor `export.SCORE`."""


class Model(Protocol):
    """A kind of model: how its parameters are called, and how it is fitted.

    One that has an attribute `memory_bytes` is told there how much memory a fit may take, before the first.

    An instance may keep what it derived from a matrix (such as quantised columns) for the next `fit` on the same
    object, so that a search over parameters pays for it once.
    """

    Params: ClassVar[type]
    """A frozen dataclass with defaults; limits are in its fields' metadata (`min`, `max`)."""
    space: ClassVar[Mapping[str, Mapping[str, Any]]]
    """What `[tune]` searches when the project does not say, by parameter name."""

    def fit(
        self,
        train: Matrix,
        valid: Matrix | None,
        *,
        task: str,
        num_classes: int | None,
        params: Any,
        seed: int,
        threads: int,
        on_round: OnRound | None = None,
    ) -> Fitted: ...

    def load(self, folder: Path) -> Fitted: ...

    def pace(self, params: Any) -> float:
        """How far one round takes the fit, so that fits of other parameters can be compared at the same progress."""


class MemoryMatrix:
    """A matrix over arrays that are in memory already."""

    def __init__(
        self,
        x_NF: np.ndarray,
        y_N: np.ndarray,
        weight_N: np.ndarray | None = None,
        *,
        names: Sequence[str] | None = None,
        tables: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        if x_NF.ndim != 2 or len(x_NF) != len(y_N):
            raise DataError(f"a matrix must have one target a row, got shapes {x_NF.shape} and {y_N.shape}")
        self.names = list(names) if names is not None else [f"f{i}" for i in range(x_NF.shape[1])]
        self.num_rows, self.num_features = x_NF.shape
        self.tables = dict(tables or {})
        """Features that are codes of categories, with the rows and the width of the table of each."""
        self._batch = Batch(
            np.ascontiguousarray(x_NF, np.float32),
            np.asarray(y_N, np.float64),
            None if weight_N is None else np.asarray(weight_N, np.float64),
        )

    def batches(self) -> Iterator[Batch]:
        yield self._batch

    def targets(self) -> tuple[np.ndarray, np.ndarray | None]:
        return self._batch.y_N, self._batch.weight_N


def valid_loss(fitted: Fitted, valid: Matrix | None, *, task: Any) -> dict[str, float]:
    """What a kind without rounds tells `on_round` after its fit; nothing where there are no validation rows."""
    if valid is None or not valid.num_rows:
        return {}
    y_N, weight_N = valid.targets()
    metric = "rmse" if task == "regression" else "log_loss"
    return {f"valid_{metric}": evaluate(task, y_N, predict(fitted, valid), weight=weight_N, metrics=[metric])[metric]}


def predict(fitted: Fitted, matrix: Matrix) -> np.ndarray:
    """The native predictions for every row of a matrix, one batch at a time."""
    return np.concatenate([fitted.predict(batch.x_NF) for batch in matrix.batches()])
