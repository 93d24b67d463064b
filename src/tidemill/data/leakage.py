"""Signs that the training rows know what a prediction cannot: columns that give the target away, rows seen in two splits.

| kind             | what was found                                                                                    |
|------------------|---------------------------------------------------------------------------------------------------|
| predicts_target  | one column alone predicts the target, on rows that were not looked at                             |
| post_event       | whether the column is null says whether the target is null, or what it is: known only afterwards  |
| duplicate_rows   | equal rows in two splits                                                                          |
| keys_in_splits   | one key in two splits                                                                             |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.engine import Rows
from tidemill.data.split import SPLITS, Cuts
from tidemill.data.table import KEY, ROW, mixed, unsigned
from tidemill.data.target import TargetFacts

SAMPLE_ROWS = 50_000
SAMPLE_BYTES = 48 << 20
COUNTED_ROWS = 2_000_000
MIN_ROWS = 100
MIN_CLASS_ROWS = 20
MAX_CLASSES = 8
NULL_DEPENDENCE = 0.95

Sign = dict[str, Any]


@dataclass(frozen=True)
class NullCounts:
    """Mergeable counts, shape (C, 2): nulls of each column in rows whose target is known, and in rows whose target is null."""

    columns: Sequence[str]
    target: str

    def init(self) -> np.ndarray:
        return np.zeros((len(self.columns) + 1, 2), dtype=np.int64)

    def update(self, state: np.ndarray, batch: pa.RecordBatch) -> np.ndarray:
        unknown = _is_null(batch.column(self.target))
        state[-1] += [len(unknown) - unknown.sum(), unknown.sum()]
        for position, name in enumerate(self.columns):
            if batch.column(name).null_count:
                null = _is_null(batch.column(name))
                state[position] += [(null & ~unknown).sum(), (null & unknown).sum()]
        return state

    def merge(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        left += right
        return left


def post_event(counts: np.ndarray, columns: Sequence[str], target: str) -> list[Sign]:
    """Columns that are null where the target is, and hardly elsewhere (phi coefficient of the two nulls)."""
    known, unknown = (int(count) for count in counts[-1])
    found: list[Sign] = []
    if unknown < MIN_CLASS_ROWS or known < MIN_CLASS_ROWS:
        return found
    for name, (elsewhere, together) in zip(columns, counts[:-1].tolist(), strict=True):
        total = elsewhere + together
        spread = float(total) * (known + unknown - total) * known * unknown
        phi = (together * (known - elsewhere) - elsewhere * (unknown - together)) / np.sqrt(spread) if spread > 0 else 0.0
        if name != target and phi >= NULL_DEPENDENCE:
            message = f"{name} is null where {target} is null and hardly elsewhere: is it known only after the event?"
            found.append({"kind": "post_event", "column": name, "message": message, "value": round(float(phi), 4)})
    return found


@dataclass(frozen=True)
class SplitHashes:
    """A mergeable collection of the hashes of rows, or of keys, in each split: of all rows, or of one in `every`, chosen by hash."""

    cuts: Cuts
    column: str
    every: int = 1

    def init(self) -> list[list[np.ndarray]]:
        return [[] for _ in SPLITS]

    def update(self, state: list[list[np.ndarray]], batch: pa.RecordBatch) -> list[list[np.ndarray]]:
        hashes, splits = unsigned(batch.column(self.column)), self.cuts.split_of(batch)
        chosen = mixed(hashes, 0) % np.uint64(self.every) == 0
        for position, parts in enumerate(state):
            parts.append(hashes[chosen & (splits == position)])
        return state

    def merge(self, left: list[list[np.ndarray]], right: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
        return [[*mine, *others] for mine, others in zip(left, right, strict=True)]


def shared(hashes: Sequence[Sequence[np.ndarray]], column: str, keys: Sequence[str], *, every: int) -> list[Sign]:
    """What the splits have in common: whole rows, or keys, in a later split that an earlier one has too."""
    train, valid, test = (np.concatenate(parts) if parts else np.empty(0, np.uint64) for parts in hashes)
    pairs = (("test", test, "train", train), ("valid", valid, "train", train), ("test", test, "valid", valid))
    common = [(one, other, int(np.isin(rows, known).sum()) * every) for one, rows, other, known in pairs]
    total = sum(count for *_, count in common)
    if not total:
        return []
    about = "about " if every > 1 else ""
    listed = ", ".join(f"{about}{count:,} rows of {one} in {other}" for one, other, count in common if count)
    if column == KEY:
        named = ", ".join(keys)
        message = f"rows of one key ({named}) are in two splits: {listed}; split by group keeps them together"
        return [{"kind": "keys_in_splits", "column": named, "message": message, "value": total}]
    message = f"equal rows are in two splits: {listed}; a model is judged on rows that it has seen"
    return [{"kind": "duplicate_rows", "column": None, "message": message, "value": total}]


def sample_share(rows: Rows, known: int) -> float:
    """The share of the rows to look at for columns that give the target away: fewer of wide ones."""
    first = next(iter(rows.batches(8_192)), None)
    width = first.nbytes / first.num_rows if first is not None and first.num_rows else 1.0
    return min(1.0, min(SAMPLE_ROWS, SAMPLE_BYTES / width) / known)


@dataclass(frozen=True)
class TrainSample:
    """A mergeable sample of the training rows, chosen by hash: a share of them, the same ones every time."""

    cuts: Cuts
    share: float

    def init(self) -> list[pa.RecordBatch]:
        return []

    def update(self, state: list[pa.RecordBatch], batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        chosen = self.cuts.split_of(batch) == SPLITS.index("train")
        if self.share < 1.0:
            chosen &= mixed(unsigned(batch.column(ROW)), 1) < np.uint64(int(self.share * 2.0**64))
        return [*state, batch.filter(pa.array(chosen))]

    def merge(self, left: list[pa.RecordBatch], right: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
        return left + right


def giveaways(sample: pa.Table, columns: Sequence[str], facts: TargetFacts, *, threshold: float) -> list[Sign]:
    """Columns that alone predict the target at least as well as `threshold`.

    Each column is scored on a half of the sample that it was not fitted on: values are binned (texts each on their own), a bin
    predicts the mean target of the other half's rows in it, and the measure is ROC AUC (mean over the classes, one against the
    rest) or R2. A number's own order counts too, without bins.

    Args:
        sample: Training rows with `ROW` beside the columns.
        threshold: ROC AUC or R2, 0.5..1.
    """
    half_N = (mixed(unsigned(sample[ROW].combine_chunks()), 2) & np.uint64(1)).astype(bool)
    targets = _targets(facts.stored(sample[facts.column.name].combine_chunks()), facts)
    if sample.num_rows < MIN_ROWS or not targets or half_N.all() or not half_N.any():
        return []
    score = _auc if facts.classes is not None else _r_squared
    measure = "ROC AUC" if facts.classes is not None else "R2"
    found: list[Sign] = []
    for name in columns:
        values = sample[name].combine_chunks()
        null_N = _is_null(values)
        if null_N.any() and not null_N.all():
            value = _alone(null_N.astype(np.int64), None, targets, half_N, score)
            if value >= threshold:
                message = (
                    f"whether {name} is null gives {facts.column.name} away ({measure} {value:.4f}): is it known only after the event?"
                )
                found.append({"kind": "post_event", "column": name, "message": message, "value": round(value, 4)})
                continue
        codes_N, numbers_N = _codes(values, null_N)
        value = _alone(codes_N, numbers_N, targets, half_N, score)
        if value >= threshold:
            message = f"{name} alone predicts {facts.column.name} ({measure} {value:.4f}): is it known before the event?"
            found.append({"kind": "predicts_target", "column": name, "message": message, "value": round(value, 4)})
    return found


Score = Callable[[np.ndarray, np.ndarray], float]


def _targets(values: pa.Array, facts: TargetFacts) -> list[np.ndarray]:
    """What to predict as numbers: one array, or one per frequent class."""
    if facts.classes is None:
        return [np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))]
    index_N = pc.index_in(values, value_set=pa.array(facts.classes, values.type)).to_numpy(zero_copy_only=False)
    counts = np.bincount(index_N, minlength=len(facts.classes))
    wanted = [1] if len(facts.classes) == 2 else np.argsort(-counts, kind="stable")[:MAX_CLASSES].tolist()
    enough = [k for k in wanted if MIN_CLASS_ROWS <= counts[k] <= len(index_N) - MIN_CLASS_ROWS]
    return [(index_N == k).astype(np.float64) for k in enough]


def _alone(codes_N: np.ndarray, numbers_N: np.ndarray | None, targets: list[np.ndarray], half_N: np.ndarray, score: Score) -> float:
    """How well the column alone predicts, the better of bins and order, mean over the targets."""
    values = []
    for y_N in targets:
        best = score(y_N, _out_of_half(codes_N, y_N, half_N))
        if numbers_N is not None:
            known = ~np.isnan(numbers_N)
            if known.sum() >= MIN_ROWS and known.mean() > 0.5:
                best = max(best, score(y_N[known], numbers_N[known]), score(y_N[known], -numbers_N[known]))
        values.append(best)
    return float(np.mean(values))


def _out_of_half(codes_N: np.ndarray, y_N: np.ndarray, half_N: np.ndarray) -> np.ndarray:
    """Each row's bin mean of the target, over the other half; the mean of that half where the bin is not in it."""
    predicted_N = np.empty(len(y_N))
    size = int(codes_N.max()) + 1
    for mine_N in (half_N, ~half_N):
        other_N = ~mine_N
        count_B = np.bincount(codes_N[other_N], minlength=size)
        sum_B = np.bincount(codes_N[other_N], weights=y_N[other_N], minlength=size)
        mean_B = np.where(count_B > 0, sum_B / np.maximum(count_B, 1), y_N[other_N].mean())
        predicted_N[mine_N] = mean_B[codes_N[mine_N]]
    return predicted_N


def _codes(values: pa.Array, null_N: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """A bin for each row, null its own, and the numbers where they have an order."""
    if pa.types.is_string(values.type) or pa.types.is_boolean(values.type):
        codes_N = pc.fill_null(values.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return codes_N + 1, None
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.int64())
    numbers_N = pc.fill_null(values.cast(pa.float64(), safe=False), np.nan).to_numpy(zero_copy_only=False)
    known = numbers_N[~null_N]
    bins = max(2, min(256, len(known) // 50))
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1], method="lower")) if len(known) else np.empty(0)
    codes_N = np.where(null_N, 0, 1 + np.searchsorted(edges, numbers_N, side="left"))
    return codes_N, numbers_N


def _auc(y_N: np.ndarray, score_N: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half (the rank sum of Mann and Whitney); 0.5 where one side is empty."""
    _, inverse, counts = np.unique(score_N, return_inverse=True, return_counts=True)
    ranks_N = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive, negative = float(y_N.sum()), float(len(y_N) - y_N.sum())
    if not positive or not negative:
        return 0.5
    return float((ranks_N[y_N > 0].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _r_squared(y_N: np.ndarray, score_N: np.ndarray) -> float:
    """Share of the target's variance that the best line through the score explains."""
    finite = np.isfinite(score_N)
    y_N, score_N = y_N[finite], score_N[finite]
    if len(y_N) < 2 or y_N.std() == 0 or score_N.std() == 0:
        return 0.0
    return float(np.corrcoef(y_N, score_N)[0, 1] ** 2)


def _is_null(values: Any) -> np.ndarray:
    return np.asarray(values.is_null().to_numpy(zero_copy_only=False))


def merged(warnings: Sequence[Mapping[str, Any]]) -> list[Sign]:
    """One warning a column and kind, the strongest first."""
    best: dict[tuple[Any, Any], Mapping[str, Any]] = {}
    for warning in warnings:
        best.setdefault((warning["kind"], warning["column"]), warning)
    return sorted((dict(warning) for warning in best.values()), key=lambda warning: (warning["kind"], -float(warning["value"])))
