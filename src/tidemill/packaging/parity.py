"""The parity gate: the graph against a path that shares nothing with it, from raw rows, over every row.

For a project's model the independent path is the operators in NumPy and the model in its own library. Rounding can
send a value to the other side of a tree's threshold: such rows are found, counted and explained, and they count in the
largest difference like any other.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tidemill.core.events import now
from tidemill.core.graph import BulkGraph, session
from tidemill.core.load import load
from tidemill.core.package import Answers, Predictor
from tidemill.core.schema import Schema
from tidemill.packaging.merge import FEATURES
from tidemill.packaging.rows import Rows

if TYPE_CHECKING:
    import pyarrow as pa

WORST = 5
SHOWN_NUMBERS = 32
ROUTE_ROWS = 256

# Features this close, relative to the larger, differ by rounding only.
_ROUNDING = 1e-5


class Native(Protocol):
    """The independent path. `against` says what it is, for people."""

    against: str

    def answer(self, batch: pa.RecordBatch) -> np.ndarray:
        """Probabilities [N, K] or predictions [N] (embeddings [N, D]) for raw rows, without the graph.

        Where the package answers an interval: prediction, low and high [N, 3].
        """

    def explain(self, batch: pa.RecordBatch, graph_answer: np.ndarray, limit: float) -> list[dict[str, Any]]:
        """For each row of a batch, why the graph answers otherwise: at least `cause` and `detail`."""


@dataclass
class Compared:
    """The evidence of the gate, and what the graph answered."""

    evidence: dict[str, Any]
    answer: np.ndarray = field(repr=False)
    interval: np.ndarray | None = field(default=None, repr=False)
    """Low and high [N, 2], where the package answers them."""


def compare(predictor: Predictor, rows: Rows, native: Native, *, limit: float, columns: list[str] | None = None) -> Compared:
    """The graph's answers for all rows and how far the independent path is from them.

    The difference of a row is the largest over its classes, or over prediction and interval, absolute in probability and in an embedding's numbers;
    in regression it is relative to the larger of the native prediction and the mean size of all of them. Some rows are also sent one by
    one, as JSON would bring them, and as a plain batch, and must agree with the bulk route within the same limit.

    Args:
        columns: What to read of each row, all that the graph and the native path need.
        limit: Largest difference allowed; only tells which rows to explain, nothing is enforced here.
    """
    schema = predictor.package.schema
    relative = predictor.package.classes is None and predictor.package.task == "regression"
    answers, gaps, sizes, sample = [], [], [], []
    worst = _Worst()
    step, first = max(1, -(-rows.num_rows // ROUTE_ROWS)), 0
    for batch in rows.batches(columns or schema.names):
        graph_N = _values(predictor.arrow(batch))
        native_N = np.asarray(native.answer(batch))
        gap_N = _gap(graph_N, native_N)
        size_N = np.abs(native_N.reshape(len(native_N), -1)).max(axis=1, initial=0.0)
        answers.append(graph_N)
        gaps.append(gap_N)
        sizes.append(size_N)
        worst.add(batch, graph_N, native_N, gap_N / np.fmax(size_N, _scale(sizes)) if relative else gap_N)
        picked = range((-first) % step, batch.num_rows, step)
        sample += [(batch.slice(row, 1).select(schema.names).to_pylist()[0], graph_N[row]) for row in picked]
        first += batch.num_rows
    gap_N, size_N = np.concatenate(gaps), np.concatenate(sizes)
    scale = _scale(sizes)
    difference_N = gap_N / np.fmax(size_N, scale) if relative else gap_N
    route_N = _other_routes(predictor, rows, sample, answers[0], scale if relative else None)
    over = int((difference_N > limit).sum())
    evidence: dict[str, Any] = {
        "rows": len(difference_N),
        "max_difference": float(max(difference_N.max(initial=0.0), route_N.max(initial=0.0))),
        "p99_difference": float(np.quantile(difference_N, 0.99, method="higher")),
        "mean_difference": float(difference_N.mean()),
        "limit": limit,
        "measure": "relative" if relative else "absolute",
        "against": native.against,
        "rows_over_limit": over,
        "routes": {"rows": len(route_N), "max_difference": float(route_N.max(initial=0.0))},
        "worst": worst.described(native, limit, scale if relative else None),
        "at": now(),
    }
    if over:
        evidence["causes"] = [entry["detail"] for entry in evidence["worst"] if "detail" in entry]
    answer = np.concatenate(answers)
    return Compared(evidence, answer) if predictor.package.interval is None else Compared(evidence, answer[:, 0], answer[:, 1:])


def _other_routes(
    predictor: Predictor, rows: Rows, sample: list[tuple[dict[str, Any], np.ndarray]], first: np.ndarray, scale: float | None
) -> np.ndarray:
    """How far rows sent one by one as records, and a batch without its dictionary of distinct strings, are from the bulk route."""
    batch = next(iter(rows.batches(predictor.package.schema.names, batch_rows=ROUTE_ROWS)))
    alone = [_values(predictor.records([record])) for record, _ in sample]
    found = np.concatenate([*alone, _values(predictor.run(predictor.signature.from_arrow(batch)))])
    bulk = np.concatenate([*(answer[None] for _, answer in sample), first[: batch.num_rows]])
    gap_N = _gap(found, bulk)
    return gap_N if scale is None else gap_N / np.fmax(np.abs(bulk.reshape(len(bulk), -1)).max(axis=1), scale)


def why(evidence: dict[str, Any]) -> str | None:
    """One sentence on the first difference above the limit; None where there is none."""
    causes = evidence.get("causes")
    if not causes:
        return None
    return f"{evidence['rows_over_limit']} of {evidence['rows']} rows differ by more; in the worst one {causes[0]}"


class _Worst:
    """The rows that differ most, as many as evidence shows."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, pa.RecordBatch, np.ndarray, np.ndarray]] = []
        self._order = itertools.count()

    def add(self, batch: pa.RecordBatch, graph_N: np.ndarray, native_N: np.ndarray, difference_N: np.ndarray) -> None:
        for row in np.argsort(-difference_N, kind="stable")[:WORST].tolist():
            heapq.heappush(self._heap, (float(difference_N[row]), -next(self._order), batch.slice(row, 1), graph_N[row], native_N[row]))
            if len(self._heap) > WORST:
                heapq.heappop(self._heap)

    def described(self, native: Native, limit: float, scale: float | None) -> list[dict[str, Any]]:
        """The worst first, each with its cause and record where it is over the limit; relative to `scale` where one is given."""
        made = []
        for _, _, row, graph, found in sorted(self._heap, key=lambda item: item[:2], reverse=True):
            unit = 1.0 if scale is None else float(np.fmax(np.abs(found).max(), scale))
            entry: dict[str, Any] = {"difference": float(_gap(graph[None], found[None])[0] / unit)}
            if graph.size <= SHOWN_NUMBERS:
                entry |= {"graph": graph.tolist(), "native": found.tolist()}
            if not entry["difference"] <= limit:
                entry |= native.explain(row, graph[None], limit * unit)[0]
                entry["record"] = {name: _shown(value) for name, value in row.to_pylist()[0].items()}
            made.append(entry)
        return made


class ReferencePath:
    """A project's model without its graph: operators in NumPy, then the library that trained it."""

    def __init__(self, features: Path, model: Path, *, threads: int = 1) -> None:
        import json

        self.against = "NumPy reference operators and the model's own library"
        self._fitted_features = json.loads((features / "features.json").read_text(encoding="utf-8"))
        self._names: list[str] = list(self._fitted_features["names"])
        schema = Schema.from_json(self._fitted_features["inputs"])
        self._reference: Callable[[Any, Any], np.ndarray] = load("reference", "features")
        self._model = load("reference", "model")(model / "native")
        self._features_graph = BulkGraph(features / "features.onnx", schema, threads=threads)
        self._model_graph = session(model / "model.onnx", threads=threads)

    def answer(self, batch: pa.RecordBatch) -> np.ndarray:
        return self._answer(self._features(batch))

    def explain(self, batch: pa.RecordBatch, graph_answer: np.ndarray, limit: float) -> list[dict[str, Any]]:
        """Each row's difference traced to the operators (and there to rounding, or not) or to the model."""
        native_NF = self._features(batch)
        graph_NF = self._features_graph.run(batch, [FEATURES])[FEATURES]
        crossed = _gap(graph_answer, self._answer(graph_NF)) <= limit
        return [self._cause(native_NF[row], graph_NF[row], bool(crossed[row])) for row in range(len(native_NF))]

    def _answer(self, x_NF: np.ndarray) -> np.ndarray:
        prediction = np.asarray(self._model.predict(x_NF))
        if not hasattr(self._model, "predict_interval"):
            return prediction
        return np.column_stack([prediction, self._model.predict_interval(x_NF)])

    def _features(self, batch: pa.RecordBatch) -> np.ndarray:
        import pyarrow as pa

        return np.asarray(self._reference(self._fitted_features, pa.Table.from_batches([batch])), np.float32)

    def _cause(self, native_F: np.ndarray, graph_F: np.ndarray, crossed: bool) -> dict[str, Any]:
        differs_F = ~((native_F == graph_F) | (np.isnan(native_F) & np.isnan(graph_F)))
        if not differs_F.any() or not crossed:
            where = "the features are the same, the model's graph answers otherwise than its library"
            return {"cause": "model", "detail": where if not differs_F.any() else "features and the model's graph both answer otherwise"}
        with np.errstate(invalid="ignore"):
            apart_F = np.abs(native_F - graph_F) / np.maximum(np.maximum(np.abs(native_F), np.abs(graph_F)), np.float32(1e-30))
        apart_F = np.where(differs_F, np.nan_to_num(apart_F, nan=np.inf), 0)
        worst = int(apart_F.argmax())
        values = f"feature {self._names[worst]!r} is {graph_F[worst]!s} in the graph and {native_F[worst]!s} in NumPy"
        if apart_F[worst] <= _ROUNDING:
            return {"cause": "rounding", "detail": f"{values}: rounding took it across a threshold of the model"}
        return {"cause": "features", "detail": values}


class FunctionPath:
    """An independent path that is one function of raw rows."""

    def __init__(self, function: Callable[[pa.RecordBatch], np.ndarray], against: str) -> None:
        self.answer = function
        self.against = against

    def explain(self, batch: pa.RecordBatch, graph_answer: np.ndarray, limit: float) -> list[dict[str, Any]]:
        return [{"cause": "model", "detail": f"the graph answers otherwise than {self.against}"}] * batch.num_rows


class Known:
    """What the graph answered, as the path that another runtime is held against; batch after batch, in order, once."""

    against = "the graph's answers"

    def __init__(self, compared: Compared) -> None:
        interval = compared.interval
        self._answer_N = compared.answer if interval is None else np.column_stack([compared.answer, interval])
        self._next = 0

    def answer(self, batch: pa.RecordBatch) -> np.ndarray:
        self._next += batch.num_rows
        return self._answer_N[self._next - batch.num_rows : self._next]

    def explain(self, batch: pa.RecordBatch, graph_answer: np.ndarray, limit: float) -> list[dict[str, Any]]:
        del graph_answer, limit
        return [{"cause": "model", "detail": "the network on ranks answers otherwise than the graph"}] * batch.num_rows


def _values(answers: Answers) -> np.ndarray:
    return answers.values if answers.interval is None else np.column_stack([answers.prediction, answers.interval])


def _scale(sizes: list[np.ndarray]) -> float:
    """Mean size of the native answers so far; what a relative difference is at least held against."""
    known = [size_N[np.isfinite(size_N)] for size_N in sizes]
    count = sum(len(size_N) for size_N in known)
    return float(sum(size_N.sum() for size_N in known) / count) or 1.0 if count else 1.0


def _gap(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Largest absolute difference of each row; two NaN are equal, one is infinitely far."""
    left, right = left.reshape(len(left), -1).astype(np.float64), right.reshape(len(right), -1).astype(np.float64)
    if left.shape != right.shape:
        return np.full(len(left), np.inf)
    with np.errstate(invalid="ignore"):
        gap = np.where(left == right, 0.0, np.abs(left - right))
    gap = np.where(np.isnan(left) & np.isnan(right), 0.0, np.where(np.isnan(gap), np.inf, gap))
    return np.asarray(gap.max(axis=1, initial=0.0))


def _shown(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
