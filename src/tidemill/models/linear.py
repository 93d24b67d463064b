"""Linear and logistic regression with absolute and squared penalties; also the baseline beside every other model.

What is minimised, over the standardised features z of rows with weights w, the intercept being free:

    sum w loss(y, f) + l1 |b| + l2 b'b / 2,   f = intercept + z'b

with half the squared error as the loss of regression, and the log loss of classes. So regression without penalties is
scikit-learn's LinearRegression, `l2` its Ridge's alpha; of its Lasso's and ElasticNet's alpha and l1_ratio, with W the
total weight, l1 is W alpha l1_ratio and l2 is W alpha (1 - l1_ratio); of LogisticRegression's C, l2 is (1 - l1_ratio) / C and
l1 is l1_ratio / C. Regression takes one scan of the rows, classes a few passes more, whatever the number of rows. Where
features are too many for that, scikit-learn fits an even selection of the rows.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tidemill.core.artifact import write_json
from tidemill.core.errors import DataError
from tidemill.core.load import need
from tidemill.models import base, export
from tidemill.models.gram import Gram
from tidemill.models.logistic import Chunk, Penalty, newton, start
from tidemill.models.quadratic import least
from tidemill.models.scaling import Moments, Scaling, chunks, finite

if TYPE_CHECKING:
    import onnx

# The most unknowns of an exact fit: its matrix has their square, and its work grows with it.
MAX_UNKNOWNS = {"regression": 2_000, "binary": 1_000, "multiclass": 1_000}

# Unknowns up to which one thread does.
ALONE = 200

# With more unknowns than an exact fit takes, rows over what this holds as float64 are thinned evenly.
MAX_BYTES = 256 * 2**20

# Rows on which a fit of classes starts, and how near to their optimum.
SAMPLE_ROWS = 20_000
SAMPLE_TOLERANCE = 1e-5

# Score of a class that training never saw: its probability is 0.
NEVER = -1e4


@dataclass(frozen=True, kw_only=True)
class LinearParams:
    """How the coefficients are fitted."""

    l1: float = field(default=0.0, metadata={"min": 0.0, "max": 1e12})
    """Absolute penalty on the coefficients of the standardised features, which sets the weak ones to 0; 0 is none."""
    l2: float = field(default=1.0, metadata={"min": 0.0, "max": 1e12})
    """Squared penalty on them; 0 is none."""
    max_iter: int = field(default=200, metadata={"min": 1, "max": 100_000})
    """Most passes of the solver over the rows, for classes."""


class Linear:
    """Fits least squares or logistic regression (binary, multinomial), exactly and over all rows."""

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
            DataError: If there are no training rows that count, or they hold a single class.
        """
        if not train.num_rows:
            raise DataError("training needs rows, got none")
        seen_N, weight_N = train.targets()
        if weight_N is not None and not (weight_N > 0).any():
            raise DataError("training needs rows with a weight above 0, got none")
        seen: list[int] = []
        if task != "regression":
            seen = np.unique(seen_N if weight_N is None else seen_N[weight_N > 0]).astype(np.int64).tolist()
            if len(seen) < 2:
                raise DataError("training rows must hold at least two classes, got one", hint="look at the split and the target")
        unknowns = train.num_features * (len(seen) if len(seen) > 2 else 1)
        # Threads that wait for one another over small matrices cost more than they bring, most of all where others work too.
        with need("threadpoolctl", "model.kind linear").threadpool_limits(threads if unknowns > ALONE else 1):
            if unknowns > MAX_UNKNOWNS[task]:
                scaling, coefficient_SF, intercept_S = _by_library(train, task, params, seed)
            elif task == "regression":
                scaling, coefficient_SF, intercept_S = _least_squares(train, params)
            else:
                scaling, coefficient_SF, intercept_S = _logistic(train, seen, params)
        fitted = FittedLinear(
            scaling,
            coefficient_SF=coefficient_SF.astype(np.float32),
            intercept_S=intercept_S.astype(np.float32),
            seen=seen,
            task=task,
            num_classes=num_classes,
            names=list(train.names),
        )
        if on_round is not None:
            on_round(0, base.valid_loss(fitted, valid, task=task))
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
        linear_model = need("sklearn.linear_model", "model.kind linear")
        self._estimator = linear_model.LinearRegression() if task == "regression" else linear_model.LogisticRegression()
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


Coefficients = tuple[Scaling, np.ndarray, np.ndarray]


def _least_squares(train: base.Matrix, params: LinearParams) -> Coefficients:
    """Scaling, coefficients (1, F) and intercept (1,) by one scan."""
    gram = Gram.of(train)
    if gram is None:  # the caller has seen that there is weight
        raise DataError("training needs rows, got none")
    b_F = least(gram.xx_FF + params.l2 * np.eye(len(gram.xy_F)), gram.xy_F, l1=params.l1)
    return gram.scaling, b_F[None], np.array([gram.target - gram.mean_F @ b_F])


def _logistic(train: base.Matrix, seen: Sequence[int], params: LinearParams) -> Coefficients:
    """Scaling, coefficients (S, F) and intercepts (S,), S = 1 for two classes that were seen."""
    step = -(-train.num_rows // SAMPLE_ROWS)
    scaling, sample = _sampled(train, step)
    place_K = np.zeros(max(seen) + 1)
    place_K[seen] = np.arange(len(seen))

    def rows(found: Iterable[Chunk]) -> Iterable[Chunk]:
        return ((scaling.apply(x_NF), place_K[y_N.astype(np.int64)], weight_N) for x_NF, y_N, weight_N in found)

    y_N, weight_N = train.targets()
    share_K = np.bincount(y_N.astype(np.int64), weights=weight_N, minlength=len(place_K))[seen]
    penalty = Penalty(l1=params.l1, l2=params.l2)
    b_SB = start(share_K / share_K.sum(), train.num_features)
    whole = step == 1
    if not whole:
        # The penalty is weighed against the sample as it will be against all rows.
        part = _weight(sample) / float(share_K.sum())
        thin = Penalty(l1=params.l1 * part, l2=params.l2 * part)
        in_memory = list(rows(sample))
        b_SB = newton(lambda: in_memory, b_SB, penalty=thin, max_passes=params.max_iter, tolerance=SAMPLE_TOLERANCE)
    in_memory = list(rows(sample)) if whole else []
    b_SB = newton(lambda: in_memory if whole else rows(chunks(train)), b_SB, penalty=penalty, max_passes=params.max_iter)
    return scaling, b_SB[:, :-1], b_SB[:, -1]


def _sampled(train: base.Matrix, step: int) -> tuple[Scaling, list[Chunk]]:
    """The scaling, and every `step`-th row that counts as it is, by one pass."""
    moments, sample, first = Moments(train.num_features), [], 0
    for x_NF, y_N, weight_N in chunks(train):
        moments.add(finite(x_NF), weight_N)
        taken = slice((-first) % step, None, step)
        sample.append((x_NF[taken].copy(), y_N[taken], None if weight_N is None else weight_N[taken]))
        first += len(y_N)
    return Scaling.from_moments(moments), sample


def _weight(sample: Iterable[Chunk]) -> float:
    return float(sum(len(y_N) if weight_N is None else weight_N.sum() for _, y_N, weight_N in sample))


def _by_library(train: base.Matrix, task: str, params: LinearParams, seed: int) -> Coefficients:
    """The same by scikit-learn, on as many rows as fit in memory."""
    linear_model = need("sklearn.linear_model", "model.kind linear")
    scaling = Scaling.of(train)
    z_NF, y_N, weight_N = _thinned(train, scaling)
    total, whole = (float(len(y_N)) if weight_N is None else float(weight_N.sum())), params.l1 + params.l2
    share = params.l1 / whole if whole else 0.0
    if task != "regression":
        solver = "saga" if params.l1 else "lbfgs"
        inverse = 1 / whole if whole else np.inf
        estimator = linear_model.LogisticRegression(C=inverse, l1_ratio=share, solver=solver, max_iter=params.max_iter, random_state=seed)
    elif params.l1:
        estimator = linear_model.ElasticNet(alpha=whole / total, l1_ratio=share, max_iter=params.max_iter)
    else:
        estimator = linear_model.Ridge(alpha=params.l2, solver="cholesky" if params.l2 else "svd")
    with warnings.catch_warnings():
        # Cut at max_iter: a little short of the optimum, which validation judges like any other fit.
        warnings.simplefilter("ignore", need("sklearn.exceptions", "model.kind linear").ConvergenceWarning)
        estimator.fit(z_NF, y_N, sample_weight=weight_N)
    return scaling, np.atleast_2d(estimator.coef_), np.atleast_1d(estimator.intercept_)


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
