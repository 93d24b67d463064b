"""Logistic regression, binary and multinomial, by Newton's method over batches: every row counts, memory stays flat.

One pass over the rows gives the loss, its gradient and its whole Hessian; the step is the least point of the quadratic
that they make, penalties included (a proximal Newton step where `l1` is set, as in Friedman, Hastie and Tibshirani
2010), shortened where the loss would not fall. Started from the fit on a thin sample, a few passes do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from tidemill.models.export import softmax
from tidemill.models.quadratic import least

# Standardised features (N, F), class indices among those seen (N,), weights (N,) or None.
Chunk = tuple[np.ndarray, np.ndarray, np.ndarray | None]
Rows = Callable[[], Iterable[Chunk]]

# The fit ends when a step promises to lower the mean loss by less.
TOLERANCE = 1e-9

_SMALLEST_STEP = 1e-6


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """l1 |b| + l2 b'b / 2 over all coefficients; intercepts are free."""

    l1: float
    l2: float

    def of(self, b_SB: np.ndarray) -> float:
        coefficient_SF = b_SB[:, :-1]
        return float(self.l1 * np.abs(coefficient_SF).sum() + self.l2 / 2 * np.square(coefficient_SF).sum())


def start(share_K: np.ndarray, num_features: int) -> np.ndarray:
    """Coefficients (S, F + 1), the intercept last, that answer the share of each class: one row for two classes."""
    log_K = np.log(share_K)
    intercept_S = log_K[1:] - log_K[:1] if len(share_K) == 2 else log_K - log_K.mean()
    return np.concatenate([np.zeros((len(intercept_S), num_features)), intercept_S[:, None]], axis=1)


def newton(rows: Rows, b_SB: np.ndarray, *, penalty: Penalty, max_passes: int, tolerance: float = TOLERANCE) -> np.ndarray:
    """Coefficients (S, F + 1) with the least sum of weighted losses and penalty, from `b_SB` on.

    Args:
        rows: Gives the same rows each time it is called; called once for each pass.
        max_passes: The fit ends there, short of the optimum.
        tolerance: Promised fall of the mean loss below which the last step is taken and the fit ends.
    """
    free_U = np.zeros(b_SB.shape, bool)
    free_U[:, -1] = True
    passes, here = 1, _measure(rows, b_SB)
    value = here.loss + penalty.of(b_SB)
    while passes < max_passes:
        q_UU = here.hessian_UU + np.diag(np.where(free_U.ravel(), 0.0, penalty.l2))
        goal_U = least(q_UU, here.hessian_UU @ b_SB.ravel() - here.gradient_U, l1=penalty.l1, free_U=free_U.ravel())
        step_SB = goal_U.reshape(b_SB.shape) - b_SB
        promised = -float(here.gradient_U @ step_SB.ravel()) - penalty.of(b_SB + step_SB) + penalty.of(b_SB)
        if not promised > tolerance * here.weight:
            return b_SB + step_SB if promised > 0 else b_SB
        size = 1.0
        while passes < max_passes:
            there = _measure(rows, b_SB + size * step_SB)
            passes += 1
            reached = there.loss + penalty.of(b_SB + size * step_SB)
            if reached <= value - 1e-4 * size * promised:
                b_SB, here, value = b_SB + size * step_SB, there, reached
                break
            size /= 2
            if size < _SMALLEST_STEP:
                return b_SB
    return b_SB


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What one pass says about a place."""

    loss: float
    weight: float
    gradient_U: np.ndarray
    hessian_UU: np.ndarray


def _measure(rows: Rows, b_SB: np.ndarray) -> _Measured:
    scores, width = b_SB.shape
    loss, weight, gradient_SB, hessian_UU = 0.0, 0.0, np.zeros(b_SB.shape), np.zeros((b_SB.size,) * 2)
    for z_NF, y_N, weight_N in rows():
        share_N = np.ones(len(y_N)) if weight_N is None else weight_N
        z_NB = np.empty((len(z_NF), width))
        z_NB[:, :-1], z_NB[:, -1] = z_NF, 1.0
        odds_NS = z_NB @ b_SB.T
        weight += float(share_N.sum())
        if scores == 1:
            odds_N = odds_NS[:, 0]
            loss += float(share_N @ (np.logaddexp(0, odds_N) - y_N * odds_N))
            p_N = 1 / (1 + np.exp(-np.clip(odds_N, -700, 700)))
            gradient_SB += (share_N * (p_N - y_N)) @ z_NB
            z_NB *= np.sqrt(share_N * p_N * (1 - p_N))[:, None]
            hessian_UU += z_NB.T @ z_NB
            continue
        top_N = odds_NS.max(axis=1)
        own_N = odds_NS[np.arange(len(y_N)), y_N.astype(np.int64)]
        loss += float(share_N @ (top_N + np.log(np.exp(odds_NS - top_N[:, None]).sum(axis=1)) - own_N))
        p_NS = softmax(odds_NS)
        error_NS = p_NS.copy()
        error_NS[np.arange(len(y_N)), y_N.astype(np.int64)] -= 1
        gradient_SB += (share_N[:, None] * error_NS).T @ z_NB
        for k in range(scores):
            block = slice(k * width, (k + 1) * width)
            hessian_UU[block, block] += (z_NB * (share_N * p_NS[:, k])[:, None]).T @ z_NB
        mixed_NU = (p_NS[:, :, None] * z_NB[:, None, :]).reshape(len(y_N), -1) * np.sqrt(share_N)[:, None]
        hessian_UU -= mixed_NU.T @ mixed_NU
    return _Measured(loss=loss, weight=weight, gradient_U=gradient_SB.ravel(), hessian_UU=hessian_UU)
