"""Several models as one: their weighted mean, a small model over them, or copies of one on other samples of the rows.

Members may be of any kind that leaves a graph; all of them stand in the one graph of the ensemble. Probabilities are
averaged as they are (numbers too); stacking adds up their logarithms, weighted, so that it can also sharpen what is too
unsure. Method of stacking: Wolpert (1992), with weights of at least 0 as Breiman (1996) found best; of bagging: Breiman (1996).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tidemill.core.artifact import write_json
from tidemill.core.errors import ConfigError, DataError, TidemillError, Unsupported
from tidemill.core.load import need
from tidemill.core.metrics import evaluate
from tidemill.models import base, export, native, pooling
from tidemill.models.config import ModelConfig
from tidemill.models.rows import Drawn, every, folds

if TYPE_CHECKING:
    import onnx

# Rows, evenly spread, that weights are fitted on: a handful of numbers gains nothing from more.
WEIGHED_ROWS = 500_000

# Kinds that always leave a graph, and rows of each class, or in all, on which a member of another kind shows that it does.
_WRITTEN = ("linear", "random_forest", "xgboost", "ensemble")
_SHOWN_ROWS = 100

_DEFAULTS: dict[str, tuple[Mapping[str, Any], ...]] = {
    "average": ({"kind": "xgboost"}, {"kind": "linear"}),
    "stacking": ({"kind": "xgboost"}, {"kind": "linear"}),
    "bagging": ({"kind": "xgboost"},),
}


@dataclass(frozen=True, kw_only=True)
class EnsembleParams:
    """Which models, and how they become one."""

    how: Literal["average", "stacking", "bagging"] = "average"
    """average is the weighted mean of the members; stacking a linear model over what they say of rows that they were not
    fitted on; bagging the mean of copies of one member, each fitted on its own sample of the rows."""
    members: Sequence[Any] = ()
    """The models, each as a section [model] with its parameters: `[{ kind = "xgboost", max_depth = 4 }, { kind = "linear" }]`,
    which are also the ones when absent; for bagging one, xgboost when absent."""
    weights: Sequence[float] | None = None
    """Share of each member in the average, in their order, >= 0; fitted on the validation rows when absent."""
    folds: int = field(default=5, metadata={"min": 2, "max": 50})
    """For stacking: parts of the training rows, each answered by members that were fitted on the others."""
    non_negative: bool = True
    """For stacking: whether weights must be at least 0."""
    copies: int = field(default=10, metadata={"min": 2, "max": 1000})
    """For bagging: how many copies are fitted."""
    rows: float = field(default=1.0, metadata={"min": 0.01, "max": 1.0})
    """For bagging: rows drawn for each copy, as a share of all."""
    replace: bool = True
    """For bagging: whether a row may be drawn several times."""

    def check(self) -> None:
        """Raise where a member or a weight is wrong."""
        configs = self.configs()
        if self.how == "bagging" and len(configs) != 1:
            raise ConfigError(f"model.members: must be one model to bag, got {len(configs)}", hint="average and stacking take several")
        if self.how == "bagging" and self.rows == 1.0 and not self.replace:
            raise ConfigError("model.rows: must be below 1 where rows are not drawn several times", hint="replace = true")
        if self.weights is None:
            return
        if self.how != "average":
            raise ConfigError(f"model.weights: must be left out for {self.how}, which has its own")
        if len(self.weights) != len(configs) or min(self.weights) < 0 or not 0 < sum(self.weights) < float("inf"):
            raise ConfigError(f"model.weights: must be {len(configs)} numbers >= 0, not all 0, got {list(self.weights)}")

    def configs(self) -> list[ModelConfig]:
        """The members, checked.

        Raises:
            ConfigError, Unsupported: If one is none; names its place.
        """
        made = []
        for i, member in enumerate(self.members or _DEFAULTS[self.how]):
            path = f"model.members[{i}]"
            if not isinstance(member, Mapping):
                raise ConfigError(f'{path}: must be a table such as {{ kind = "xgboost" }}, got {member!r}')
            for key in ("calibrate", "class_weight", "interval"):
                if key in member:
                    raise Unsupported(f"{path}.{key}: is not of a member", hint=f"set model.{key}, of the ensemble")
            made.append(ModelConfig.from_tree(member, path, "project"))
        return made


class Ensemble:
    """Fits the members one after another, then their weights. A round is a member."""

    Params: ClassVar[type] = EnsembleParams
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
        params: EnsembleParams,
        seed: int,
        threads: int,
        on_round: base.OnRound | None = None,
    ) -> FittedEnsemble:
        """The members on all training rows, or on a sample for each copy, and their weights.

        Args:
            on_round: Told after each member how good the plain mean of the members so far is on the validation rows.

        Raises:
            DataError: If there are no training rows.
            Unsupported: If a member leaves no graph; before anything is fitted on all rows.
        """
        if not train.num_rows:
            raise DataError("training needs rows, got none")
        params.check()
        common: dict[str, Any] = {"task": task, "num_classes": num_classes, "threads": threads}
        configs = params.configs()
        for i, config in enumerate(configs):
            _show(config, i, train, common)
        configs = configs * params.copies if params.how == "bagging" else configs
        members: list[base.Fitted] = []
        stopped = False
        for i, config in enumerate(configs):
            rows = _sample(train, params, seed + i) if params.how == "bagging" else train
            members.append(self._fit(config, rows, valid, seed + i, common))
            if on_round is not None and on_round(i, _loss(members, valid, task)):
                stopped = True
                break
        kinds = [config.kind for config in configs[: len(members)]]
        fitted = FittedEnsemble(members, kinds, task=task, num_classes=num_classes, names=list(train.names))
        if stopped or params.how == "bagging":
            return fitted
        if params.how == "stacking":
            level_NMK, y_N, weight_N = self._held_out(configs, train, valid, params, seed, common)
            level_NMK = _logs(level_NMK) if task != "regression" else level_NMK
            weights, offsets = pooling.stack(level_NMK, y_N, weight_N, classes=task != "regression", non_negative=params.non_negative)
            return fitted.weighed(weights, offsets)
        if params.weights is not None:
            return fitted.weighed(np.asarray(params.weights) / sum(params.weights))
        if valid is None or not valid.num_rows:
            return fitted
        rows = every(valid, WEIGHED_ROWS)
        return fitted.weighed(pooling.shares(_answers(members, rows), *rows.targets()))

    def load(self, folder: Path) -> FittedEnsemble:
        """What `FittedEnsemble.save` left.

        Raises:
            DataError: If it cannot be read.
        """
        try:
            facts = json.loads((folder / "ensemble.json").read_text(encoding="utf-8"))
            weights, offsets = np.array(facts.pop("weights")), facts.pop("offsets")
            members = [native.load(_folder(folder, i)) for i in range(len(facts["kinds"]))]
            return FittedEnsemble(members, **facts).weighed(weights, None if offsets is None else np.array(offsets))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} must hold an ensemble: {error}") from error

    def pace(self, params: EnsembleParams) -> float:
        return 1.0

    def _fit(self, config: ModelConfig, train: base.Matrix, valid: base.Matrix | None, seed: int, common: Mapping[str, Any]) -> base.Fitted:
        model: Any = config.model()
        if hasattr(model, "memory_bytes"):
            model.memory_bytes = self.memory_bytes
        fitted: base.Fitted = model.fit(train, valid, params=config.parameters(), seed=seed, **common)
        return fitted

    def _held_out(
        self,
        configs: Sequence[ModelConfig],
        train: base.Matrix,
        valid: base.Matrix | None,
        params: EnsembleParams,
        seed: int,
        common: Mapping[str, Any],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """What members answer for training rows that they were not fitted on, with targets and weights."""
        fold_N = folds(train.num_rows, params.folds, seed=seed)
        asked_N = np.arange(train.num_rows) % -(-train.num_rows // WEIGHED_ROWS) == 0
        parts = []
        for fold in range(params.folds):
            known, held = Drawn(train, fold_N != fold), Drawn(train, (fold_N == fold) & asked_N)
            members = [self._fit(config, known, valid, seed + i, common) for i, config in enumerate(configs)]
            parts.append((_answers(members, held), *held.targets()))
        weights = [weight_N for _, _, weight_N in parts if weight_N is not None]
        return (
            np.concatenate([answer_NMK for answer_NMK, _, _ in parts]),
            np.concatenate([y_N for _, y_N, _ in parts]),
            np.concatenate(weights) if weights else None,
        )


class FittedEnsemble:
    """Members and their weights: the mean of what they answer, or with offsets the score that stacking makes of it."""

    best_round: int | None = None

    def __init__(
        self, members: Sequence[base.Fitted], kinds: Sequence[str], *, task: str, num_classes: int | None, names: Sequence[str]
    ) -> None:
        self.members = list(members)
        self.kinds = list(kinds)
        self.task = task
        self.num_classes = num_classes
        self.names = list(names)
        self.weight_M = np.full(len(self.members), 1 / len(self.members), np.float32).astype(np.float64)
        self.offset_K: np.ndarray | None = None

    def weighed(self, weight_M: np.ndarray, offset_K: np.ndarray | None = None) -> FittedEnsemble:
        """The same members with other weights, and for stacking offsets; both as float32 holds them."""
        made = FittedEnsemble(self.members, self.kinds, task=self.task, num_classes=self.num_classes, names=self.names)
        made.weight_M = np.asarray(weight_M, np.float32).astype(np.float64)
        made.offset_K = None if offset_K is None else np.asarray(offset_K, np.float32).astype(np.float64)
        return made

    def predict(self, x_NF: np.ndarray) -> np.ndarray:
        return export.link(self.task).apply(self.score(x_NF))

    def score(self, x_NF: np.ndarray) -> np.ndarray:
        answer_NMK = _of_members(self.members, x_NF)
        if self.task == "regression":
            score_N1 = np.einsum("nmk,m->nk", answer_NMK, self.weight_M)
            return np.asarray(score_N1 if self.offset_K is None else score_N1 + self.offset_K)
        if self.offset_K is None:
            score_NK = _logs(np.einsum("nmk,m->nk", answer_NMK, self.weight_M))
        else:
            score_NK = np.einsum("nmk,m->nk", _logs(answer_NMK), self.weight_M) + self.offset_K
        return score_NK[:, 1:] - score_NK[:, :1] if self.task == "binary" else score_NK

    def to_onnx(self) -> onnx.ModelProto:
        classes = None if self.task == "regression" else self.num_classes or 2
        return export.assemble(self.score_graph(), export.link(self.task), num_features=len(self.names), num_classes=classes)

    def score_graph(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """The members' graphs over the same features, each under a prefix of its own, and what makes one score of them."""
        node, compose = need("onnx.helper", "exporting a model").make_node, need("onnx.compose", "exporting a model")
        nodes: list[onnx.NodeProto] = []
        tensors = [export.tensor("ensemble/axis", [1], np.int64), export.tensor("ensemble/least", np.float32(pooling.LEAST))]
        terms = []
        numbers = self.task == "regression"
        for i, (member, weight) in enumerate(zip(self.members, self.weight_M, strict=True)):
            at = f"member-{i}/"
            graph = compose.add_prefix(member.to_onnx(), at, rename_inputs=False).graph
            nodes += list(graph.node)
            tensors += [*graph.initializer, export.tensor(f"{at}weight", np.float32(weight))]
            answer = f"{at}{export.PREDICTION if numbers else export.PROBABILITY}"
            if numbers:
                nodes.append(node("Unsqueeze", [answer, "ensemble/axis"], [f"{at}level"]))
            elif self.offset_K is not None:
                nodes += [node("Max", [answer, "ensemble/least"], [f"{at}above"]), node("Log", [f"{at}above"], [f"{at}level"])]
            nodes.append(node("Mul", [answer if not numbers and self.offset_K is None else f"{at}level", f"{at}weight"], [f"{at}term"]))
            terms.append(f"{at}term")
        nodes.append(node("Sum", terms, ["ensemble/sum"]))
        last = "ensemble/sum"
        if self.offset_K is not None:
            nodes.append(node("Add", [last, "ensemble/offset"], ["ensemble/moved"]))
            tensors.append(export.tensor("ensemble/offset", self.offset_K))
            last = "ensemble/moved"
        elif not numbers:
            nodes += [node("Max", [last, "ensemble/least"], ["ensemble/above"]), node("Log", ["ensemble/above"], ["ensemble/logs"])]
            last = "ensemble/logs"
        if self.task == "binary":
            nodes.append(node("MatMul", [last, "ensemble/odds"], [export.SCORE]))
            tensors.append(export.tensor("ensemble/odds", [[-1.0], [1.0]]))
        else:
            nodes.append(node("Identity", [last], [export.SCORE]))
        used = {name for one in nodes for name in one.input}
        return nodes, [one for one in tensors if one.name in used]

    def importance(self) -> dict[str, float]:
        """The members' shares, by their weights."""
        size_M = np.abs(self.weight_M)
        found = [member.importance() for member in self.members]
        total_F = np.array([sum(w * shares.get(name, 0.0) for w, shares in zip(size_M, found, strict=True)) for name in self.names])
        total = total_F.sum()
        return dict(zip(self.names, (total_F / total if total > 0 else total_F).tolist(), strict=True))

    def save(self, folder: Path) -> None:
        for i, (member, kind) in enumerate(zip(self.members, self.kinds, strict=True)):
            native.save(member, _folder(folder, i), kind=kind)
        facts = {"kinds": self.kinds, "task": self.task, "num_classes": self.num_classes, "names": self.names}
        offsets = None if self.offset_K is None else self.offset_K.tolist()
        write_json(folder / "ensemble.json", {**facts, "weights": self.weight_M.tolist(), "offsets": offsets})


def _folder(folder: Path, member: int) -> Path:
    return folder / f"member-{member}"


def _of_members(members: Sequence[base.Fitted], x_NF: np.ndarray) -> np.ndarray:
    """Probabilities (N, M, K), or predictions (N, M, 1)."""
    answers = [np.asarray(member.predict(x_NF), np.float64) for member in members]
    return np.stack([answer[:, None] if answer.ndim == 1 else answer for answer in answers], axis=1)


def _answers(members: Sequence[base.Fitted], matrix: base.Matrix) -> np.ndarray:
    return np.concatenate([_of_members(members, batch.x_NF) for batch in matrix.batches()])


def _logs(probability: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(np.maximum(probability, pooling.LEAST)))


def _loss(members: Sequence[base.Fitted], valid: base.Matrix | None, task: Any) -> dict[str, float]:
    """The loss of the plain mean on the validation rows; nothing where there are none."""
    if valid is None or not valid.num_rows:
        return {}
    rows = every(valid, WEIGHED_ROWS)
    y_N, weight_N = rows.targets()
    mean_NK = _answers(members, rows).mean(axis=1)
    metric = "rmse" if task == "regression" else "log_loss"
    p = mean_NK[:, 0] if task == "regression" else mean_NK
    return {f"valid_{metric}": evaluate(task, y_N, p, weight=weight_N, metrics=[metric])[metric]}


def _sample(train: base.Matrix, params: EnsembleParams, seed: int) -> base.Matrix:
    """The rows of one copy."""
    rng, rows = np.random.default_rng(seed), train.num_rows
    wanted = max(1, round(rows * params.rows))
    if params.replace:
        return Drawn(train, np.bincount(rng.integers(0, rows, wanted), minlength=rows))
    times_N = np.zeros(rows, np.uint8)
    times_N[rng.choice(rows, wanted, replace=False)] = 1
    return Drawn(train, times_N)


def _show(config: ModelConfig, place: int, train: base.Matrix, common: Mapping[str, Any]) -> None:
    """Let a member of a foreign kind leave a graph of a few rows, so that one that cannot is refused before hours of work."""
    if config.kind in _WRITTEN:
        return
    y_N, _ = train.targets()
    few_N = np.zeros(len(y_N), np.uint8)
    for group_N in [y_N == k for k in range(common["num_classes"])] if common["num_classes"] else [np.ones(len(y_N), bool)]:
        few_N[np.flatnonzero(group_N)[:_SHOWN_ROWS]] = 1
    try:
        model = config.model()
        fitted = model.fit(Drawn(train, few_N), None, params=config.parameters(), seed=0, on_round=lambda *_: True, **common)
        fitted.to_onnx()
    except TidemillError as error:
        raise Unsupported(f"model.members[{place}]: must leave a graph, {config.kind!r} does not: {error.message}") from error
