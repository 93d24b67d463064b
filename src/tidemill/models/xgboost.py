"""Gradient-boosted trees by XGBoost, written as an ONNX tree ensemble.

Missing values go where the trees learned to send them, natively and in the graph. XGBoost takes no infinity: in training
one counts as 1e38, in prediction as the largest float, which is beyond every threshold, as infinity is in the graph.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tidemill.core.artifact import write_json
from tidemill.core.errors import ConfigError, DataError
from tidemill.core.load import need
from tidemill.core.metrics import metric_of
from tidemill.models import base, export

if TYPE_CHECKING:
    import onnx

OBJECTIVES = {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"}

# XGBoost's names of what it can measure each round, by task; the first of a task is what `watch = "auto"` means.
# The loss keeps probabilities honest also on few validation rows; the area under the curve does not care that the positive
# share drifts from training to validation, which the loss does.
MEASURES = {
    "binary": {"log_loss": "logloss", "roc_auc": "auc", "average_precision": "aucpr"},
    "multiclass": {"log_loss": "mlogloss", "roc_auc": "auc"},
    "regression": {"rmse": "rmse", "mae": "mae"},
}

# XGBoost's last threshold of a column is about twice its largest value, which has to stay a float32.
LARGEST_TRAINED = np.float32(1e38)
LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True, kw_only=True)
class XGBoostParams:
    """How the trees grow."""

    max_depth: int = field(default=6, metadata={"min": 1, "max": 30})
    """Splits between the root and the deepest leaf."""
    learning_rate: float = field(default=0.1, metadata={"min": 1e-5, "max": 1.0})
    """Share of each tree's answer that is added."""
    num_rounds: int = field(default=500, metadata={"min": 1, "max": 100_000})
    """Most rounds of boosting; one tree a round, one for each class with more than two."""
    early_stopping: int = field(default=30, metadata={"min": 0, "max": 100_000})
    """Rounds without progress on the validation rows before the fit ends and the best round is kept; 0 runs them all."""
    watch: Literal["auto", "roc_auc", "log_loss", "average_precision", "rmse", "mae"] = "auto"
    """What early stopping goes by; auto is log_loss for classes, rmse for regression. roc_auc bears a share of
    positives that drifts from training to validation."""
    subsample: float = field(default=1.0, metadata={"min": 0.01, "max": 1.0})
    """Share of the rows that each tree sees."""
    colsample: float = field(default=1.0, metadata={"min": 0.01, "max": 1.0})
    """Share of the features that each tree sees."""
    min_child_weight: float = field(default=1.0, metadata={"min": 0.0, "max": 1e9})
    """Least sum of second derivatives in a leaf; higher is smoother."""
    reg_lambda: float = field(default=1.0, metadata={"min": 0.0, "max": 1e9})
    """Squared penalty on leaf values."""
    reg_alpha: float = field(default=0.0, metadata={"min": 0.0, "max": 1e9})
    """Absolute penalty on leaf values."""
    gamma: float = field(default=0.0, metadata={"min": 0.0, "max": 1e9})
    """Least gain of a split."""
    max_bin: int = field(default=256, metadata={"min": 2, "max": 65_536})
    """Values that a feature may take after quantisation."""
    external_memory: bool = False
    """Keep the quantised rows on disk and stream them each round, for data beyond memory."""


class XGBoost:
    """Fits boosted trees. Keeps the quantised matrices of the last fit for the next one on the same data."""

    Params: ClassVar[type] = XGBoostParams
    space: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "max_depth": {"int": [3, 9]},
        "learning_rate": {"log_float": [0.03, 0.3]},
        "min_child_weight": {"log_float": [1.0, 50.0]},
        "subsample": {"float": [0.6, 1.0]},
        "colsample": {"float": [0.5, 1.0]},
        "reg_lambda": {"log_float": [0.1, 10.0]},
    }

    def __init__(self) -> None:
        self._quantised: _Quantised | None = None

    def fit(
        self,
        train: base.Matrix,
        valid: base.Matrix | None,
        *,
        task: str,
        num_classes: int | None,
        params: XGBoostParams,
        seed: int,
        threads: int,
        on_round: base.OnRound | None = None,
    ) -> FittedTrees:
        """Trees up to the best validation round.

        The same for the same matrix, parameters, seed and thread count.

        Args:
            on_round: Given what `params.watch` names each round, where there are validation rows, and then the task's loss.

        Raises:
            ConfigError: If `params.watch` does not judge the task.
            DataError: If there are no training rows.
        """
        xgb = need("xgboost", "model.kind xgboost")
        if not train.num_rows:
            raise DataError("training needs rows, got none")
        measured = _measured(params.watch, task, valid)
        settings = _settings(params, task, num_classes, seed, threads) | {"eval_metric": list(measured.values())}
        with xgb.config_context(verbosity=0):
            data = self._matrices(train, valid, params, threads)
            watched = [(data.valid, "valid")] if data.valid is not None else []
            booster = xgb.Booster(settings, [data.train, *(matrix for matrix, _ in watched)])
            sign = 1 if metric_of(next(iter(measured))).greater_is_better else -1
            best_round, best = 0, float("-inf")
            for number in range(params.num_rounds):
                booster.update(data.train, number)
                values = _values(booster.eval_set(watched, number), measured) if watched else {}
                value = sign * next(iter(values.values()), 0.0)
                if value > best:
                    best_round, best = number, value
                stopped = on_round is not None and on_round(number, values)
                if stopped or (watched and params.early_stopping and number - best_round >= params.early_stopping):
                    break
            last = booster.num_boosted_rounds() - 1
            kept = best_round if watched and params.early_stopping else last
            booster = booster if kept == last else booster[: kept + 1]
            booster.set_param({"nthread": threads})
        return FittedTrees(booster, task=task, num_classes=num_classes, names=list(train.names), best_round=kept)

    def load(self, folder: Path) -> FittedTrees:
        """The trees that `FittedTrees.save` left.

        Raises:
            DataError: If they cannot be read.
        """
        xgb = need("xgboost", "model.kind xgboost")
        try:
            facts = json.loads((folder / "trees.json").read_text(encoding="utf-8"))
            booster = xgb.Booster(model_file=str(folder / "model.ubj"))
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} must hold XGBoost's trees: {error}") from error
        return FittedTrees(booster, **facts)

    def pace(self, params: XGBoostParams) -> float:
        """The learning rate: ten rounds at 0.03 have come as far as one at 0.3."""
        return params.learning_rate

    def _matrices(self, train: base.Matrix, valid: base.Matrix | None, params: XGBoostParams, threads: int) -> _Quantised:
        kept = self._quantised
        if kept is None or not kept.is_for(train, valid, params, threads):
            self._quantised = None  # lets go of the old one before the new one takes its memory
            self._quantised = kept = _Quantised(train, valid, params, threads)
        return kept


class FittedTrees:
    """Boosted trees, already cut to the rounds that count."""

    def __init__(self, booster: Any, *, task: str, num_classes: int | None, names: Sequence[str], best_round: int | None = None) -> None:
        self.booster = booster
        self.task = task
        self.num_classes = num_classes
        self.names = list(names)
        self.best_round = best_round

    def predict(self, x_NF: np.ndarray) -> np.ndarray:
        answer = self._run(x_NF, "value")
        return np.stack([1.0 - answer, answer], axis=1) if self.task == "binary" else answer

    def score(self, x_NF: np.ndarray) -> np.ndarray:
        return self._run(x_NF, "margin").reshape(len(x_NF), -1)

    def to_onnx(self) -> onnx.ModelProto:
        classes = None if self.task == "regression" else self.num_classes or 2
        return export.assemble(self.score_graph(), export.link(self.task), num_features=len(self.names), num_classes=classes)

    def score_graph(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """One TreeEnsembleRegressor, from the model's own JSON."""
        learner = json.loads(bytes(self.booster.save_raw("json")))["learner"]
        model = learner["gradient_booster"]["model"]
        if learner["gradient_booster"]["name"] != "gbtree":
            raise ConfigError(f"only XGBoost's gbtree can be written as a graph, got {learner['gradient_booster']['name']}")
        targets = self.num_classes if self.task == "multiclass" and self.num_classes else 1
        trees = model["trees"]
        sizes = [len(tree["left_children"]) for tree in trees]
        if any(any(tree["split_type"]) for tree in trees):
            raise ConfigError("XGBoost's categorical splits cannot be written as a graph", hint="encode the category as numbers")

        def joined(key: str, kind: type) -> np.ndarray:
            return np.concatenate([np.asarray(tree[key], kind) for tree in trees])

        tree_ids = np.repeat(np.arange(len(trees)), sizes)
        node_ids = np.concatenate([np.arange(size) for size in sizes])
        left, value = joined("left_children", np.int64), joined("split_conditions", np.float64).astype(np.float32)
        leaf = left == -1
        target_ids = np.repeat(np.asarray(model["tree_info"], np.int64), sizes)[leaf]
        node = need("onnx.helper", "exporting a model").make_node(
            "TreeEnsembleRegressor",
            [export.FEATURES],
            [export.SCORE],
            domain="ai.onnx.ml",
            n_targets=targets,
            base_values=_base_scores(learner, self.task, targets),
            nodes_treeids=tree_ids.tolist(),
            nodes_nodeids=node_ids.tolist(),
            nodes_featureids=np.where(leaf, 0, joined("split_indices", np.int64)).tolist(),
            nodes_modes=np.where(leaf, "LEAF", "BRANCH_LT").tolist(),
            nodes_values=np.where(leaf, np.float32(0), value).tolist(),
            nodes_truenodeids=np.where(leaf, 0, left).tolist(),
            nodes_falsenodeids=np.where(leaf, 0, joined("right_children", np.int64)).tolist(),
            nodes_missing_value_tracks_true=np.where(leaf, 0, joined("default_left", np.int64)).tolist(),
            target_treeids=tree_ids[leaf].tolist(),
            target_nodeids=node_ids[leaf].tolist(),
            target_ids=target_ids.tolist(),
            target_weights=value[leaf].tolist(),
        )
        return [node], []

    def importance(self) -> dict[str, float]:
        """Each feature's share of the trees' total gain."""
        gains = self.booster.get_score(importance_type="total_gain")
        gain_F = np.array([gains.get(f"f{i}", 0.0) for i in range(len(self.names))])
        total = gain_F.sum()
        shares = gain_F / total if total > 0 else gain_F
        return dict(zip(self.names, shares.tolist(), strict=True))

    def save(self, folder: Path) -> None:
        self.booster.save_model(str(folder / "model.ubj"))
        facts = {"task": self.task, "num_classes": self.num_classes, "names": self.names, "best_round": self.best_round}
        write_json(folder / "trees.json", facts)

    def _run(self, x_NF: np.ndarray, kind: str) -> np.ndarray:
        if not len(x_NF):
            return np.empty((0, self.num_classes or 0) if self.task == "multiclass" else 0)
        return np.asarray(self.booster.inplace_predict(_within(x_NF, LARGEST), predict_type=kind), np.float64)


class _Quantised:
    """Training and validation rows as XGBoost's own matrices, and for which data and settings they are."""

    def __init__(self, train: base.Matrix, valid: base.Matrix | None, params: XGBoostParams, threads: int) -> None:
        xgb = need("xgboost", "model.kind xgboost")
        self._for = (weakref.ref(train), None if valid is None else weakref.ref(valid))
        self._settings = (params.max_bin, params.external_memory, threads)
        self._folder = tempfile.mkdtemp(prefix="tidemill-xgboost-") if params.external_memory else None
        kind = xgb.ExtMemQuantileDMatrix if self._folder else xgb.QuantileDMatrix
        options = {"nthread": threads, "max_bin": params.max_bin}
        self.train = kind(self._rows(train, "train"), **options)
        self.valid = None if valid is None or not valid.num_rows else kind(self._rows(valid, "valid"), ref=self.train, **options)
        if self._folder:  # after the last matrix, which takes its own files away
            weakref.finalize(self.train if self.valid is None else self.valid, shutil.rmtree, self._folder, ignore_errors=True)

    def is_for(self, train: base.Matrix, valid: base.Matrix | None, params: XGBoostParams, threads: int) -> bool:
        same = self._for[0]() is train and (self._for[1]() if self._for[1] is not None else None) is valid
        return same and self._settings == (params.max_bin, params.external_memory, threads)

    def _rows(self, matrix: base.Matrix, name: str) -> Any:
        """A matrix as XGBoost asks for it: batch by batch, several times, never whole."""
        data_iterator: Any = need("xgboost", "model.kind xgboost").DataIter

        class Rows(data_iterator):  # type: ignore[misc]
            """Hands batches to XGBoost; an error of ours passes through it."""

            batches: Iterator[base.Batch]

            def next(self, input_data: Any) -> bool:
                batch = next(self.batches, None)
                if batch is None:
                    return False
                input_data(data=_within(batch.x_NF, LARGEST_TRAINED), label=batch.y_N, weight=batch.weight_N)
                return True

            def reset(self) -> None:
                self.batches = iter(matrix.batches())

        return Rows(cache_prefix=str(Path(self._folder) / name)) if self._folder else Rows()


def _settings(params: XGBoostParams, task: str, num_classes: int | None, seed: int, threads: int) -> dict[str, Any]:
    """XGBoost's own names for what a fit needs."""
    settings: dict[str, Any] = {
        "objective": OBJECTIVES[task], "tree_method": "hist", "nthread": threads, "seed": seed,
        "max_depth": params.max_depth, "learning_rate": params.learning_rate, "subsample": params.subsample,
        "colsample_bytree": params.colsample, "min_child_weight": params.min_child_weight, "lambda": params.reg_lambda,
        "alpha": params.reg_alpha, "gamma": params.gamma, "max_bin": params.max_bin,
    }  # fmt: skip
    return {**settings, "num_class": num_classes} if task == "multiclass" else settings


def _measured(watch: str, task: str, valid: base.Matrix | None) -> dict[str, str]:
    """What to measure each round, our name to XGBoost's: what early stopping goes by first, then the task's loss."""
    known = MEASURES[task]
    if watch != "auto" and watch not in known:
        raise ConfigError(f"model.watch: must judge a {task} task, got {watch!r}", hint=f"one of {', '.join(known)}")
    first = next(iter(known)) if watch == "auto" else watch
    if first in ("roc_auc", "average_precision") and valid is not None and len(np.unique(valid.targets()[0])) < 2:
        first = "log_loss"  # curves are undefined over a single class
    loss = "rmse" if task == "regression" else "log_loss"
    return {name: known[name] for name in dict.fromkeys([first, loss])}


def _values(text: str, measured: Mapping[str, str]) -> dict[str, float]:
    """XGBoost's line of a round, "[3] valid-auc:0.7 valid-logloss:0.41", as {"valid_roc_auc": 0.7, "valid_log_loss": 0.41}."""
    names = {theirs: ours for ours, theirs in measured.items()}
    pairs = [part.rpartition(":") for part in text.split()[1:]]
    return {f"valid_{names[name.partition('-')[2]]}": float(value) for name, _, value in pairs}


def _base_scores(learner: Mapping[str, Any], task: str, targets: int) -> list[float]:
    """What a score starts from; XGBoost writes one number, or a list since version 3.1, before the link."""
    base_N = np.atleast_1d(np.asarray(json.loads(learner["learner_model_param"]["base_score"]), np.float64))
    base_N = np.broadcast_to(base_N, targets)
    if task == "binary":
        base_N = np.log(base_N / (1 - base_N))
    return [float(value) for value in base_N]


def _within(x_NF: np.ndarray, largest: np.float32) -> np.ndarray:
    """The same array where no value is of greater magnitude than `largest`; a clipped copy otherwise. NaN stays."""
    if not x_NF.size or (np.fmax.reduce(x_NF, axis=None) <= largest and np.fmin.reduce(x_NF, axis=None) >= -largest):
        return x_NF
    return np.asarray(np.clip(x_NF, -largest, largest))
