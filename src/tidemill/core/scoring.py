"""The mathematics of the metrics: from true values and predictions to a scorer of weighted rows.

Each metric here takes checked `y` and `p` (see `metrics`), does once what does not depend on weights (comparing labels,
sorting scores) and returns a scorer: from weightings of the rows, shape (R, N), to a value for each, shape (R,). A value
that the weighted rows leave undefined is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.core.errors import DataError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Scorer = Callable[[Floats], Floats]
Prepare = Callable[[Array, Array], Scorer]

ECE_BINS = 15


def predicted_class(p: Array) -> npt.NDArray[np.int64]:
    """The most probable class; the lower one where two are equal, so binary class 1 needs more than 0.5."""
    return np.argmax(p, axis=1) if p.ndim == 2 else (p > 0.5).astype(np.int64)


def confidence(y: Array, p: Array) -> tuple[Floats, Floats]:
    """What was claimed and whether it held: of class 1 for binary, of the most probable class for multiclass; each (N,)."""
    if p.ndim == 1:
        return p.astype(np.float64), y.astype(np.float64)
    return p.max(axis=1).astype(np.float64), _correct(y, p)


# ---- functions of weighted sums over the rows ----


def of_sums(terms: Callable[[Array, Array], Floats], finish: Callable[[Floats], Floats]) -> Prepare:
    """A metric computed from the weighted sums of its rows' terms, shape (N, S)."""

    def prepare(y: Array, p: Array) -> Scorer:
        terms_NS = terms(y, p)
        return lambda weight_RN: finish(weight_RN @ terms_NS)

    return prepare


def mean_of(term: Callable[[Array, Array], Floats]) -> Prepare:
    """A metric that is the weighted mean of a term over the rows; a NaN term leaves its row out."""

    def terms(y: Array, p: Array) -> Floats:
        term_N = term(y, p)
        return np.column_stack([np.nan_to_num(term_N), ~np.isnan(term_N)])

    return of_sums(terms, lambda sums_RS: _ratio(sums_RS[:, 0], sums_RS[:, 1]))


def _correct(y: Array, p: Array) -> Floats:
    return np.equal(predicted_class(p), y).astype(np.float64)


accuracy = mean_of(_correct)


def _log_loss(y: Array, p: Array) -> Floats:
    """Minus the log of the true class's probability, clipped to the resolution of its type."""
    p = _probabilities(p)
    true_N = p[np.arange(len(y)), y] if p.ndim == 2 else np.where(y == 1, p, 1 - p)
    epsilon = np.finfo(p.dtype).eps
    loss: Floats = -np.log(np.clip(true_N, epsilon, 1 - epsilon).astype(np.float64))
    return loss


log_loss = mean_of(_log_loss)


def _brier(y: Array, p: Array) -> Floats:
    """Squared distance of the probabilities from the truth; summed over classes for multiclass (Brier 1950)."""
    p = _probabilities(p).astype(np.float64)
    truth = y if p.ndim == 1 else np.eye(p.shape[1])[y]
    square: Floats = np.square(p - truth)
    return square if p.ndim == 1 else square.sum(axis=1)


brier = mean_of(_brier)


def ece(y: Array, p: Array) -> Scorer:
    """Distance of observed from predicted in bins of equal width, weighted by each bin's share (Guo et al. 2017)."""
    confidence_N, gap_N = confidence(y, _probabilities(p))
    gap_N -= confidence_N
    bin_N = np.minimum((confidence_N * ECE_BINS).astype(np.int64), ECE_BINS - 1)

    def score(weight_RN: Floats) -> Floats:
        gap_RB = np.stack([np.bincount(bin_N, weight_N * gap_N, ECE_BINS) for weight_N in weight_RN])
        return _ratio(np.abs(gap_RB).sum(axis=1), weight_RN.sum(axis=1))

    return score


def _class_sums(y: Array, p: Array) -> Floats:
    """For each class, whether the row is a hit, predicted, and actual; shape (N, 3K)."""
    classes = np.arange(p.shape[1] if p.ndim == 2 else 2)
    predicted_NK, actual_NK = predicted_class(p)[:, None] == classes, y[:, None] == classes
    return np.concatenate([predicted_NK & actual_NK, predicted_NK, actual_NK], axis=1).astype(np.float64)


def _of_classes(finish: Callable[[Floats, Floats, Floats], Floats]) -> Prepare:
    """A metric computed from the hits, predicted and actual weight of each class, each (R, K)."""
    return of_sums(_class_sums, lambda sums_RS: finish(*np.split(sums_RS, 3, axis=1)))


# Nothing predicted is 0, the model's doing; recall without positives is NaN, the data's.
precision = _of_classes(lambda hits, predicted, _: np.nan_to_num(_ratio(hits, predicted)[:, 1]))
recall = _of_classes(lambda hits, _, actual: _ratio(hits, actual)[:, 1])
balanced_accuracy = _of_classes(lambda hits, _, actual: _mean_defined(_ratio(hits, actual)))


def _f1(hits_RK: Floats, predicted_RK: Floats, actual_RK: Floats) -> Floats:
    """Of class 1 for binary; for multiclass the plain mean over the classes that are present or predicted."""
    f1_RK = _ratio(2 * hits_RK, predicted_RK + actual_RK)
    return f1_RK[:, 1] if f1_RK.shape[1] == 2 else _mean_defined(f1_RK)


f1 = _of_classes(_f1)

mse = mean_of(lambda y, p: np.square(y - p))
mae = mean_of(lambda y, p: np.abs(y - p))
# A row whose true value is 0 has no relative error and is left out.
mape = mean_of(lambda y, p: np.where(y == 0, np.nan, np.abs(y - p) / np.where(y == 0, 1, np.abs(y))))


def rmse(y: Array, p: Array) -> Scorer:
    """Square root of the mean squared error."""
    mean = mse(y, p)
    return lambda weight_RN: np.sqrt(mean(weight_RN))


def _squares(y: Array, p: Array) -> Floats:
    """What R2 is made of: squared residual; value and squared value about the middle, for precision; 1."""
    centred_N = y - y.mean()
    return np.column_stack([np.square(y - p), centred_N, np.square(centred_N), np.ones(len(y))])


def _r2(sums_RS: Floats) -> Floats:
    residual_R, value_R, square_R, weight_R = sums_RS.T
    spread_R = square_R - _ratio(np.square(value_R), weight_R)
    return 1 - _ratio(residual_R, np.where(spread_R > 1e-12 * square_R, spread_R, 0))


r2 = of_sums(_squares, _r2)


# ---- functions of the order of the scores: sorted once, ties exact ----


def roc_auc(y: Array, p: Array) -> Scorer:
    """Area under the ROC curve; for multiclass the plain mean of one-vs-rest over the classes that are present."""
    if p.ndim == 1:
        return _area(y == 1, p)
    areas = [_area(y == k, p[:, k]) for k in range(p.shape[1])]
    return lambda weight_RN: _mean_defined(np.stack([area(weight_RN) for area in areas], axis=1))


def _area(positive_N: Array, score_N: Array) -> Scorer:
    """Share of positive-negative pairs in the right order, a tie being half (Mann and Whitney 1947)."""
    order = np.argsort(score_N, kind="stable")
    negative, positive = order[~positive_N[order]], order[positive_N[order]]
    below = np.searchsorted(score_N[negative], score_N[positive], side="left")
    up_to = np.searchsorted(score_N[negative], score_N[positive], side="right")
    ties = bool((below != up_to).any())

    def score(weight_RN: Floats) -> Floats:
        before_RN = np.zeros((len(weight_RN), len(negative) + 1))
        np.cumsum(weight_RN.take(negative, axis=1), axis=1, out=before_RN[:, 1:])
        positive_RP = weight_RN.take(positive, axis=1)
        won_R = np.einsum("rp,rp->r", positive_RP, before_RN.take(below, axis=1))
        if ties:
            won_R = (won_R + np.einsum("rp,rp->r", positive_RP, before_RN.take(up_to, axis=1))) / 2
        return _ratio(won_R, positive_RP.sum(axis=1) * before_RN[:, -1])

    return score


def average_precision(y: Array, p: Array) -> Scorer:
    """Precision at each distinct threshold, weighted by the recall that it adds; no interpolation."""
    order = np.argsort(-p, kind="stable")
    positive_N = y[order] == 1
    last = np.searchsorted(-p[order], -p[order][positive_N], side="right") - 1

    def score(weight_RN: Floats) -> Floats:
        sorted_RN = weight_RN.take(order, axis=1)
        found_RN, taken_RN = np.cumsum(sorted_RN * positive_N, axis=1), np.cumsum(sorted_RN, axis=1)
        precision_RP = np.nan_to_num(_ratio(found_RN.take(last, axis=1), taken_RN.take(last, axis=1)))
        return _ratio((sorted_RN[:, positive_N] * precision_RP).sum(axis=1), found_RN[:, -1])

    return score


def ks(y: Array, p: Array) -> Scorer:
    """Largest distance between the score distributions of the two classes."""
    order = np.argsort(p, kind="stable")
    positive_N = y[order] == 1
    ends = np.flatnonzero(np.append(np.diff(p[order]) != 0, True))

    def score(weight_RN: Floats) -> Floats:
        sorted_RN = weight_RN.take(order, axis=1)
        positive_RN, negative_RN = np.cumsum(sorted_RN * positive_N, axis=1), np.cumsum(sorted_RN * ~positive_N, axis=1)
        gap_RE = _ratio(positive_RN[:, ends], positive_RN[:, -1:]) - _ratio(negative_RN[:, ends], negative_RN[:, -1:])
        largest_R: Floats = np.abs(gap_RE).max(axis=1)
        return largest_R

    return score


def median_error(y: Array, p: Array) -> Scorer:
    """Weighted median of the absolute error; midway where half the weight lies on either side."""
    error_N: Floats = np.sort(np.abs(y - p))
    order = np.argsort(np.abs(y - p), kind="stable")

    def score(weight_RN: Floats) -> Floats:
        below_RN = np.cumsum(weight_RN.take(order, axis=1), axis=1)
        half_R1 = below_RN[:, -1:] / 2
        low_R, high_R = (below_RN < half_R1).sum(axis=1), (below_RN <= half_R1).sum(axis=1)
        middle_R: Floats = (error_N[low_R] + error_N[high_R]) / 2
        return middle_R

    return score


def _probabilities(p: Array) -> Array:
    if p.min() < 0 or p.max() > 1:
        raise DataError(f"p must be probabilities in 0..1 for this metric, got {float(p.min()):g} to {float(p.max()):g}")
    return p


def _ratio(above: Array, below: Array) -> Floats:
    """`above / below`, NaN where `below` is 0."""
    out: Floats = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan)
    return np.divide(above, below, out=out, where=below != 0)


def _mean_defined(values_RK: Floats) -> Floats:
    """Mean of each row over what is not NaN; NaN where nothing is."""
    defined_RK = ~np.isnan(values_RK)
    return _ratio(np.where(defined_RK, values_RK, 0).sum(axis=1), defined_RK.sum(axis=1))
