"""Gradient-boosted trees by XGBoost, written as an ONNX tree ensemble.

Missing values go where the trees learned to send them, natively and in the graph. XGBoost takes no infinity: in training
one counts as 1e38, in prediction as the largest float, which is beyond every threshold, as infinity is in the graph.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tidemill.core.artifact import write_json
from tidemill.core.errors import ConfigError, DataError, nearest
from tidemill.core.load import need
from tidemill.models import base, export

if TYPE_CHECKING:
    import onnx

OBJECTIVES = {"binary": "binary:logistic", "multiclass": "multi:softprob"}
LOSSES = {"squared": "reg:squarederror", "absolute": "reg:absoluteerror", "poisson": "count:poisson"}

# Objectives whose trees add up to the logarithm of the answer.
LOGARITHMIC = ("count:poisson", "reg:gamma", "reg:tweedie")

# XGBoost's names of what it can measure each round, by task; the first of a task is what `watch = "auto"` means.
# The loss keeps probabilities honest also on few validation rows; the area under the curve does not care that the positive
# share drifts from training to validation, which the loss does.
MEASURES = {
    "binary": {"log_loss": "logloss", "roc_auc": "auc", "average_precision": "aucpr"},
    "multiclass": {"log_loss": "mlogloss", "roc_auc": "auc"},
    "regression": {"rmse": "rmse", "mae": "mae"},
}

# The training loss is told every so many rounds: XGBoost keeps what it answers for the rows that it trains on, but to add up
# their loss in each round would take a tenth of the time.
TRAIN_EVERY = 10

# What XGBoost takes for quantised rows, measured with missing values, which make it keep four bytes a value and an index by
# column. Without any it takes a byte or two, but that is known only when all rows have been read.
CELL_BYTES = 6
ROW_BYTES = 32

# XGBoost's last threshold of a column is about twice its largest value, which has to stay a float32.
LARGEST_TRAINED = np.float32(1e38)
LARGEST = np.finfo(np.float32).max

# What max_depth = "auto" tries, where there are no more values to train on than this; then deeper by two as long as that is better.
DEPTHS = (2, 4, 6)
USUAL_DEPTH, DEEPEST = 6, 12
TRIED_CELLS = 20_000_000

# Of more values than this, processes that fit together tell where bins end from what each knows of its own rows.
BINNED_CELLS = 50_000_000

LOGARITHM = "model/logarithm"


@dataclass(frozen=True, kw_only=True)
class XGBoostParams:
    """How the trees grow."""

    max_depth: int | Literal["auto"] = field(default="auto", metadata={"min": 1, "max": 30})
    """Splits between the root and the deepest leaf; auto: 2, 4 or 6, whichever is best on the validation rows, and deeper by two, up to 12,
    as long as that is better still. 6 where there are no such rows, or more than 20,000,000 values to train on."""
    learning_rate: float = field(default=0.05, metadata={"min": 1e-5, "max": 1.0})
    """Share of each tree's answer that is added."""
    num_rounds: int = field(default=1000, metadata={"min": 1, "max": 100_000})
    """Most rounds of boosting; one tree a round, one for each class with more than two."""
    early_stopping: int = field(default=50, metadata={"min": 0, "max": 100_000})
    """Rounds without progress on the validation rows before the fit ends and the best round is kept; 0 runs them all."""
    loss: Literal["auto", "squared", "absolute", "poisson"] = "auto"
    """What trees for regression make small; poisson is for counts and rates, and answers no negative number. auto: squared, and where
    all targets are whole numbers from 0 up also poisson, if that is better on the validation rows, under the conditions of `max_depth`."""
    watch: Literal["auto", "roc_auc", "log_loss", "average_precision", "rmse", "mae"] = "auto"
    """What early stopping goes by; auto is log_loss for classes, rmse for regression. roc_auc bears a share of
    positives that drifts from training to validation."""
    subsample: float = field(default=0.8, metadata={"min": 0.01, "max": 1.0})
    """Share of the rows that each tree sees."""
    colsample: float = field(default=0.8, metadata={"min": 0.01, "max": 1.0})
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
    monotone: Mapping[str, Literal["increasing", "decreasing"]] = field(default_factory=dict)
    """Features that the answer may only rise, or only fall with: `{ age = "increasing" }`, by feature or numeric column.
    For binary the answer is the probability of class 1."""
    external_memory: bool | Literal["auto"] = "auto"
    """Keep the quantised rows on disk and stream them each round, for data beyond memory; auto does so where they
    would not fit beside the cached features in `engine.memory`."""


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
        self.memory_bytes: int | None = None
        self.workers: Any = None
        """With which processes the train stage has this kind fitted; `fit` itself knows only its own rows."""
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
            on_round: Given what `params.watch` names each round, where there are validation rows, and then the task's loss;
                after that, in every tenth round from the first, the same of the training rows.

        Raises:
            ConfigError: If `params.watch` or `params.loss` is not for the task, or `params.monotone` names no feature.
            DataError: If there are no training rows, or a target is negative that `params.loss` takes for a count.
        """
        measured = _measured(params.watch, task, valid)
        settings = {"eval_metric": list(measured.values()), **monotone_constraints(params.monotone, train.names, task)}
        settings |= _settings(params, task, num_classes, seed, threads)
        # What is decided by the rows is decided by all of them, where this process fits together with others.
        whole: base.Matrix = getattr(train, "whole", train)
        _check_loss(params.loss, task, whole)
        if valid is not None and valid.num_rows and whole.num_rows * whole.num_features <= TRIED_CELLS:
            depths: Sequence[int] = DEPTHS if params.max_depth == "auto" else [params.max_depth]
            losses = ["poisson"] if params.loss == "auto" and task == "regression" and _counts(whole) and _counts(valid) else []
        else:
            depths, losses = [settings["max_depth"]], []
        booster, kept, outside = self._best(settings, depths, losses, measured, train, valid, params, threads, on_round)
        fitted = FittedTrees(booster, task=task, num_classes=num_classes, names=list(train.names), best_round=kept)
        fitted.external_memory = outside
        return fitted

    def fit_quantiles(
        self, train: base.Matrix, valid: base.Matrix | None, *, levels: Sequence[float], params: XGBoostParams, seed: int, threads: int
    ) -> FittedQuantiles:
        """Trees for quantiles of the target, one a round for each level, up to the best validation round by pinball loss.

        Args:
            levels: Shares of the target below each quantile, in (0, 1).

        Raises:
            DataError: If there are no training rows.
        """
        settings = _settings(params, "regression", None, seed, threads) | monotone_constraints(params.monotone, train.names, "regression")
        settings |= {"objective": "reg:quantileerror", "quantile_alpha": list(levels), "eval_metric": "quantile"}
        booster, _, _ = self.boost(settings, {"pinball": "quantile"}, train, valid, params, threads, None)
        return FittedQuantiles(booster, num_levels=len(levels), num_features=len(train.names))

    def quantise(self, train: base.Matrix, valid: base.Matrix | None, params: XGBoostParams, threads: int) -> None:
        """Do what a fit on these rows begins with, so that it finds it done."""
        self._matrices(train, valid, params, threads)

    def load_quantiles(self, folder: Path) -> FittedQuantiles:
        """What `FittedQuantiles.save` left.

        Raises:
            DataError: If it cannot be read.
        """
        xgb = need("xgboost", "model.kind xgboost")
        try:
            facts = json.loads((folder / "quantiles.json").read_text(encoding="utf-8"))
            return FittedQuantiles(xgb.Booster(model_file=str(folder / "quantiles.ubj")), **facts)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{folder} must hold XGBoost's trees for quantiles: {error}") from error

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

    def _best(
        self,
        settings: Mapping[str, Any],
        depths: Sequence[int],
        losses: Sequence[str],
        measured: Mapping[str, str],
        train: base.Matrix,
        valid: base.Matrix | None,
        params: XGBoostParams,
        threads: int,
        on_round: base.OnRound | None,
    ) -> tuple[Any, int, bool]:
        """What `boost` gives with the depth whose best validation round is best, then with other losses if one is better still.

        The rounds are told once it is known which; at once where there is nothing to choose.
        """
        if len(depths) == 1 and not losses:
            return self.boost({**settings, "max_depth": depths[0]}, measured, train, valid, params, threads, on_round)
        name = next(iter(measured))
        sign = 1 if name in ("roc_auc", "average_precision") else -1

        def tried(choice: Mapping[str, Any]) -> tuple[float, Mapping[str, Any], tuple[Any, int, bool], list[Mapping[str, float]]]:
            rounds: list[Mapping[str, float]] = []
            made = self.boost({**settings, **choice}, measured, train, valid, params, threads, _noting(rounds))
            return sign * rounds[made[1]][f"valid_{name}"], choice, made, rounds

        best = max((tried({"max_depth": depth}) for depth in depths), key=lambda one: one[0])
        deepest = depths[-1]
        while len(depths) > 1 and best[1]["max_depth"] == deepest < DEEPEST:
            deepest += 2
            best = max(best, tried({"max_depth": deepest}), key=lambda one: one[0])
        best = max([best, *(tried({**best[1], "objective": LOSSES[loss]}) for loss in losses)], key=lambda one: one[0])
        _, _, made, rounds = best
        for number, values in enumerate(rounds if on_round is not None else ()):
            if on_round is not None and on_round(number, values):
                break
        return made

    def boost(
        self,
        settings: Mapping[str, Any],
        measured: Mapping[str, str],
        train: base.Matrix,
        valid: base.Matrix | None,
        params: XGBoostParams,
        threads: int,
        on_round: base.OnRound | None,
    ) -> tuple[Any, int, bool]:
        """The booster up to its best round, that round, and whether its rows lay on disk."""
        if not train.num_rows:
            raise DataError("training needs rows, got none")
        xgb = need("xgboost", "model.kind xgboost")
        with xgb.config_context(verbosity=0):
            data = self._matrices(train, valid, params, threads)
            watched = [(data.valid, "valid")] if data.valid is not None else []
            also = [(data.train, "train")] if watched and on_round is not None else []
            booster = xgb.Booster(settings, [data.train, *(matrix for matrix, _ in watched)])
            sign = 1 if measured.keys() & {"roc_auc", "average_precision"} else -1
            best_round, best = 0, float("-inf")
            for number in range(params.num_rounds):
                booster.update(data.train, number)
                told = [*watched, *(also if number % TRAIN_EVERY == 0 else [])]
                values = _values(booster.eval_set(told, number), measured) if told else {}
                value = sign * next(iter(values.values()), 0.0)
                if value > best:
                    best_round, best = number, value
                stopped = on_round is not None and on_round(number, values)
                if stopped or (watched and params.early_stopping and number - best_round >= params.early_stopping):
                    break
            last = booster.num_boosted_rounds() - 1
            kept = best_round if watched and params.early_stopping else last
            if kept != last or data.outside:  # a slice holds on to no matrix, and so to no file
                booster = booster[: kept + 1]
            booster.set_param({"nthread": threads})
        return booster, kept, data.outside

    def _matrices(self, train: base.Matrix, valid: base.Matrix | None, params: XGBoostParams, threads: int) -> _Quantised:
        outside = params.external_memory is True
        if params.external_memory == "auto" and self.memory_bytes is not None:
            outside = quantised_bytes(train, valid) > self.memory_bytes
        kept = self._quantised
        if kept is None or not kept.is_for(train, valid, params.max_bin, threads, outside):
            self._quantised = None  # lets go of the old one before the new one takes its memory
            self._quantised = kept = _Quantised(train, valid, params.max_bin, threads, outside)
        return kept


def _noting(rounds: list[Mapping[str, float]]) -> base.OnRound:
    """Takes down what each round measured."""

    def note(_: int, values: Mapping[str, float]) -> bool:
        rounds.append(values)
        return False

    return note


def quantised_bytes(train: base.Matrix, valid: base.Matrix | None) -> int:
    """About as much memory as XGBoost takes to hold these rows."""
    rows = train.num_rows + (valid.num_rows if valid is not None else 0)
    return rows * (train.num_features * CELL_BYTES + ROW_BYTES)


def bins_of_all(train: base.Matrix) -> bool:
    """Whether a part of the rows goes into bins whose ends are told from all rows, as of one process; for that each reads them once."""
    whole: base.Matrix | None = getattr(train, "whole", None)
    return whole is not None and whole.num_rows * whole.num_features <= BINNED_CELLS


class FittedTrees:
    """Boosted trees, already cut to the rounds that count."""

    external_memory = False
    """Whether the training rows lay on disk; not saved."""

    def __init__(self, booster: Any, *, task: str, num_classes: int | None, names: Sequence[str], best_round: int | None = None) -> None:
        self.booster = booster
        self.task = task
        self.num_classes = num_classes
        self.names = list(names)
        self.best_round = best_round
        learner = _learner(booster.save_config())
        self.answers_logarithms = learner["objective"]["name"] in LOGARITHMIC
        """Whether the trees' sum is the logarithm of the answer."""
        self._base = base_scores(learner, 1)[0] if self.answers_logarithms else 0.0

    def predict(self, x_NF: np.ndarray) -> np.ndarray:
        answer = self._run(x_NF, "value")
        return np.stack([1.0 - answer, answer], axis=1) if self.task == "binary" else answer

    def score(self, x_NF: np.ndarray) -> np.ndarray:
        return self._run(x_NF, "value" if self.task == "regression" else "margin").reshape(len(x_NF), -1)

    def to_onnx(self) -> onnx.ModelProto:
        classes = None if self.task == "regression" else self.num_classes or 2
        return export.assemble(self.score_graph(), export.link(self.task), num_features=len(self.names), num_classes=classes)

    def score_graph(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """One TreeEnsembleRegressor, from the model's own JSON; with the exponential behind it where the trees answer logarithms."""
        targets = self.num_classes if self.task == "multiclass" and self.num_classes else 1
        if not self.answers_logarithms:
            return [tree_node(self.booster, targets)], []
        exp = need("onnx.helper", "exporting a model").make_node("Exp", [LOGARITHM], [export.SCORE])
        return [tree_node(self.booster, targets, LOGARITHM), exp], []

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
        x_NF = _within(x_NF, LARGEST)
        if self.answers_logarithms:
            # XGBoost adds its trees to the base in float32: over a thousand of them that is some 1e-5 of a logarithm of 8, and as much of
            # the answer. What the trees add up to by themselves is smaller, and so is its error.
            sum_N = self.booster.inplace_predict(x_NF, predict_type="margin", base_margin=np.zeros(len(x_NF), np.float32))
            return np.asarray(np.exp(self._base + np.asarray(sum_N, np.float64)))
        return np.asarray(self.booster.inplace_predict(x_NF, predict_type=kind), np.float64)


class FittedQuantiles:
    """Boosted trees for quantiles of the target; which quantile lies lower is not enforced."""

    def __init__(self, booster: Any, *, num_levels: int, num_features: int) -> None:
        self.booster = booster
        self.num_levels = num_levels
        self.num_features = num_features

    def predict(self, x_NF: np.ndarray) -> np.ndarray:
        """The quantiles, float64 [N, Q], in the order of their levels."""
        if not len(x_NF):
            return np.empty((0, self.num_levels))
        return np.asarray(self.booster.inplace_predict(_within(x_NF, LARGEST)), np.float64).reshape(len(x_NF), -1)

    def graph(self, output: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Nodes and initializers from `features` to the tensor `output` [N, Q]."""
        return [tree_node(self.booster, self.num_levels, output)], []

    def save(self, folder: Path) -> None:
        self.booster.save_model(str(folder / "quantiles.ubj"))
        write_json(folder / "quantiles.json", {"num_levels": self.num_levels, "num_features": self.num_features})


def _learner(saved: str | bytes) -> dict[str, Any]:
    """XGBoost's own description of a booster."""
    learner: dict[str, Any] = json.loads(saved)["learner"]
    return learner


def tree_node(booster: Any, targets: int, output: str = export.SCORE) -> onnx.NodeProto:
    """One TreeEnsembleRegressor from `features` to scores [N, targets], from the model's own JSON.

    Raises:
        ConfigError: If it is not of plain trees, or splits on categories.
    """
    learner = _learner(bytes(booster.save_raw("json")))
    model = learner["gradient_booster"]["model"]
    if learner["gradient_booster"]["name"] != "gbtree":
        raise ConfigError(f"only XGBoost's gbtree can be written as a graph, got {learner['gradient_booster']['name']}")
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
    node: onnx.NodeProto = need("onnx.helper", "exporting a model").make_node(
        "TreeEnsembleRegressor",
        [export.FEATURES],
        [output],
        domain="ai.onnx.ml",
        n_targets=targets,
        base_values=base_scores(learner, targets),
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
    return node


class _Quantised:
    """Training and validation rows as XGBoost's own matrices, and for which data and settings they are."""

    def __init__(self, train: base.Matrix, valid: base.Matrix | None, max_bin: int, threads: int, outside: bool) -> None:
        xgb = need("xgboost", "model.kind xgboost")
        self.outside = outside
        self._for = (weakref.ref(train), None if valid is None else weakref.ref(valid))
        self._settings = (max_bin, threads, outside)
        self._folder = _scratch() if outside else None
        kind = xgb.ExtMemQuantileDMatrix if outside else xgb.QuantileDMatrix
        options = {"nthread": threads, "max_bin": max_bin}
        whole = kind(self._rows(train.whole, "whole"), **options) if bins_of_all(train) else None  # type: ignore[attr-defined]
        self.train = kind(self._rows(train, "train"), ref=whole, **options)
        self.valid = None if valid is None or not valid.num_rows else kind(self._rows(valid, "valid"), ref=self.train, **options)
        if self._folder:  # after the matrix that goes last, in this order, each of which takes its own files away
            gone = weakref.finalize(self.train if self.valid is None else self.valid, shutil.rmtree, self._folder, ignore_errors=True)
            gone.atexit = False  # the matrices may outlive that, and complain; what stays then, the next fit takes away

    def is_for(self, train: base.Matrix, valid: base.Matrix | None, max_bin: int, threads: int, outside: bool) -> bool:
        same = self._for[0]() is train and (self._for[1]() if self._for[1] is not None else None) is valid
        return same and self._settings == (max_bin, threads, outside)

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


def _scratch() -> str:
    """A new folder for rows on disk, named by this process; those of processes that were killed go."""
    parent = Path(tempfile.gettempdir())
    for folder in parent.glob("tidemill-xgboost-*"):
        owner = folder.name.split("-")[2]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"tidemill-xgboost-{os.getpid()}-")


def _settings(params: XGBoostParams, task: str, num_classes: int | None, seed: int, threads: int) -> dict[str, Any]:
    """XGBoost's own names for what a fit needs."""
    settings: dict[str, Any] = {
        "objective": OBJECTIVES.get(task) or LOSSES.get(params.loss, LOSSES["squared"]), "tree_method": "hist", "nthread": threads, "seed": seed,
        "max_depth": USUAL_DEPTH if params.max_depth == "auto" else params.max_depth, "learning_rate": params.learning_rate, "subsample": params.subsample,
        "colsample_bytree": params.colsample, "min_child_weight": params.min_child_weight, "lambda": params.reg_lambda,
        "alpha": params.reg_alpha, "gamma": params.gamma, "max_bin": params.max_bin,
    }  # fmt: skip
    return {**settings, "num_class": num_classes} if task == "multiclass" else settings


def _check_loss(loss: str, task: str, train: base.Matrix) -> None:
    """Refuse a loss that is not for the task or the targets.

    Raises:
        ConfigError: If a loss is named and the task is not regression.
        DataError: If the loss is for counts and a target is negative.
    """
    if loss != "auto" and task != "regression":
        raise ConfigError(f"model.loss: must be auto for a {task} task, got {loss!r}", hint="a class is judged by the log loss")
    if loss == "poisson" and train.num_rows and (least := float(train.targets()[0].min())) < 0:
        raise DataError(f"model.loss poisson needs targets from 0 up, got {least:g}", hint='loss = "squared" takes any number')


def _counts(matrix: base.Matrix) -> bool:
    """Whether all targets are whole numbers from 0 up, some of them more."""
    y_N, _ = matrix.targets()
    return bool(len(y_N) and y_N.min() >= 0 and y_N.max() > 0 and np.array_equal(y_N, np.round(y_N)))


def monotone_constraints(directions: Mapping[str, str], names: Sequence[str], task: str) -> dict[str, Any]:
    """XGBoost's constraint for each feature, where there are any."""
    if directions and task == "multiclass":
        raise ConfigError(
            "model.monotone: must constrain one answer, a multiclass task has one a class", hint="use it for binary or regression"
        )
    for name in directions:
        if name not in names:
            close = nearest(name, names)
            hint = f"did you mean {close!r}?" if close else f"features: {', '.join(list(names)[:12])}"
            raise ConfigError(f"model.monotone.{name}: must be a feature", hint=hint)
    signs = {"increasing": 1, "decreasing": -1}
    found = tuple(signs.get(directions.get(name, ""), 0) for name in names)
    return {"monotone_constraints": found} if any(found) else {}


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
    return {f"{name.partition('-')[0]}_{names[name.partition('-')[2]]}": float(value) for name, _, value in pairs}


def base_scores(learner: Mapping[str, Any], targets: int) -> list[float]:
    """What a score starts from; XGBoost writes one number, or a list since version 3.1, before the link."""
    base_N = np.atleast_1d(np.asarray(json.loads(learner["learner_model_param"]["base_score"]), np.float64))
    base_N = np.broadcast_to(base_N, targets)
    objective = learner["objective"]["name"]
    if objective == "binary:logistic":
        base_N = np.log(base_N / (1 - base_N))
    elif objective in LOGARITHMIC:
        base_N = np.log(base_N)
    return [float(value) for value in base_N]


def _within(x_NF: np.ndarray, largest: np.float32) -> np.ndarray:
    """The same array where no value is of greater magnitude than `largest`; a clipped copy otherwise. NaN stays."""
    if not x_NF.size or (np.fmax.reduce(x_NF, axis=None) <= largest and np.fmin.reduce(x_NF, axis=None) >= -largest):
        return x_NF
    return np.asarray(np.clip(x_NF, -largest, largest))
