"""What a fit works on: the problem, its matrices and its means. Made once, shared by every fit of a search."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from tidemill.core.allocator import lean
from tidemill.core.artifact import Artifact
from tidemill.core.engine import memory_bytes
from tidemill.core.errors import ConfigError, Unsupported
from tidemill.core.project import Project
from tidemill.models.base import Fitted, Matrix, Model, OnRound
from tidemill.models.calibration import calibrate
from tidemill.models.config import ModelConfig
from tidemill.models.interval import fit_interval
from tidemill.models.rows import Drawn
from tidemill.models.weights import Reweighted, class_weights
from tidemill.train import boosting
from tidemill.train.boosting import Workers
from tidemill.train.matrix import FeatureMatrix, split_files
from tidemill.train.rows import RowMatrix
from tidemill.train.torch.config import Training

# Operators that number categories in no order that means anything.
UNORDERED = ("vocabulary", "hash")

# A first sample of fewer rows says nothing.
LEAST_SAMPLE = 1_000

_PLACES = 1_048_576


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is predicted."""

    task: Any
    target: str
    classes: list[Any] | None
    keys: list[str]

    @property
    def num_classes(self) -> int | None:
        return len(self.classes) if self.classes else None

    @classmethod
    def of(cls, data: Artifact) -> Problem:
        facts = data.read_json("schema.json")
        return cls(task=facts["task"], target=facts["target"], classes=facts["classes"], keys=list(facts["keys"]))


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The rows of a project's training and validation splits, and with what to fit them."""

    problem: Problem
    train: Matrix
    valid: Matrix | None
    weighted_train: Matrix
    """`train` with class weights, where the project sets them; what a model is fitted on."""
    weighted_valid: Matrix | None
    seed: int
    threads: int

    @classmethod
    def of(cls, project: Project, data: Artifact, features: Artifact, *, whole: bool = False) -> Workload:
        """The workload of a project's finished data and features stages; its first sample where samples are to grow.

        Raises:
            Unsupported: If the project sets class weights for a task without classes.
            ConfigError: If a feature whose numbers have no order is to be monotone.
        """
        problem = Problem.of(data)
        config: ModelConfig = project.model
        _check_monotone(config.params.get("monotone"), features)
        if config.class_weight is not None and problem.classes is None:
            raise Unsupported(f"model.class_weight: needs a binary or multiclass task, got {problem.task}", hint="use data.weight")
        threads = project.engine.threads or os.cpu_count() or 1
        budget = memory_bytes(project.engine.memory)
        lean(budget)
        cache_bytes = int(budget * project.train.cache_share)
        reads_rows = config.reads != "features"

        def matrix(split: str, share: float, like: Matrix | None = None) -> Matrix:
            if reads_rows:
                return RowMatrix(data, features, split)
            shared = like if isinstance(like, FeatureMatrix) else None
            cached = int(cache_bytes * share)
            batch_rows = project.train.batch_rows
            return FeatureMatrix(data, features, split, threads=threads, cache_bytes=cached, batch_rows=batch_rows, like=shared)

        train = matrix("train", 0.8)
        valid = matrix("valid", 0.2, train) if split_files(data, "valid") else None
        weighted: list[Matrix | None] = [train, valid]
        if config.class_weight is not None:
            weight_K = class_weights(train, config.class_weight, problem.classes or [])
            weighted = [None if matrix is None else Reweighted(matrix, weight_K) for matrix in weighted]
        made = cls(
            problem=problem,
            train=train,
            valid=valid,
            weighted_train=weighted[0] or train,
            weighted_valid=weighted[1],
            seed=project.seed,
            threads=threads,
        )
        sampling = None if whole else growing(project)
        return made if sampling is None else made.sampled(first_share(sampling, train.num_rows))

    def sampled(self, share: float) -> Workload:
        """The same on a part of the training rows, drawn by the seed; larger shares hold the rows of smaller ones."""
        if share >= 1:
            return self
        taken_N = taken(self.train.num_rows, share, seed=self.seed)
        return replace(self, train=Drawn(self.train, taken_N), weighted_train=Drawn(self.weighted_train, taken_N))

    def fit(self, model: Model, params: Any, on_round: OnRound | None = None) -> Fitted:
        """The model fitted on the weighted rows, without calibration."""
        workers: Workers | None = getattr(model, "workers", None)
        if workers is not None:
            return boosting.fit(self, model, params, workers, on_round)  # type: ignore[arg-type]
        return model.fit(
            self.weighted_train,
            self.weighted_valid,
            task=self.problem.task,
            num_classes=self.problem.num_classes,
            params=params,
            seed=self.seed,
            threads=self.threads,
            on_round=on_round,
        )

    def calibrated(self, fitted: Fitted, config: ModelConfig) -> Fitted:
        """The model calibrated on the validation rows as they are, where the project asks for it."""
        if config.calibrate is None:
            return fitted
        if self.valid is None:
            raise Unsupported("model.calibrate: needs validation rows", hint="raise data.split.valid")
        return calibrate(fitted, self.valid, task=self.problem.task, num_classes=self.problem.num_classes, method=config.calibrate)

    def ranged(self, fitted: Fitted, model: Model, params: Any, config: ModelConfig) -> Fitted:
        """The model with an interval around its prediction, where the project asks for one.

        Raises:
            Unsupported: If the task, the model or the lack of validation rows does not allow it.
        """
        if config.interval is None:
            return fitted
        return fit_interval(
            model,
            fitted,
            self.train,
            self.valid,
            level=config.interval,
            task=self.problem.task,
            params=params,
            seed=self.seed,
            threads=self.threads,
        )


class Sampling(Protocol):
    """What `[data] sample` says of samples that grow."""

    by: str
    share: float
    gain: float
    growth: float


def growing(project: Project) -> Sampling | None:
    """How samples grow; None where the project does not ask for that."""
    sampling = getattr(project.data, "sampling", None)
    made: Sampling | None = sampling() if sampling is not None else None
    return made if made is not None and made.by == "progressive" else None


def first_share(sampling: Sampling, num_rows: int) -> float:
    """The share of the first sample, which a search works on; of few rows a larger one than the project says."""
    return min(1.0, max(sampling.share, LEAST_SAMPLE / max(num_rows, 1)))


def taken(num_rows: int, share: float, *, seed: int) -> np.ndarray:
    """1 for each row in the sample of a share, else 0: those whose place hashes below it (SplitMix64; Steele, Lea and Flood 2014)."""
    parts = []
    for first in range(0, num_rows, _PLACES):
        bits_N = np.arange(first + 1, min(first + _PLACES, num_rows) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits_N += np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits_N = (bits_N ^ (bits_N >> np.uint64(shift))) * np.uint64(factor)
        parts.append(((bits_N ^ (bits_N >> np.uint64(31))) < np.uint64(min(int(share * 2**64), 2**64 - 1))).astype(np.uint8))
    return np.concatenate(parts)


def prepare_model(
    project: Project, tuned: Mapping[str, Any] | None = None, *, training: Mapping[str, Any] | None = None
) -> tuple[Model, Any]:
    """The project's model and its checked parameters, with what tuning found (`model.<name>` to value) over them.

    Args:
        training: What a network's fit is told beside the project: fields of `Training`, such as its folder and events.
    """
    config: ModelConfig = project.model
    config.reach(project.folder)
    overrides = {path.removeprefix("model."): value for path, value in (tuned or {}).items()}
    model: Any = config.model()
    project.train.check_use(config.kind, model)
    if hasattr(model, "training"):
        model.training = Training(config=project.train, launcher=project.engine.train, project=project.folder.resolve(), **(training or {}))
    if hasattr(model, "workers") and project.train.parallel.data > 1:
        model.workers = Workers(
            number=project.train.parallel.data,
            launcher=project.engine.train,
            fault=project.train.fault,
            cache_bytes=int(memory_bytes(project.engine.memory) * project.train.cache_share),
            batch_rows=project.train.batch_rows,
            **{key: value for key, value in (training or {}).items() if key in ("folder", "events")},
        )
    if hasattr(model, "memory_bytes"):
        model.memory_bytes = int(memory_bytes(project.engine.memory) * (1 - project.train.cache_share))
    return model, config.parameters(overrides)


def _check_monotone(directions: Any, features: Artifact) -> None:
    """Refuse to let an answer rise with the places of a vocabulary; whether a name is a feature the model checks itself."""
    if not isinstance(directions, Mapping):
        return
    columns = features.read_json("features.json")["columns"]
    for name in directions:
        steps = [step["op"] for step in columns.get(name, [])]
        if steps and steps[-1] in UNORDERED:
            raise ConfigError(
                f"model.monotone.{name}: must be a feature whose numbers have an order, those of {steps[-1]!r} have none",
                hint=f'encode it otherwise, such as {name} = ["one_hot"], and constrain {name}=<value>',
            )
