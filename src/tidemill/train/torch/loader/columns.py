"""Rows in memory as columns: arrays with a row in each place, and tokens of differing length end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Rows of differing length, end to end."""

    values: np.ndarray
    starts: np.ndarray
    """Where each row begins in `values`, and behind them where the last ends, int64 [N + 1]."""

    @classmethod
    def of(cls, values: np.ndarray, lengths_N: np.ndarray) -> Ragged:
        return cls(values, np.concatenate([[0], np.cumsum(lengths_N, dtype=np.int64)]))

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes + self.starts.nbytes)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, places_N: np.ndarray) -> Ragged:
        first, lengths = self.starts[places_N], self.starts[places_N + 1] - self.starts[places_N]
        made_starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        places = np.arange(made_starts[-1]) + np.repeat(first - made_starts[:-1], lengths)
        return Ragged(self.values[places], made_starts)

    def padded(self, fill: int, *, length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The rows as one array [N, L] of int64, and where it holds tokens, bool [N, L]; L is the longest row, at least 1, or `length`."""
        lengths = self.lengths
        longest = max(1, int(lengths.max(initial=0))) if length is None else length
        mask = np.arange(longest) < lengths[:, None]
        made = np.full(mask.shape, fill, np.int64)
        made[mask] = self.values
        return made, mask


# By name; every one holds as many rows.
Columns = Mapping[str, Any]


def gather(parts: Sequence[tuple[Columns, np.ndarray]]) -> dict[str, Any]:
    """The rows of several sets of columns, those of each at the places that are named, one after the other."""
    made: dict[str, Any] = {}
    for name, column in parts[0][0].items():
        if len(parts) == 1:
            made[name] = column.take(parts[0][1]) if isinstance(column, Ragged) else column[parts[0][1]]
        elif isinstance(column, Ragged):
            made[name] = joined([columns[name].take(places) for columns, places in parts])
        else:
            taken = np.empty((sum(len(places) for _, places in parts), *column.shape[1:]), column.dtype)
            first = 0
            for columns, places in parts:
                taken[first : (first := first + len(places))] = columns[name][places]
            made[name] = taken
    return made


def joined(parts: Sequence[Any]) -> Any:
    """Columns one after the other."""
    if not isinstance(parts[0], Ragged):
        return np.concatenate(parts)
    return Ragged.of(np.concatenate([part.values for part in parts]), np.concatenate([part.lengths for part in parts]))


def stacked(first: Columns, second: Columns) -> dict[str, Any]:
    """The rows of two sets of columns, one after the other."""
    return {name: joined([column, second[name]]) for name, column in first.items()}


def nbytes(columns: Columns) -> int:
    """What the columns take in memory."""
    return sum(int(column.nbytes) for column in columns.values())
