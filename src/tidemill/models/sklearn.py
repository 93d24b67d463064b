"""Any estimator of scikit-learn that skl2onnx converts: `estimator = "sklearn.ensemble:HistGradientBoostingClassifier"`.

Its rows have to fit in memory. Values farther from the training range than the range is wide count as that farthest point,
infinities among them, since few estimators take those. Whether it converts is tried on a few rows before it is fitted.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tidemill.core.artifact import write_json
from tidemill.core.errors import ConfigError, DataError, Unsupported, nearest
from tidemill.core.graph import OPSETS, session
from tidemill.core.load import load, need
from tidemill.models import base, export, skops
from tidemill.models.conversion import convert
from tidemill.models.permuted import COMPARED_ROWS, PERMUTED_VALUES, added_loss, shares
from tidemill.models.scaling import Moments, chunks, finite

if TYPE_CHECKING:
    import onnx

# Rows on which the conversion is tried before the fit.
TRIED_ROWS = 200

# Bytes of a value: as the estimator sees it, and a copy of its own.
VALUE_BYTES = 16

_CLOSE = 1e-6
# A tried conversion is wrong where more of the rows than this are answered farther off than that; fewer may be rounding.
_FEW, _FAR = 0.05, 1e-2
_PURPOSE = "model.kind sklearn"
_PREFIX = "model/estimator/"


@dataclass(frozen=True, kw_only=True)
class EstimatorParams:
    """Which estimator, and what it is called with."""

    estimator: str
    """"module:Class", or "module:function" that gives an estimator; of scikit-learn or put together from its parts."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the class or function is called with; in a project file they stand beside `estimator`, or in `params`."""

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], path: str, where: str) -> EstimatorParams:
        """All keys but `estimator` and `arguments` are arguments; those of scikit-learn's classes are checked here."""
        ref = tree.get("estimator")
        if not isinstance(ref, str) or ":" not in ref:
            raise ConfigError(
                f'{path}.estimator: must be "module:Class", got {ref!r} ({where})',
                hint='for example "sklearn.ensemble:HistGradientBoostingClassifier"',
            )
        nested = tree.get("arguments", {})
        if not isinstance(nested, Mapping):
            raise ConfigError(f"{path}.arguments: must be a table, got {nested!r} ({where})")
        made = cls(
            estimator=ref, arguments={**nested, **{key: value for key, value in tree.items() if key not in ("estimator", "arguments")}}
        )
        if ref.startswith("sklearn."):
            made.make(path=path, where=where)
        return made

    def make(self, *, path: str = "model", where: str = "project") -> Any:
        """A fresh estimator.

        Raises:
            ConfigError: If there is no such class, it does not take an argument, or makes no estimator.
        """
        made = load("estimator", self.estimator)
        known = inspect.signature(made).parameters if callable(made) else {}
        for name in self.arguments:
            if name not in known and not any(one.kind is one.VAR_KEYWORD for one in known.values()):
                close = nearest(name, known)
                hint = f"did you mean {f'{path}.{close}'!r}?" if close else f"it takes {', '.join(known) or 'none'}"
                raise ConfigError(f"{path}.{name}: is not an argument of {self.estimator} ({where})", hint=hint)
        try:
            estimator = made(**self.arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}.estimator: {self.estimator} cannot be made: {error} ({where})") from error
        if not hasattr(estimator, "fit") or not hasattr(estimator, "get_params"):
            raise ConfigError(f"{path}.estimator: must give an estimator, {self.estimator} gives {type(estimator).__name__} ({where})")
        return estimator

    def __getattr__(self, name: str) -> Any:
        """An argument by its name, as a search asks for what the project says; the estimator's own default where it says nothing."""
        if name.startswith("_") or name in ("estimator", "arguments"):
            raise AttributeError(name)
        if name in self.arguments:
            return self.arguments[name]
        defaults = self.make().get_params(deep=False)
        if name not in defaults:
            raise AttributeError(name)
        return defaults[name]


class Estimator:
    """Fits any estimator on rows that are in memory."""

    Params: ClassVar[type] = EstimatorParams
    space: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self) -> None:
        self.memory_bytes: int | None = None

    def fit(
        self,
        train: base.Matrix,
        valid: base.Matrix | None,
        *,
        task: str,
        num_classes: int | None,
        params: EstimatorParams,
        seed: int,
        threads: int,
        on_round: base.OnRound | None = None,
    ) -> FittedEstimator:
        """The estimator on all training rows. `on_round` is called once, after the fit.

        Raises:
            ConfigError: If it is not of the task.
            DataError: If there are no training rows, or missing values that it does not take.
            Unsupported: If skl2onnx does not convert it, it takes no weights and rows have them, or memory is too small.
        """
        if not train.num_rows:
            raise DataError("training needs rows, got none")
        name = params.estimator.rpartition(":")[2]
        estimator = _seeded(params.make(), seed=seed, threads=threads)
        _check_task(estimator, task, name)
        self._check_memory(train, name)
        held, x_NF, y_N, weight_N = _gathered(train)
        _check_missing(estimator, x_NF, train.names, name)
        y_N = y_N if task == "regression" else y_N.astype(np.int64)
        weights = _weights(estimator, weight_N, name)
        with need("threadpoolctl", _PURPOSE).threadpool_limits(threads), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _try_conversion(estimator, x_NF, y_N, task, name)
            estimator.fit(x_NF, y_N, **weights)
            fitted = FittedEstimator(
                estimator, low_F=held.low_F, high_F=held.high_F, task=task, num_classes=num_classes, names=list(train.names)
            )
            fitted.element = _element(fitted, x_NF[:: -(-len(x_NF) // COMPARED_ROWS)])
            fitted.shares = _importance(fitted, x_NF, y_N, seed)
        if on_round is not None:
            on_round(0, base.valid_loss(fitted, valid, task=task))
        return fitted

    def load(self, folder: Path) -> FittedEstimator:
        """The estimator that `FittedEstimator.save` left.

        Raises:
            DataError: If it cannot be read.
        """
        try:
            facts = json.loads((folder / "estimator.json").read_text(encoding="utf-8"))
            low_F, high_F = (np.array(facts.pop(name), np.float32) for name in ("low", "high"))
            element, shares = facts.pop("element"), facts.pop("importance")
            fitted = FittedEstimator(skops.read(folder / "estimator.skops"), low_F=low_F, high_F=high_F, **facts)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} must hold a scikit-learn estimator: {error}") from error
        fitted.element, fitted.shares = element, shares
        return fitted

    def pace(self, params: EstimatorParams) -> float:
        return 1.0

    def _check_memory(self, train: base.Matrix, name: str) -> None:
        needed = train.num_rows * train.num_features * VALUE_BYTES
        if self.memory_bytes is not None and needed > self.memory_bytes:
            raise Unsupported(
                f"model.estimator: {name} must have its rows in memory, about {needed / 2**20:,.0f} MiB, got {self.memory_bytes / 2**20:,.0f} MiB",
                hint="raise engine.memory, lower data.sample, or take linear, random_forest or xgboost, which need no more than a part",
            )


class FittedEstimator:
    """A fitted estimator behind the bounds of the training range."""

    best_round: int | None = None

    def __init__(
        self, estimator: Any, *, low_F: np.ndarray, high_F: np.ndarray, task: str, num_classes: int | None, names: Sequence[str]
    ) -> None:
        self.estimator = estimator
        self.low_F, self.high_F = low_F, high_F
        self.task = task
        self.num_classes = num_classes
        self.names = list(names)
        self.element = "float"
        """Precision in which the graph computes, float or double."""
        self.shares: list[float] = [0.0] * len(self.names)

    def predict(self, x_NF: np.ndarray) -> np.ndarray:
        if not len(x_NF):
            return np.empty(0 if self.task == "regression" else (0, self.num_classes or 2))
        held_NF = np.clip(x_NF.astype(np.float64), self.low_F.astype(np.float64), self.high_F.astype(np.float64))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if self.task == "regression":
                    return np.asarray(self.estimator.predict(held_NF), np.float64).reshape(len(x_NF))
                return np.asarray(np.asarray(self.estimator.predict_proba(held_NF), np.float64) @ self._places())
        except ValueError as error:
            _check_missing(self.estimator, held_NF, self.names, type(self.estimator).__name__)
            raise DataError(f"{type(self.estimator).__name__} must be able to answer these rows: {error}") from error

    def score(self, x_NF: np.ndarray) -> np.ndarray:
        """The prediction itself, or the scores that answer the estimator's probabilities."""
        p = self.predict(x_NF)
        if self.task == "regression":
            return p[:, None]
        return export.share_scores(p[:, 1:] if self.task == "binary" else p, self.task)

    def to_onnx(self) -> onnx.ModelProto:
        classes = None if self.task == "regression" else self.num_classes or 2
        return export.assemble(self.score_graph(), export.link(self.task), num_features=len(self.names), num_classes=classes)

    def score_graph(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        node = need("onnx.helper", _PURPOSE).make_node
        inner, answer = _inside(self.estimator, self.element, len(self.names), self.task)
        nodes = [
            node("Max", [export.FEATURES, "model/low"], ["model/above"]),
            node("Min", ["model/above", "model/high"], ["model/within"]),
            node("IsNaN", [export.FEATURES], ["model/missing"]),
            node("Where", ["model/missing", export.FEATURES, "model/within"], ["model/held"]),
            node("Cast", ["model/held"], [f"{_PREFIX}features"], to=11 if self.element == "double" else 1),
            *inner.node,
            node("Cast", [answer], ["model/answer"], to=1),
        ]
        tensors = [export.tensor("model/low", self.low_F), export.tensor("model/high", self.high_F), *inner.initializer]
        if self.task == "regression":
            nodes.append(node("Reshape", ["model/answer", "model/column"], [export.SCORE]))
            return nodes, [*tensors, export.tensor("model/column", [-1, 1], np.int64)]
        places_SK = self._places()[:, 1:] if self.task == "binary" else self._places()
        nodes.append(node("MatMul", ["model/answer", "model/places"], [export.SHARE]))
        to_score = export.share_nodes(self.task)
        return [*nodes, *to_score[0]], [*tensors, export.tensor("model/places", places_SK), *to_score[1]]

    def importance(self) -> dict[str, float]:
        """Each feature's share of the estimator's own importances; else of the loss that shuffling it brings on some rows."""
        return dict(zip(self.names, self.shares, strict=True))

    def save(self, folder: Path) -> None:
        skops.write(folder / "estimator.skops", self.estimator)
        facts = {"task": self.task, "num_classes": self.num_classes, "names": self.names, "element": self.element}
        bounds = {"low": self.low_F.tolist(), "high": self.high_F.tolist()}
        write_json(folder / "estimator.json", {**facts, **bounds, "importance": self.shares})

    def _places(self) -> np.ndarray:
        """1 where a class that training saw, in the estimator's order, is one of all classes: (S, K)."""
        return np.eye(self.num_classes or 2)[np.asarray(self.estimator.classes_, np.int64)]


@dataclass(frozen=True, kw_only=True)
class _Bounds:
    low_F: np.ndarray
    high_F: np.ndarray


def _seeded(estimator: Any, *, seed: int, threads: int) -> Any:
    """The estimator with the project's seed and threads wherever it says nothing of them itself."""
    found = estimator.get_params()
    given = {name: seed for name, value in found.items() if name.rpartition("__")[2] == "random_state" and value is None}
    given |= {name: threads for name, value in found.items() if name.rpartition("__")[2] == "n_jobs" and value is None}
    return estimator.set_params(**given)


def _check_task(estimator: Any, task: str, name: str) -> None:
    kinds = need("sklearn.base", _PURPOSE)
    if task == "regression" and not kinds.is_regressor(estimator):
        raise ConfigError(f"model.estimator: must be a regressor for a regression task, {name} is not")
    if task != "regression" and not kinds.is_classifier(estimator):
        raise ConfigError(f"model.estimator: must be a classifier for a {task} task, {name} is not")
    if task != "regression" and not hasattr(estimator, "predict_proba"):
        raise ConfigError(
            f"model.estimator: must give probabilities, {name} has no predict_proba", hint="wrap it in CalibratedClassifierCV"
        )


def _gathered(train: base.Matrix) -> tuple[_Bounds, np.ndarray, np.ndarray, np.ndarray | None]:
    """The bounds, and all rows that count: features float64 within them, targets, weights."""
    moments = Moments(train.num_features)
    x_NF, first = np.empty((train.num_rows, train.num_features)), 0
    targets, weights = [], []
    for part_NF, y_N, weight_N in chunks(train):
        moments.add(finite(part_NF), weight_N)
        x_NF[first : first + len(y_N)] = part_NF
        first += len(y_N)
        targets.append(y_N)
        weights.append(weight_N)
    if not first:
        raise DataError("training needs rows with a weight above 0, got none")
    low_F, high_F = (np.where(np.isfinite(edge_F), edge_F, 0) for edge_F in (moments.low_F, moments.high_F))
    largest, width_F = float(np.finfo(np.float32).max), high_F - low_F
    low_F = np.maximum(low_F - width_F, -largest).astype(np.float32)
    high_F = np.minimum(high_F + width_F, largest).astype(np.float32)
    np.clip(x_NF, low_F, high_F, out=x_NF)
    found = [weight_N for weight_N in weights if weight_N is not None]
    return _Bounds(low_F=low_F, high_F=high_F), x_NF[:first], np.concatenate(targets), np.concatenate(found) if found else None


def _check_missing(estimator: Any, x_NF: np.ndarray, names: Sequence[str], what: str) -> None:
    if need("sklearn.utils", _PURPOSE).get_tags(estimator).input_tags.allow_nan:
        return
    missing_F = np.isnan(x_NF).any(axis=0)
    if missing_F.any():
        name = names[int(missing_F.argmax())]
        raise DataError(
            f"model.estimator: {what} takes no missing values, feature {name!r} has some",
            field=name,
            hint=f'features: {name} = ["impute"], or an estimator that takes them, such as HistGradientBoosting',
        )


def _weights(estimator: Any, weight_N: np.ndarray | None, name: str) -> dict[str, np.ndarray]:
    """The argument of `fit` that takes row weights, of a pipeline its last step's; none where there are no weights."""
    if weight_N is None:
        return {}
    takes = need("sklearn.utils.validation", _PURPOSE).has_fit_parameter
    last = estimator.steps[-1] if hasattr(estimator, "steps") else ("", estimator)
    if not takes(last[1], "sample_weight"):
        raise Unsupported(f"model.estimator: {name} takes no row weights", hint="remove data.weight and model.class_weight")
    return {f"{last[0]}__sample_weight" if last[0] else "sample_weight": weight_N}


def _try_conversion(estimator: Any, x_NF: np.ndarray, y_N: np.ndarray, task: str, name: str) -> None:
    """Fit a copy on a few rows, of every class some, and make its graph.

    Raises:
        Unsupported: If skl2onnx or ONNX Runtime says no.
    """
    tried_N = np.zeros(len(y_N), bool)
    tried_N[:: -(-len(y_N) // TRIED_ROWS)] = True
    if task != "regression":
        for label in np.unique(y_N):
            tried_N[np.flatnonzero(y_N == label)[:10]] = True
    copy = need("sklearn.base", _PURPOSE).clone(estimator)
    try:
        copy.fit(x_NF[tried_N], y_N[tried_N])
    except ValueError:
        return  # too few rows for it, or none of what it needs: the fit itself will say
    try:
        singles_NF = x_NF[tried_N].astype(np.float32)
        found = session(bytes(convert(copy, [("features", "float", x_NF.shape[1])], singles=True).SerializeToString())).run(
            None, {"features": singles_NF}
        )
    except Exception as error:  # skl2onnx and ONNX Runtime raise families without a public root
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise Unsupported(
            f"model.estimator: skl2onnx must be able to convert {name}, cannot: {type(error).__name__}: {said[:300]}",
            hint="take another estimator; https://onnx.ai/sklearn-onnx/supported.html lists those that convert",
        ) from error
    expected = copy.predict(singles_NF) if task == "regression" else copy.predict_proba(singles_NF)
    apart_N = np.abs(np.asarray(found[0 if task == "regression" else 1]).reshape(expected.shape) - expected).reshape(len(singles_NF), -1)
    wrong = float((apart_N.max(axis=1) > _FAR * max(1.0, float(np.abs(expected).max()))).mean())
    if not wrong <= _FEW:
        missing = " with missing values" if np.isnan(singles_NF).any() else ""
        raise Unsupported(
            f"model.estimator: the graph that skl2onnx makes of {name}{missing} must answer as it does, answers {wrong:.0%} of the tried rows otherwise",
            hint="impute the missing values" if missing else "take another estimator",
        )


def _element(fitted: FittedEstimator, x_NF: np.ndarray) -> str:
    """The precision in which the graph answers as the estimator does; single where both do, for it is quicker."""
    features_NF = x_NF.astype(np.float32)
    expected = fitted.predict(features_NF)
    best = ("float", np.inf)
    # Trees compare singles themselves, and skl2onnx may search without end for the doubles that do the same.
    for element in ("float",) if _compares_singles(fitted.estimator) else ("float", "double"):
        fitted.element = element
        try:
            (found,) = session(bytes(fitted.to_onnx().SerializeToString())).run(None, {export.FEATURES: features_NF})
        except Exception:  # noqa: BLE001, S112 - a converter that takes one precision only
            continue
        apart = float(np.nan_to_num(np.abs(found - expected), nan=np.inf).max() / max(1.0, float(np.abs(expected).mean())))
        if apart < best[1]:
            best = (element, apart)
        if apart <= _CLOSE:
            break
    return best[0]


def _compares_singles(estimator: Any) -> bool:
    last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    members = np.ravel(np.asarray(getattr(last, "estimators_", [last]), object))
    return any(hasattr(member, "tree_") for member in members)


def _inside(estimator: Any, element: str, num_features: int, task: str) -> tuple[onnx.GraphProto, str]:
    """The estimator's graph with names of its own, without what its answer does not need, and the name of the answer."""
    compose = need("onnx.compose", _PURPOSE)
    model = convert(estimator, [("features", element, num_features)], singles=element == "float")
    strange = [entry.domain for entry in model.opset_import if entry.domain not in OPSETS and entry.domain != ""]
    if strange or len(model.functions):
        raise Unsupported(f"model.estimator: its graph must need the standard operators, needs {', '.join(strange) or 'functions'}")
    graph = compose.add_prefix(model, _PREFIX).graph
    answer = str(graph.output[0 if task == "regression" else 1].name)
    kept, needed = [], {answer}
    for one in reversed(graph.node):
        if needed.intersection(one.output):
            kept.append(one)
            needed.update(_reads(one))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    return graph, answer


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Every tensor that a node asks for, also from within the graphs that it runs."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)


def _importance(fitted: FittedEstimator, x_NF: np.ndarray, y_N: np.ndarray, seed: int) -> list[float]:
    own_F = getattr(fitted.estimator, "feature_importances_", None)
    if own_F is None:
        rows = max(50, min(COMPARED_ROWS, PERMUTED_VALUES // max(x_NF.shape[1], 1)))
        picked = slice(None, None, -(-len(x_NF) // rows))
        own_F = added_loss(fitted, x_NF[picked].astype(np.float32), y_N[picked].astype(np.float64), seed=seed)
    return shares(own_F)
