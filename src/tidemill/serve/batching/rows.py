"""Rows of callers as what can be put together: arrays by input, or a list with one prepared value a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tidemill.core.graph import Arrays
from tidemill.core.package import Answers
from tidemill.serve.model import Model

Rows = list[Any] | Arrays


def prepared(model: Model, inputs: Arrays) -> Rows:
    """Inputs as the model's queue takes them: texts as their tokens, anything else as it is."""
    rows = model.predictor.prepare(inputs)
    return inputs if rows is None else rows


def sizes(model: Model, rows: Rows) -> list[int]:
    """What each row costs: the tokens of a text, else 1."""
    if isinstance(rows, list):
        return model.predictor.prepared_sizes(rows) if model.reader is None else [1] * len(rows)
    return [1] * len(next(iter(rows.values())))


def taken(rows: Rows, index: Sequence[int]) -> Rows:
    """Some of the rows."""
    if isinstance(rows, list):
        return [rows[i] for i in index]
    return {name: array[index] for name, array in rows.items()}


def answer(model: Model, parts: Sequence[Rows], *, alone: bool = True) -> Answers:
    """Answers for all rows of the parts, in their order, by one run of the model.

    Args:
        alone: Whether no other run of the model is likely to go on meanwhile.
    """
    lists = [part for part in parts if isinstance(part, list)]
    if len(lists) == len(parts):
        return model.answer_values([row for part in lists for row in part], alone=alone)
    arrays = [_inputs(model, part) for part in parts]
    return model.answer(arrays[0] if len(arrays) == 1 else {name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]})


def _inputs(model: Model, rows: Rows) -> Arrays:
    if isinstance(rows, dict):
        return rows
    if model.reader is None:
        raise TypeError("prepared rows go with prepared rows")
    return model.reader.inputs(rows)
