"""Logistic and ridge regression by scikit-learn; also the baseline beside every other model.

Takes any numbers: a missing value counts as the feature's training mean; a value farther from the training range than
the range is wide, infinities among them, counts as that farthest point. Features are standardised inside.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tidemill.core.artifact import write_json
from tidemill.core.errors import DataError
from tidemill.core.load import need
from tidemill.core.metrics import evaluate
from tidemill.models import base, export

if TYPE_CHECKING:
    import onnx

# Rows beyond what this holds as float64 are thinned evenly: coefficients gain nothing from them.
MAX_BYTES = 256 * 2**20

# Score of a class that training never saw: its probability is 0.
NEVER = -1e4


@dataclass(frozen=True, kw_only=True)
class LinearParams:
    """How the coefficients are fitted."""

    l2: float = field(default=1.0, metadata={"min": 1e-9, "max": 1e9})
    """Squared penalty on the coefficients of the standardised features."""
    max_iter: int = field(default=200, metadata={"min": 1, "max": 100_000})
    """Most iterations of the solver, for classification."""


class Linear:
    """Fits logistic regression (binary, multinomial) or ridge regression."""

    Params: ClassVar[type] = LinearParams
    space: ClassVar[Mapping[str, Mapping[str, Any]]] = {"l2": {"log_float": [1e-3, 1e4]}}

    def fit(
        self,
        train: base.Matrix,
        valid: base.Matrix | None,
        *,
        task: str,
        num_classes: int | None,
        params: LinearParams,
        seed: int,
        threads: int,
        on_round: base.OnRound | None = None,
    ) -> FittedLinear:
        """Coefficients on the standardised features. `on_round` is called once, after the fit.

        Raises:
            DataError: If there are no training rows, or they hold a single class.
        """
        if not train.num_rows:
            raise DataError("training needs rows, got none")
        scaling = Scaling.of(train)
        z_NF, y_N, weight_N = _thinned(train, scaling)
        estimator = _estimator(task, params, seed)
        if task != "regression" and len(np.unique(y_N)) < 2:
            raise DataError("training rows must hold at least two classes, got one", hint="look at the split and the target")
        with need("threadpoolctl", "model.kind linear").threadpool_limits(threads), warnings.catch_warnings():
            # Cut at max_iter: a little short of the optimum, which validation judges like any other fit.
            warnings.simplefilter("ignore", need("sklearn.exceptions", "model.kind linear").ConvergenceWarning)
            estimator.fit(z_NF, y_N, sample_weight=weight_N)
        fitted = FittedLinear(
            scaling,
            coefficient_SF=np.atleast_2d(estimator.coef_).astype(np.float32),
            intercept_S=np.atleast_1d(estimator.intercept_).astype(np.float32),
            seen=[] if task == "regression" else [int(value) for value in estimator.classes_],
            task=task,
            num_classes=num_classes,
            names=list(train.names),
        )
        if on_round is not None:
            on_round(0, _losses(fitted, valid))
        return fitted

    def load(self, folder: Path) -> FittedLinear:
        """The model that `FittedLinear.save` left.

        Raises:
            DataError: If it cannot be read.
        """
        try:
            facts = json.loads((folder / "linear.json").read_text(encoding="utf-8"))
            scaling = Scaling(*(np.array(facts.pop(name), np.float32) for name in Scaling.FIELDS))
            coefficient_SF = np.array(facts.pop("coefficients"), np.float32)
            intercept_S = np.array(facts.pop("intercepts"), np.float32)
            return FittedLinear(scaling, coefficient_SF=coefficient_SF, intercept_S=intercept_S, **facts)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} must hold a linear model: {error}") from error

    def pace(self, params: LinearParams) -> float:
        return 1.0


class FittedLinear:
    """Coefficients over standardised features, one row of them for each score."""

    best_round: int | None = None

    def __init__(
        self,
        scaling: Scaling,
        *,
        coefficient_SF: np.ndarray,
        intercept_S: np.ndarray,
        seen: Sequence[int],
        task: str,
        num_classes: int | None,
        names: Sequence[str],
    ) -> None:
        self.scaling = scaling
        self.coefficient_SF = coefficient_SF
        self.intercept_S = intercept_S
        self.seen = list(seen)
        self.task = task
        self.num_classes = num_classes
        self.names = list(names)
        self._estimator = _estimator(task, LinearParams(), 0)
        self._estimator.coef_ = coefficient_SF.astype(np.float64)
        self._estimator.intercept_ = intercept_S.astype(np.float64)
        if task != "regression":
            self._estimator.classes_ = np.array(self.seen)

    def predict(self, x_NF: np.ndarray) -> np.ndarray:
        if not len(x_NF):
            return np.empty(0 if self.task == "regression" else (0, self.num_classes or 2))
        z_NF = self.scaling.apply(x_NF)
        if self.task == "regression":
            return np.asarray(self._estimator.predict(z_NF)).reshape(len(x_NF))
        probability_NS = np.asarray(self._estimator.predict_proba(z_NF))
        if len(self.seen) == (self.num_classes or 2):
            return probability_NS
        probability_NK = np.zeros((len(x_NF), self.num_classes or 2))
        probability_NK[:, self.seen] = probability_NS
        return probability_NK

    def score(self, x_NF: np.ndarray) -> np.ndarray:
        coefficient_SF, intercept_S = self._score_weights()
        return np.asarray(self.scaling.apply(x_NF) @ coefficient_SF.T + intercept_S)

    def to_onnx(self) -> onnx.ModelProto:
        classes = None if self.task == "regression" else self.num_classes or 2
        return export.assemble(self.score_graph(), export.link(self.task), num_features=len(self.names), num_classes=classes)

    def score_graph(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        node = need("onnx.helper", "exporting a model").make_node
        coefficient_SF, intercept_S = self._score_weights()
        nodes, tensors = self.scaling.graph("model/z")
        nodes.append(node("Gemm", ["model/z", "model/coefficient", "model/intercept"], [export.SCORE], transB=1))
        return nodes, [*tensors, export.tensor("model/coefficient", coefficient_SF), export.tensor("model/intercept", intercept_S)]

    def importance(self) -> dict[str, float]:
        """Each feature's share of the absolute standardised coefficients, summed over classes."""
        size_F = np.abs(self.coefficient_SF.astype(np.float64)).sum(axis=0)
        total = size_F.sum()
        return dict(zip(self.names, (size_F / total if total > 0 else size_F).tolist(), strict=True))

    def save(self, folder: Path) -> None:
        scaling = {name: getattr(self.scaling, name).tolist() for name in Scaling.FIELDS}
        facts = {
            "task": self.task, "num_classes": self.num_classes, "names": self.names, "seen": self.seen,
            "coefficients": self.coefficient_SF.tolist(), "intercepts": self.intercept_S.tolist(),
        }  # fmt: skip
        write_json(folder / "linear.json", {**facts, **scaling})

    def _score_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients and intercepts of the scores: one for binary and regression, one a class for multiclass."""
        if self.task != "multiclass" or len(self.coefficient_SF) == self.num_classes:
            return self.coefficient_SF, self.intercept_S
        coefficient_SF, intercept_S = self.coefficient_SF, self.intercept_S
        if len(self.seen) == 2:  # fitted as one logistic curve: half of it to either side
            coefficient_SF = np.concatenate([-coefficient_SF / 2, coefficient_SF / 2])
            intercept_S = np.concatenate([-intercept_S / 2, intercept_S / 2])
        full_KF = np.zeros((self.num_classes or 0, coefficient_SF.shape[1]), np.float32)
        full_K = np.full(self.num_classes or 0, NEVER, np.float32)
        full_KF[self.seen], full_K[self.seen] = coefficient_SF, intercept_S
        return full_KF, full_K


@dataclass(frozen=True)
class Scaling:
    """How a raw feature becomes a standardised one; every array float32, shape (F,)."""

    mean: np.ndarray
    low: np.ndarray
    """Least distance from the mean that counts, <= 0."""
    high: np.ndarray
    """Greatest distance from the mean that counts, >= 0."""
    scale: np.ndarray
    """Standard deviation; 1 for a constant."""

    FIELDS: ClassVar[tuple[str, ...]] = ("mean", "low", "high", "scale")

    @classmethod
    def of(cls, matrix: base.Matrix) -> Scaling:
        """The statistics of a matrix's finite values, merged batch by batch (Chan, Golub and LeVeque 1983)."""
        width = matrix.num_features
        count_F, mean_F, squares_F = np.zeros(width), np.zeros(width), np.zeros(width)
        low_F, high_F = np.full(width, np.inf), np.full(width, -np.inf)
        for batch in matrix.batches():
            if not len(batch.x_NF):
                continue
            x_NF = np.where(np.isfinite(batch.x_NF), batch.x_NF, np.nan).astype(np.float64)
            present_NF = ~np.isnan(x_NF)
            added_F = present_NF.sum(axis=0)
            batch_mean_F = np.where(present_NF, x_NF, 0).sum(axis=0) / np.maximum(added_F, 1)
            batch_squares_F = np.square(np.where(present_NF, x_NF - batch_mean_F, 0)).sum(axis=0)
            total_F = np.maximum(count_F + added_F, 1)
            gap_F = np.where(added_F > 0, batch_mean_F - mean_F, 0)
            squares_F += batch_squares_F + gap_F**2 * count_F * added_F / total_F
            mean_F += gap_F * added_F / total_F
            count_F += added_F
            low_F, high_F = np.fmin(low_F, np.fmin.reduce(x_NF)), np.fmax(high_F, np.fmax.reduce(x_NF))
        empty_F = count_F == 0
        low_F, high_F = np.where(empty_F, 0, low_F), np.where(empty_F, 0, high_F)
        deviation_F = np.sqrt(squares_F / np.maximum(count_F, 1))
        # Below this a spread is rounding, not information.
        constant_F = deviation_F <= np.maximum(1e-30, 1e-7 * np.abs(mean_F))
        largest, width_F = float(np.finfo(np.float32).max), np.where(constant_F, 0, high_F - low_F)
        return cls(
            mean=mean_F.astype(np.float32),
            low=np.where(constant_F, 0, np.maximum(low_F - mean_F - width_F, -largest)).astype(np.float32),
            high=np.where(constant_F, 0, np.minimum(high_F - mean_F + width_F, largest)).astype(np.float32),
            scale=np.where(constant_F, 1, deviation_F).astype(np.float32),
        )

    def apply(self, x_NF: np.ndarray) -> np.ndarray:
        """Standardised features, float64."""
        z_NF = x_NF.astype(np.float64)
        z_NF -= self.mean
        z_NF[np.isnan(z_NF)] = 0
        np.clip(z_NF, self.low.astype(np.float64), self.high.astype(np.float64), out=z_NF)
        z_NF /= self.scale
        return z_NF

    def graph(self, output: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """The same as nodes from `features` to the tensor `output`."""
        node = need("onnx.helper", "exporting a model").make_node
        nodes = [
            node("Sub", [export.FEATURES, "model/mean"], ["model/centred"]),
            node("IsNaN", ["model/centred"], ["model/missing"]),
            node("Where", ["model/missing", "model/zero", "model/centred"], ["model/filled"]),
            node("Max", ["model/filled", "model/low"], ["model/above"]),
            node("Min", ["model/above", "model/high"], ["model/within"]),
            node("Div", ["model/within", "model/scale"], [output]),
        ]
        return nodes, [export.tensor("model/zero", 0.0), *(export.tensor(f"model/{name}", getattr(self, name)) for name in self.FIELDS)]


def _estimator(task: str, params: LinearParams, seed: int) -> Any:
    linear_model = need("sklearn.linear_model", "model.kind linear")
    if task == "regression":
        return linear_model.Ridge(alpha=params.l2, solver="cholesky", random_state=seed)
    return linear_model.LogisticRegression(C=1 / params.l2, max_iter=params.max_iter, random_state=seed)


def _thinned(train: base.Matrix, scaling: Scaling) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Standardised rows, targets and weights; every n-th row where all would be too many."""
    step = max(1, -(-train.num_rows * train.num_features * 8 // MAX_BYTES))
    blocks, targets, weights, start = [], [], [], 0
    for batch in train.batches():
        taken = slice((-start) % step, None, step)
        blocks.append(scaling.apply(batch.x_NF[taken]))
        targets.append(batch.y_N[taken])
        if batch.weight_N is not None:
            weights.append(batch.weight_N[taken])
        start += len(batch.y_N)
    return np.concatenate(blocks), np.concatenate(targets), np.concatenate(weights) if weights else None


def _losses(fitted: FittedLinear, valid: base.Matrix | None) -> dict[str, float]:
    if valid is None or not valid.num_rows:
        return {}
    y_N, weight_N = valid.targets()
    metric = "rmse" if fitted.task == "regression" else "log_loss"
    task: Any = fitted.task
    return {f"valid_{metric}": evaluate(task, y_N, base.predict(fitted, valid), weight=weight_N, metrics=[metric])[metric]}
