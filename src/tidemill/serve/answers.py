"""Predictions as what a caller reads: values by row, tensors, Arrow columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from tidemill.core.package import Answers, Package

# Class names that mean a sentiment; a text package with two or more of them and no other answers with that word.
_SENTIMENTS = {"positive", "negative", "neutral"}


class AnswerForm:
    """How one package's answers are written. Immutable, safe from several threads.

    With classes: `prediction` is the label, `probability` that of the second class where there are two, else an object
    by class. Text packages with classes add `sentiment` and `confidence`, or `label` and `score`. Without classes:
    `prediction` is a number, or a list of numbers for an embedding; with an interval, `interval` is low and high.
    """

    def __init__(self, package: Package) -> None:
        self.classes = package.classes
        self.labels = [label_text(label) for label in package.classes or ()]
        self.words = _text_words(self.labels) if package.kind == "text" and self.labels else None
        self.interval = package.interval
        self._binary = len(self.labels) == 2

    @property
    def fields(self) -> list[str]:
        """Names of one row's fields, in order."""
        more = ["probability"] if self.labels else [] if self.interval is None else ["interval"]
        return [*(self.words or ()), "prediction", *more]

    def rows(self, answers: Answers) -> list[dict[str, Any]]:
        """One mapping a row, of plain values."""
        predictions = _flat(answers.prediction).tolist()
        if answers.interval is not None:
            return [{"prediction": p, "interval": ends} for p, ends in zip(predictions, answers.interval.tolist(), strict=True)]
        if answers.probability is None:
            return [{"prediction": value} for value in predictions]
        probabilities = self.probabilities(answers.probability)
        if self.words is None:
            return [{"prediction": p, "probability": q} for p, q in zip(predictions, probabilities, strict=True)]
        word, degree = self.words
        best = answers.probability.max(axis=1).tolist()
        return [
            {word: str(p), degree: b, "prediction": p, "probability": q}
            for p, q, b in zip(predictions, probabilities, best, strict=True)
        ]  # fmt: skip

    def probabilities(self, probability_NK: np.ndarray) -> list[Any]:
        """By row: a number where there are two classes, else an object by class."""
        if self._binary:
            return list(probability_NK[:, 1].tolist())
        return [dict(zip(self.labels, row, strict=True)) for row in probability_NK.tolist()]

    def columns(self, answers: Answers) -> dict[str, np.ndarray]:
        """Arrays by column name, as batch prediction writes them."""
        made = {"prediction": _flat(answers.prediction)}
        if answers.interval is not None:
            made |= {f"prediction_{end}": answers.interval[:, i] for i, end in enumerate(("low", "high"))}
        if answers.probability is not None:
            if self._binary:
                made["probability"] = answers.probability[:, 1]
            else:
                made |= {f"probability_{label}": answers.probability[:, k] for k, label in enumerate(self.labels)}
        return made


def label_text(label: Any) -> str:
    """A class label as a key: `true` and `false` for booleans, as JSON has them."""
    return str(label).lower() if isinstance(label, bool) else str(label)


def _text_words(labels: list[str]) -> tuple[str, str]:
    known = {label.lower() for label in labels}
    return ("sentiment", "confidence") if {"positive", "negative"} <= known <= _SENTIMENTS else ("label", "score")


def _flat(prediction: np.ndarray) -> np.ndarray:
    """[N] for one value a row; a matrix of several values a row stays."""
    return prediction[:, 0] if prediction.ndim == 2 and prediction.shape[1] == 1 else prediction
