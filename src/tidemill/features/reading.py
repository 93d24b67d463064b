"""A batch of raw rows as fitting takes it: equal rows as one where that spares work, with the target where it is learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tidemill.core.graph import RowSignature
from tidemill.core.schema import Column, Schema
from tidemill.features.operator import TargetSums, Texts, Values
from tidemill.features.reference import raw_values
from tidemill.features.supervision import Supervision

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Read:
    """Raw columns of a batch, as rows or as different ones and how often each occurs."""

    values: dict[str, Values]
    counts_N: np.ndarray | None = None
    fold_N: np.ndarray | None = None
    sums: TargetSums | None = None


class Reader:
    """A batch as chains take it; what is grouped for several of them is so once."""

    def __init__(self, batch: pa.RecordBatch, supervision: Supervision | None) -> None:
        self._batch = batch
        self._supervision = supervision
        self._fold_N = None if supervision is None else supervision.folds.of(batch)
        self._y_N = None if supervision is None else supervision.target.values(batch)
        self._made: dict[tuple[tuple[str, ...], bool], Read] = {}

    def read(self, columns: Sequence[Column], *, taught: bool) -> Read:
        """Raw columns, with the target where `taught`."""
        key = tuple(column.name for column in columns), taught
        if key in self._made:
            return self._made[key]
        arrays = [RowSignature(Schema((column,))).arrow_column(self._batch, column) for column in columns]
        grouped = self._grouped if _is_grouped(columns, taught=taught) else self._rows
        made = grouped(arrays, columns, taught)
        if taught or len(columns) > 1:  # dear to make; of the others no more than one is held at a time
            self._made[key] = made
        return made

    def _rows(self, arrays: list[pa.Array], columns: Sequence[Column], taught: bool) -> Read:
        """The rows as they stand."""
        values = {column.name: raw_values(array, column) for column, array in zip(columns, arrays, strict=True)}
        if not taught or self._supervision is None or self._fold_N is None or self._y_N is None:
            return Read(values)
        return Read(values, None, self._fold_N, self._supervision.sums(self._y_N, self._fold_N, None, len(self._y_N)))

    def _grouped(self, arrays: list[pa.Array], columns: Sequence[Column], taught: bool) -> Read:
        """Rows that are equal, and in one fold where that matters, as one."""
        if len(arrays) == 1 and not taught:
            texts, counts = _distinct(arrays[0])
            return Read({columns[0].name: texts}, counts)
        coded = [_coded(array) for array in arrays]
        group_N = np.zeros(len(arrays[0]), np.int64) if self._fold_N is None or not taught else self._fold_N
        size = int(group_N.max(initial=0)) + 1
        for codes_N, dictionary in coded:
            group_N, size = _numbered(group_N * (len(dictionary) + 1) + codes_N, size * (len(dictionary) + 1))
        counts = np.bincount(group_N, minlength=size)
        first = np.empty(size, np.int64)
        first[group_N[::-1]] = np.arange(len(group_N))[::-1]
        values = {}
        for column, (codes_N, dictionary) in zip(columns, coded, strict=True):
            taken = _taken(dictionary, codes_N[first])
            values[column.name] = Texts(taken) if column.type == "string" else raw_values(taken, column)
        if not taught or self._supervision is None or self._fold_N is None or self._y_N is None:
            return Read(values, counts)
        fold = self._fold_N[first]
        return Read(values, counts, fold, self._supervision.sums(self._y_N, fold, group_N, len(first)))


def _is_grouped(columns: Sequence[Column], *, taught: bool) -> bool:
    """Whether rows go through the chain once per different one: texts, and categories of several columns or with a target."""
    kinds = {column.type for column in columns}
    return kinds == {"string"} or ((len(columns) > 1 or taught) and kinds <= {"string", "int64", "boolean"})


def _distinct(array: pa.Array) -> tuple[Texts, np.ndarray]:
    """Distinct texts, null last, and how often each occurs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(array.type):
        distinct = pc.value_counts(array)
        return Texts(distinct.field("values")), distinct.field("counts").to_numpy()
    indices, dictionary = array.indices, array.dictionary
    counts = np.bincount(indices.drop_null().to_numpy(), minlength=len(dictionary))
    if not counts.all():
        occurs = np.flatnonzero(counts)
        dictionary, counts = dictionary.take(pa.array(occurs)), counts[occurs]
    if indices.null_count:
        dictionary = pa.concat_arrays([dictionary, pa.nulls(1, dictionary.type)])
        counts = np.append(counts, indices.null_count)
    return Texts(dictionary), counts


def _coded(array: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Each row's place among the distinct values, int64 [N], and those; a null's place is the one after the last."""
    import pyarrow as pa
    import pyarrow.compute as pc

    coded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    places = pc.fill_null(coded.indices.cast(pa.int64()), len(coded.dictionary)).to_numpy(zero_copy_only=False)
    return places, coded.dictionary


def _numbered(place_N: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """Whole numbers below `size` as those from 0 on without gaps, in the same order, and how many there are."""
    if size > 16 * len(place_N):
        distinct, group_N = np.unique(place_N, return_inverse=True)
        return group_N, len(distinct)
    occurs = np.zeros(size, bool)
    occurs[place_N] = True
    return (np.cumsum(occurs) - 1)[place_N], int(np.count_nonzero(occurs))


def _taken(dictionary: pa.Array, places: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return dictionary.take(pa.array(places, pa.int64(), mask=places == len(dictionary)))
