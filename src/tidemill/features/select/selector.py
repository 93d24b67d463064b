"""The seam of `features.select`: what a selector sees of the training rows, and what it answers.

A selector is a frozen dataclass whose fields are its parameters, in one file, named by one line of
`core.load.TABLE["selector"]` (or an entry point, or "module:attribute").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from tidemill.core.errors import ConfigError, NotFound
from tidemill.core.load import load, names
from tidemill.core.project import build


class Rows(NamedTuple):
    """Rows of a feature matrix: features float32 [N, F] with NaN for missing, targets float64 [N], weights [N] or None."""

    x_NF: np.ndarray
    y_N: np.ndarray
    weight_N: np.ndarray | None


class Matrix(Protocol):
    """The training rows' features, in batches, the same each time; a target of classes is the index of its class.

    The arrays belong to the matrix: read them, never write.
    """

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_features(self) -> int: ...
    @property
    def task(self) -> str: ...
    @property
    def num_classes(self) -> int | None: ...
    @property
    def origins(self) -> Mapping[str, str]:
        """The raw or derived column behind each feature."""
        ...

    def batches(self) -> Iterator[Rows]: ...


@dataclass(frozen=True)
class Dropped:
    """Why a feature is left out."""

    reason: str
    """In words, with the figure that decided."""
    value: float | None = None
    """That figure."""


class Selector(Protocol):
    """One step of `features.select`. Immutable; its parameters are its dataclass fields.

    A `check()` method, where there is one, is called when the project is read and raises ConfigError. The same matrix
    and seed give the same answer.
    """

    def select(self, matrix: Matrix, *, seed: int, threads: int) -> dict[str, Dropped]:
        """The features of `matrix` to leave out; those that stay are at least one."""
        ...


@dataclass(frozen=True)
class Step:
    """One selector of `features.select`, and the name by which it was asked for."""

    op: str
    selector: Selector


class Narrowed:
    """A matrix without some of its features."""

    def __init__(self, matrix: Matrix, kept: Sequence[str]) -> None:
        self._matrix = matrix
        place = {name: i for i, name in enumerate(matrix.names)}
        self._places = np.array([place[name] for name in kept], np.int64)
        self.names: Sequence[str] = list(kept)
        self.num_rows, self.num_features = matrix.num_rows, len(kept)
        self.task, self.num_classes = matrix.task, matrix.num_classes
        self.origins: Mapping[str, str] = {name: matrix.origins[name] for name in kept}

    def batches(self) -> Iterator[Rows]:
        for x_NF, y_N, weight_N in self._matrix.batches():
            yield Rows(np.ascontiguousarray(x_NF[:, self._places]), y_N, weight_N)


def step_of(table: Mapping[str, Any], path: str, where: str) -> Step:
    """The selector that a table of `op` and parameters names.

    Raises:
        NotFound: If it is not known; names those that are.
        ConfigError: If a parameter is not known or out of range; names its path.
    """
    op = table.get("op")
    if not isinstance(op, str):
        raise ConfigError(
            f"{path}: must be a selector's name or a table with op, got {dict(table)!r} ({where}); known: {', '.join(names('selector'))}"
        )
    try:
        struct = load("selector", op)
    except NotFound as error:
        raise NotFound("selector", error.name, error.known, hint=f"{path} ({where})") from None
    if not isinstance(struct, type) or not dataclasses.is_dataclass(struct) or not hasattr(struct, "select"):
        raise ConfigError(f"{path}: must be a selector, a frozen dataclass with select, got {op!r} ({where})")
    parameters = {key: value for key, value in table.items() if key != "op"}
    try:
        selector: Any = build(struct, parameters, path=path, where=where)
    except ConfigError as error:
        if error.message.startswith(path):
            raise
        raise ConfigError(f"{path}: {error.message} ({where})", hint=error.hint) from None
    return Step(op, selector)


def best(score_F: np.ndarray, count: int) -> np.ndarray:
    """Whether each feature is among the `count` of the highest score, bool [F]; of equal ones the earlier."""
    kept = np.zeros(len(score_F), bool)
    kept[np.argsort(-score_F, kind="stable")[:count]] = True
    return kept
