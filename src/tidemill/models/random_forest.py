"""Random forests by XGBoost: many deep trees, each on a part of the rows and of the features at every split.

A tree's leaf answers the mean target of its rows, or the share of a class among them (a forest for each class with more
than two), and the forest the mean of its trees: what Breiman's forests (2001) do, with splits between at most `max_bin`
values, rows drawn without replacement and data beyond memory taken batch by batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tidemill.core.artifact import write_json
from tidemill.core.errors import DataError
from tidemill.core.load import need
from tidemill.models import base, export
from tidemill.models.xgboost import LARGEST, FittedTrees, XGBoost, XGBoostParams, base_scores, monotone_constraints, tree_node

if TYPE_CHECKING:
    import onnx

# Leaves looked up at once, rows times trees.
_LEAVES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class RandomForestParams:
    """How many trees, and how they grow."""

    num_trees: int = field(default=100, metadata={"min": 1, "max": 10_000})
    """Trees, for each class with more than two; more are never worse, only larger and slower."""
    max_depth: int = field(default=16, metadata={"min": 1, "max": 30})
    """Splits between the root and the deepest leaf."""
    min_leaf: float = field(default=5.0, metadata={"min": 0.0, "max": 1e9})
    """Least weight of the rows in a leaf; of rows without weights, their number."""
    max_features: float | Literal["auto"] = field(default="auto", metadata={"min": 0.0, "max": 1.0})
    """Share of the features that each split may choose from; auto is their square root for classes, a third for regression."""
    subsample: float = field(default=0.632, metadata={"min": 0.01, "max": 1.0})
    """Share of the rows that each tree sees, drawn without replacement."""
    max_bin: int = field(default=256, metadata={"min": 2, "max": 65_536})
    """Values that a feature may take after quantisation."""
    monotone: Mapping[str, Literal["increasing", "decreasing"]] = field(default_factory=dict)
    """Features that the answer may only rise, or only fall with, as for xgboost."""
    external_memory: bool | Literal["auto"] = "auto"
    """Keep the quantised rows on disk; auto does so where they would not fit in `engine.memory`."""


class RandomForest:
    """Fits forests. Keeps the quantised matrices of the last fit for the next one on the same data."""

    Params: ClassVar[type] = RandomForestParams
    space: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "max_depth": {"int": [8, 20]},
        "min_leaf": {"log_float": [1.0, 100.0]},
        "max_features": {"float": [0.1, 1.0]},
        "subsample": {"float": [0.4, 1.0]},
    }

    def __init__(self) -> None:
        self.memory_bytes: int | None = None
        self._trees = XGBoost()
        self._indicators: _Indicators | None = None

    def fit(
        self,
        train: base.Matrix,
        valid: base.Matrix | None,
        *,
        task: str,
        num_classes: int | None,
        params: RandomForestParams,
        seed: int,
        threads: int,
        on_round: base.OnRound | None = None,
    ) -> FittedForest:
        """The forest of all training rows. `on_round` is called once, after the fit.

        The same for the same matrix, parameters, seed and thread count.

        Raises:
            ConfigError: If `params.monotone` names no feature.
            DataError: If there are no training rows.
        """
        rows = train
        if task == "multiclass":
            if self._indicators is None or self._indicators.matrix is not train:
                self._indicators = _Indicators(train, num_classes or 0)
            rows = self._indicators
        self._trees.memory_bytes = self.memory_bytes
        grown = XGBoostParams(num_rounds=1, early_stopping=0, max_bin=params.max_bin, external_memory=params.external_memory)
        settings = _settings(params, task, train.num_features, seed, threads)
        settings |= monotone_constraints(params.monotone, train.names, task)
        booster, _, outside = self._trees.boost(settings, {}, rows, None, grown, threads, None)
        shares = "multiclass" if task == "multiclass" else "regression"
        trees = FittedTrees(booster, task=shares, num_classes=num_classes, names=list(train.names))
        trees.external_memory = outside
        fitted = FittedForest(trees, task=task, num_classes=num_classes)
        if on_round is not None:
            on_round(0, base.valid_loss(fitted, valid, task=task))
        return fitted

    def load(self, folder: Path) -> FittedForest:
        """The forest that `FittedForest.save` left.

        Raises:
            DataError: If it cannot be read.
        """
        try:
            facts = json.loads((folder / "forest.json").read_text(encoding="utf-8"))
            return FittedForest(self._trees.load(folder), **facts)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{folder} must hold a random forest: {error}") from error

    def pace(self, params: RandomForestParams) -> float:
        return 1.0


class FittedForest:
    """Trees whose mean is the prediction, or the share of each class."""

    best_round: int | None = None

    def __init__(self, trees: FittedTrees, *, task: str, num_classes: int | None) -> None:
        self.trees = trees
        self.task = task
        self.num_classes = num_classes
        self.external_memory = trees.external_memory
        self._value_TL, self._target_T, self._base_S = _leaves(trees)

    def predict(self, x_NF: np.ndarray) -> np.ndarray:
        if not len(x_NF):
            return np.empty(0 if self.task == "regression" else (0, self.num_classes or 2))
        return export.link(self.task).apply(self.score(x_NF))

    def score(self, x_NF: np.ndarray) -> np.ndarray:
        """The prediction itself, or the scores that answer each class's share among the leaves' rows."""
        step = max(1, _LEAVES // self._value_TL.shape[0])
        share_NS = np.concatenate([self._means(x_NF[first : first + step]) for first in range(0, len(x_NF), step)])
        return share_NS if self.task == "regression" else export.share_scores(share_NS, self.task)

    def to_onnx(self) -> onnx.ModelProto:
        classes = None if self.task == "regression" else self.num_classes or 2
        return export.assemble(self.score_graph(), export.link(self.task), num_features=len(self.trees.names), num_classes=classes)

    def score_graph(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        if self.task == "regression":
            return self.trees.score_graph()
        targets = self.num_classes or 2 if self.task == "multiclass" else 1
        shares = tree_node(self.trees.booster, targets, export.SHARE)
        nodes, tensors = export.share_nodes(self.task)
        return [shares, *nodes], tensors

    def importance(self) -> dict[str, float]:
        """Each feature's share of the trees' total gain."""
        return self.trees.importance()

    def save(self, folder: Path) -> None:
        self.trees.save(folder)
        write_json(folder / "forest.json", {"task": self.task, "num_classes": self.num_classes})

    def _means(self, x_NF: np.ndarray) -> np.ndarray:
        """What the trees answer together, float64 (N, S): XGBoost finds the leaves, whose values it would add up in float32."""
        xgb = need("xgboost", "model.kind random_forest")
        rows = xgb.DMatrix(np.clip(x_NF, -LARGEST, LARGEST), nthread=1)
        leaf_NT = self.trees.booster.predict(rows, pred_leaf=True).reshape(len(x_NF), -1).astype(np.int64)
        value_NT = self._value_TL[np.arange(len(self._value_TL)), leaf_NT]
        return np.stack([value_NT[:, self._target_T == k].sum(axis=1) + base for k, base in enumerate(self._base_S)], axis=1)


class _Indicators:
    """A matrix whose targets are one column for each class: 1 for a row's own, 0 for the others."""

    def __init__(self, matrix: base.Matrix, num_classes: int) -> None:
        self.names, self.num_rows, self.num_features = matrix.names, matrix.num_rows, matrix.num_features
        self.matrix = matrix
        self._eye_KK = np.eye(num_classes)

    def batches(self) -> Iterator[base.Batch]:
        for batch in self.matrix.batches():
            yield base.Batch(batch.x_NF, self._eye_KK[batch.y_N.astype(np.int64)], batch.weight_N)

    def targets(self) -> tuple[np.ndarray, np.ndarray | None]:
        y_N, weight_N = self.matrix.targets()
        return self._eye_KK[y_N.astype(np.int64)], weight_N


def _leaves(trees: FittedTrees) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Each tree's values by node (T, L), the class that it is of (T,), and what each sum starts from."""
    learner = json.loads(bytes(trees.booster.save_raw("json")))["learner"]
    model = learner["gradient_booster"]["model"]
    sizes = [len(tree["split_conditions"]) for tree in model["trees"]]
    value_TL = np.zeros((len(sizes), max(sizes)))
    for row, (size, tree) in enumerate(zip(sizes, model["trees"], strict=True)):
        value_TL[row, :size] = np.asarray(tree["split_conditions"], np.float32)
    targets = trees.num_classes or 1 if trees.task == "multiclass" else 1
    return value_TL, np.asarray(model["tree_info"], np.int64), base_scores(learner, targets)


def _settings(params: RandomForestParams, task: str, num_features: int, seed: int, threads: int) -> dict[str, Any]:
    """XGBoost's own names: trees grown side by side on the squared error, whose leaves are means of their rows."""
    few = math.sqrt(num_features) if task != "regression" else num_features / 3
    share = min(1.0, few / max(num_features, 1)) if params.max_features == "auto" else params.max_features
    return {
        "objective": "reg:squarederror", "tree_method": "hist", "nthread": threads, "seed": seed, "learning_rate": 1.0, "lambda": 0.0,
        "num_parallel_tree": params.num_trees, "max_depth": params.max_depth, "min_child_weight": params.min_leaf,
        "subsample": params.subsample, "colsample_bynode": max(share, 1 / max(num_features, 1)), "max_bin": params.max_bin,
    }  # fmt: skip
