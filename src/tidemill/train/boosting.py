"""XGBoost on several workers, each of which reads its share of the training rows; together they grow the trees of one process.

Histograms are summed over workers, so that each split is found on all rows. Validation rows are few, and all of them on each
worker: what early stopping goes by is the same number everywhere, also where it is a curve.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.artifact import Artifact
from tidemill.core.errors import Unsupported
from tidemill.core.events import Event, Events
from tidemill.core.launcher import RankJob, Resources
from tidemill.core.load import load
from tidemill.core.project import build, to_plain
from tidemill.core.ranks.pulse import pulse
from tidemill.models import rabit
from tidemill.models.base import Batch, Fitted, Matrix, OnRound
from tidemill.models.weights import Reweighted
from tidemill.models.xgboost import XGBoost, XGBoostParams, bins_of_all, quantised_bytes
from tidemill.train.matrix import FeatureMatrix
from tidemill.train.torch.watch import FaultConfig

if TYPE_CHECKING:
    from tidemill.train.workload import Workload

ROUND = "train.boosted"
_STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many fit together, and what starts them."""

    number: int
    launcher: str
    fault: FaultConfig
    cache_bytes: int
    """Of each for its computed features."""
    batch_rows: int
    folder: Path | None = None
    """Where logs of the workers stay; None keeps none."""
    events: Events = field(default_factory=Events)


def fit(workload: Workload, model: XGBoost, params: XGBoostParams, workers: Workers, on_round: OnRound | None) -> Fitted:
    """The model that `workers.number` workers fit together; what one process would fit, but for the rounding of sums.

    That is where `subsample` is 1, since each worker draws from its own rows, and of at most BINNED_CELLS values: of more, where
    bins end is told from sketches of the workers' rows, unless no feature has more than some eight times `max_bin` values.

    Raises:
        Unsupported: If the rows are not those of finished stages, as where samples grow.
        ConfigError: If there are fewer row groups than workers.
    """
    train, valid = workload.train, workload.valid
    if not isinstance(train, FeatureMatrix):
        raise Unsupported("train.parallel.data: several workers need all training rows, got a sample of them", hint="set data.sample = 1.0")
    data, features, _ = train.made_from
    shares = [FeatureMatrix(data, features, "train", share=(rank, workers.number)) for rank in range(workers.number)]
    if params.external_memory == "auto":
        most = max(quantised_bytes(share, valid) for share in shares)
        params = replace(params, external_memory=model.memory_bytes is not None and most > model.memory_bytes)
    weight_K = workload.weighted_train.weight_K.tolist() if isinstance(workload.weighted_train, Reweighted) else None
    with tempfile.TemporaryDirectory(prefix="tidemill-workers-") as scratch:
        folder = workers.folder or Path(scratch)
        arguments = {
            "data": str(data.path.resolve()), "features": str(features.path.resolve()), "valid": valid is not None, "class_weights": weight_K,
            "task": workload.problem.task, "num_classes": workload.problem.num_classes, "params": to_plain(params), "seed": workload.seed,
            "threads": max(1, workload.threads // workers.number), "cache_bytes": workers.cache_bytes, "batch_rows": workers.batch_rows,
            "out": scratch,
        }  # fmt: skip
        stop = Path(scratch) / _STOP
        job = RankJob(
            target=f"{__name__}:work", arguments=arguments, folder=folder, restarts=workers.fault.restarts, hang_s=workers.fault.hang_s,
            events=Events(_Hearing(on_round, stop, workers.events)),
        )  # fmt: skip
        outcome = load("launcher", workers.launcher)().run(job, workers.number, Resources(threads=arguments["threads"]))
        fitted = model.load(Path(scratch))
        fitted.external_memory = outcome.results[0]
        return fitted


def work(arguments: Mapping[str, Any]) -> bool:
    """One worker's part; the first leaves the model in `arguments["out"]`. Whether its rows lay on disk."""
    rank, ranks = rabit.place()
    out, threads, weight_K = Path(arguments["out"]), arguments["threads"], arguments["class_weights"]
    params = build(XGBoostParams, arguments["params"], path="model")
    data, features = Artifact.open(Path(arguments["data"])), Artifact.open(Path(arguments["features"]))

    def matrix(split: str, share: tuple[int, int] = (0, 1), cached: float = 0.0) -> Matrix:
        cache_bytes = int(arguments["cache_bytes"] * cached)
        made = FeatureMatrix(
            data, features, split, threads=threads, cache_bytes=cache_bytes, batch_rows=arguments["batch_rows"], share=share
        )  # fmt: skip
        return made if weight_K is None else Reweighted(made, np.array(weight_K))

    def on_round(number: int, values: Mapping[str, float]) -> bool:
        pulse().step(number)
        if rank == 0:
            pulse().events.emit(ROUND, level="progress", number=number, values=dict(values))
        return rabit.agreed(rank == 0 and (out / _STOP).exists())

    train = Share(matrix("train", (rank, ranks), 0.8), matrix("train"))
    valid = matrix("valid", cached=0.2) if arguments["valid"] else None
    model = XGBoost()
    if bins_of_all(train):
        model.quantise(train, valid, params, threads)
    with rabit.joined():
        fitted = model.fit(
            train, valid, task=arguments["task"], num_classes=arguments["num_classes"], params=params, seed=arguments["seed"], threads=threads,
            on_round=on_round,
        )  # fmt: skip
    if rank == 0:
        fitted.save(out)
    return fitted.external_memory


class Share:
    """A part of the rows of a matrix, and the whole, by which decisions go that must be alike on all workers."""

    def __init__(self, part: Matrix, whole: Matrix) -> None:
        self._part = part
        self.whole = whole

    @property
    def names(self) -> Sequence[str]:
        return self._part.names

    @property
    def num_rows(self) -> int:
        return self._part.num_rows

    @property
    def num_features(self) -> int:
        return self._part.num_features

    def batches(self) -> Iterator[Batch]:
        return self._part.batches()

    def targets(self) -> tuple[np.ndarray, np.ndarray | None]:
        return self._part.targets()


class _Hearing:
    """Hands rounds on, each once though a restart fits again, and asks the workers to stop where that is wished."""

    def __init__(self, on_round: OnRound | None, stop: Path, events: Events) -> None:
        self._on_round, self._stop, self._events, self._next = on_round, stop, events, 0

    def __call__(self, event: Event) -> None:
        if event.kind != ROUND:
            self._events.emit(event.kind, event.message, level=event.level, **event.fields)
        elif event.fields["number"] >= self._next:
            self._next = event.fields["number"] + 1
            if self._on_round is not None and self._on_round(event.fields["number"], event.fields["values"]):
                self._stop.touch()
