"""Target encoding: a category as what the target is on average where it occurs, cross-fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.features.builder import FLOAT, INT64, Block, Builder
from tidemill.features.categories import Codes, Numbers, code_nodes, number_nodes, reference_codes
from tidemill.features.operator import Fitted, Kind, Made, Predicted, TargetSums, Texts, Values, numbers

if TYPE_CHECKING:
    import pyarrow as pa

# Entries that wait to be summed up; the more, the fewer sums over all categories.
PENDING = 2**16


@dataclass(frozen=True, kw_only=True)
class Target:
    """The mean target of the rows with the category, drawn towards that of all rows the fewer they are.

    A binary task's target is 1 for its second class. A multiclass task makes a feature `<column>.<class>` for each class. A training
    row sees the mean of the folds that it is not in (`features.folds`), else it would be told its own target; every
    other row, and all that a package answers, sees the mean of all training rows. Weights of rows do not count. Where all
    columns together have more categories than memory should hold, the rarest are given up, as with `vocabulary`.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null                       | the mean where it is null; that of all rows where fitting saw none |
    | unseen or rare category    | the mean of all rows                                               |
    | empty text, any Unicode    | categories like others, told apart by code point, not normalized   |
    | integer beyond 2^53        | exact: a category like others                                      |
    """

    smooth: float | Literal["auto", "own"] = "auto"
    """Rows of the overall mean that each category's mean is mixed with, at least 0; auto: as many as the variance within
    categories is times that between them; own: by each category's own variance, as scikit-learn's TargetEncoder does."""
    min_count: int = field(default=1, metadata={"min": 1})
    """Rows that a category must have in training, or it is rare."""
    max_size: int = field(default=1_000_000, metadata={"min": 1})
    """Categories that are kept, the most frequent ones; the others are rare."""

    needs_target: ClassVar[Literal[True]] = True
    accepts: ClassVar[tuple[Kind, ...]] = ("string", "integer")

    def check(self) -> None:
        if isinstance(self.smooth, float) and not (np.isfinite(self.smooth) and self.smooth >= 0):
            raise ConfigError(f"target: smooth must be auto, own or at least 0, got {self.smooth}")

    def fit(self, kind: Kind, predicted: Predicted) -> TargetMeans:
        return TargetMeans(self, predicted)

    def reference(self, name: str, values: Values, fitted: Fitted, fold_N: np.ndarray | None = None) -> Made:
        table_VFT = _table(fitted)
        code_N = reference_codes(values, _codes(fitted))
        fold_N = np.full(len(values), table_VFT.shape[1] - 1) if fold_N is None else fold_N
        mean_NT = table_VFT[code_N, fold_N].astype(np.float64)
        return Made({feature: numbers(mean_NT[:, t]) for t, feature in enumerate(_names(name, fitted))})

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        tables = [_table(stats) for stats in fitted]
        names = tuple(feature for name, stats in zip(block.names, fitted, strict=True) for feature in _names(name, stats))
        num_values = tables[0].shape[2]
        if graph.fold is None and num_values == 1:
            looked_up = []
            for stats, table_VFT in zip(fitted, tables, strict=True):
                *means, null, other = table_VFT[:, -1, 0].tolist()
                looked_up.append(Numbers(stats["categories"], means, null=null, other=other))
            return Block(kind="number", names=names, origins=block.origins, tensors=number_nodes(graph, block, looked_up), element=FLOAT)
        code = graph.cast(graph.stack(code_nodes(graph, block, [_codes(stats) for stats in fitted])), INT64)
        if len(block) > 1:
            first = np.cumsum([0, *(len(table_VFT) for table_VFT in tables[:-1])])
            code = graph.node("Add", code, graph.constant([first], np.int64))
        if graph.fold is not None:
            num_folds = tables[0].shape[1]
            code = graph.node("Add", graph.node("Mul", code, graph.constant([[num_folds]], np.int64)), graph.fold)
            means = np.concatenate([table_VFT.reshape(-1, num_values) for table_VFT in tables])
        else:
            means = np.concatenate([table_VFT[:, -1] for table_VFT in tables])
        if num_values == 1:
            made = graph.node("Gather", graph.constant(means[:, 0], np.float32), code, axis=0)
        else:
            each = graph.node("Gather", graph.constant(means, np.float32), code, axis=0)
            made = graph.node("Reshape", each, graph.constant([-1, len(names)], np.int64))
        origins = tuple(origin for origin in block.origins for _ in range(num_values))
        return Block(kind="number", names=names, origins=origins, tensors=(made,), element=FLOAT)


class Sums:
    """Rows, sums and squares of the target by category and fold; what is added waits until it is worth summing up."""

    def __init__(self) -> None:
        self.rest: list[pa.Table] = []
        """Of categories that were given up, by fold."""
        self._pieces: list[pa.Table] = []
        self._waiting = 0
        self._whole = 0

    def add(self, table: pa.Table) -> None:
        self._pieces.append(table)
        self._waiting += len(table)
        if self._waiting > max(self._whole, PENDING):
            self.summed()

    def merge(self, other: Sums) -> None:
        self.rest += other.rest
        for piece in other._pieces:
            self.add(piece)

    def __len__(self) -> int:
        return len(self.summed())

    @property
    def size(self) -> int:
        """Entries in memory: categories by fold, some of them more than once."""
        return sum(len(piece) for piece in self._pieces)

    def keep(self, most: int) -> None:
        """Leave at most `most` entries, those of the categories with the most rows so far; of the others only their sum."""
        import pyarrow as pa
        import pyarrow.compute as pc

        table = self.summed()
        if len(table) <= most:
            return
        place, categories = _places(table)
        rows_V, entries_V = np.bincount(place, table["rows"].to_numpy()), np.bincount(place)
        order = np.argsort(-rows_V, kind="stable")
        kept_V = np.zeros(len(order), bool)
        kept_V[order] = np.cumsum(entries_V[order]) <= most
        kept_V[len(categories) :] = True  # null
        kept = pa.array(kept_V[place])
        self.rest = [_summed(pa.concat_tables([*self.rest, table.filter(pc.invert(kept)).drop_columns(["value"])]), ["fold"])]
        self._pieces = [table.filter(kept)]
        self._waiting, self._whole = 0, len(self._pieces[0])

    def summed(self) -> pa.Table:
        """One row for each category and fold that occur together."""
        import pyarrow as pa

        table = pa.concat_tables(self._pieces)
        if self._waiting:
            table = _summed(table, ["value", "fold"])
        self._pieces, self._waiting, self._whole = [table.combine_chunks()], 0, len(table)
        return self._pieces[0]


@dataclass(frozen=True)
class TargetMeans:
    """Fits `Target`."""

    operator: Target
    predicted: Predicted

    def init(self) -> Sums:
        return Sums()

    def update(self, state: Sums, values: Values, target: TargetSums) -> Sums:
        import pyarrow as pa

        if isinstance(values, Texts):
            of = values.texts
        elif values.kind == "string":
            of = pa.array(values.data, pa.string())
        else:
            of = pa.array(values.data, pa.int64(), mask=~values.known())
        columns = {"value": of, "fold": target.fold_N, "rows": target.rows_N}
        for t in range(self.predicted.num_values):
            columns |= {f"sum {t}": target.sum_NT[:, t], f"square {t}": target.square_NT[:, t]}
        state.add(pa.table(columns))
        return state

    def merge(self, left: Sums, right: Sums) -> Sums:
        left.merge(right)
        return left

    def finish(self, state: Sums) -> Fitted:
        """Means by category: of the rows outside each fold, and of all; those of nulls and of all rows last."""
        import pyarrow as pa
        import pyarrow.compute as pc

        table = state.summed()
        folds, width = self.predicted.num_folds, self.predicted.num_values
        place, categories = _places(table)
        size = len(categories)
        fold = table["fold"].to_numpy()
        rows_VF = np.zeros((size + 1, folds), np.int64)
        rows_VF[place, fold] = table["rows"].to_numpy()
        sum_VFT, square_VFT = (np.zeros((size + 1, folds, width)) for _ in range(2))
        for t in range(width):
            sum_VFT[place, fold, t] = table[f"sum {t}"].to_numpy()
            square_VFT[place, fold, t] = table[f"square {t}"].to_numpy()
        rest_F, rest_FT = np.zeros(folds), np.zeros((folds, width))
        for given_up in state.rest:
            np.add.at(rest_F, given_up["fold"].to_numpy(), given_up["rows"].to_numpy())
            for t in range(width):
                np.add.at(rest_FT[:, t], given_up["fold"].to_numpy(), given_up[f"sum {t}"].to_numpy())
        each = []
        for kept in _kept(folds):
            parts = (part[:, kept].sum(axis=1) for part in (rows_VF, sum_VFT, square_VFT))
            each.append(self._means(*parts, rest=rest_F[kept].sum(), rest_T=rest_FT[kept].sum(axis=0)))
        mean_VFT = np.stack(each, axis=1)
        rows_V = rows_VF.sum(axis=1)
        by_value = pc.array_sort_indices(categories).to_numpy()
        order = by_value[np.argsort(-rows_V[by_value], kind="stable")]
        order = order[rows_V[order] >= self.operator.min_count][: self.operator.max_size]
        return {
            "labels": list(self.predicted.labels),
            "categories": categories.take(pa.array(order)).to_pylist(),
            "values": _shortened(mean_VFT[order]),
            "null": _shortened(mean_VFT[size] if rows_V[size] >= self.operator.min_count else mean_VFT[size + 1]),
            "prior": _shortened(mean_VFT[size + 1]),
        }

    def _means(self, rows_V: np.ndarray, sum_VT: np.ndarray, square_VT: np.ndarray, *, rest: float, rest_T: np.ndarray) -> np.ndarray:
        """Smoothed means by category, and that of all rows last, also of `rest` ones without category; 0 where there are none."""
        total = rows_V.sum()
        prior_T = (sum_VT.sum(axis=0) + rest_T) / max(total + rest, 1)
        there = rows_V[:, None] > 0
        n_V1 = np.maximum(rows_V[:, None], 1)
        with np.errstate(all="ignore"):
            mean_VT = sum_VT / n_V1
            within_VT = np.maximum(square_VT - sum_VT * mean_VT, 0.0)
            if self.operator.smooth == "own":
                variance_T = np.maximum(square_VT.sum(axis=0) / max(total, 1) - prior_T**2, 0.0)
                trust_VT = variance_T * n_V1 / (variance_T * n_V1 + within_VT / n_V1)
            elif self.operator.smooth == "auto":
                trust_VT = n_V1 / (n_V1 + _credibility(rows_V, mean_VT, within_VT, prior_T))
            else:
                trust_VT = n_V1 / (n_V1 + self.operator.smooth)
        trust_VT = np.where(there & np.isfinite(trust_VT), trust_VT, 0.0)
        return np.concatenate([trust_VT * mean_VT + (1 - trust_VT) * prior_T, prior_T[None]])


def _places(table: pa.Table) -> tuple[np.ndarray, pa.Array]:
    """Each entry's place among the categories, and those; a null's is the one after the last."""
    import pyarrow.compute as pc

    coded = table["value"].combine_chunks().dictionary_encode()
    return pc.fill_null(coded.indices, len(coded.dictionary)).to_numpy(), coded.dictionary


def _summed(table: pa.Table, by: list[str]) -> pa.Table:
    added = [name for name in table.column_names if name not in by]
    grouped = table.group_by(by, use_threads=False).aggregate([(name, "sum") for name in added])
    return grouped.rename_columns([name.removesuffix("_sum") for name in grouped.column_names]).select(table.column_names)


def _credibility(rows_V: np.ndarray, mean_VT: np.ndarray, within_VT: np.ndarray, prior_T: np.ndarray) -> np.ndarray:
    """Variance within categories over that between them, infinite where they do not differ (Buehlmann and Straub 1970)."""
    total, categories = rows_V.sum(), np.count_nonzero(rows_V)
    if total <= categories:
        return np.full_like(prior_T, np.inf)
    noise_T = within_VT.sum(axis=0) / (total - categories)
    spread_T = (rows_V[:, None] * (mean_VT - prior_T) ** 2).sum(axis=0) - (categories - 1) * noise_T
    between_T = spread_T / (total - (rows_V.astype(np.float64) ** 2).sum() / total)
    return np.where(between_T > 0, noise_T / between_T, np.inf)


def _kept(folds: int) -> list[list[int]]:
    """Which folds teach: all but one, for each; and all."""
    return [*([other for other in range(folds) if other != fold] for fold in range(folds)), list(range(folds))]


def _shortened(mean_T: np.ndarray) -> list[Any]:
    """Numbers as short as they are the same in float32, the last axis left out where it is one long."""
    short = mean_T.astype(np.float32).astype(str).astype(np.float64)
    made: list[Any] = (short[..., 0] if mean_T.shape[-1] == 1 else short).tolist()
    return made


def _table(fitted: Fitted) -> np.ndarray:
    """Means float32 [V + 2, F + 1, T]: of the categories, of null, and of everything else; the last fold stands for all rows."""
    rows = np.asarray([*fitted["values"], fitted["null"], fitted["prior"]], np.float32)
    return rows[..., None] if rows.ndim == 2 else rows


def _codes(fitted: Fitted) -> Codes:
    count = len(fitted["categories"])
    return Codes(fitted["categories"], 0, count, count + 1)


def _names(name: str, fitted: Fitted) -> list[str]:
    return [f"{name}.{label}" for label in fitted["labels"]] or [name]
