"""How answers of several models become one: shares that sum to 1, or a small linear model over them.

Both look at few numbers for each row, M answers of K classes each, so that they are solved exactly: shares of
probabilities by expectation maximisation (the mixture whose likelihood is greatest), everything else by Newton's method,
projected to weights of at least 0 where asked (Bertsekas 1982).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Least probability that counts: what is below it, float32 does not tell from 0 beside others.
LEAST = 1e-7

# Pull of the stacking weights to equal ones, as of so many rows.
_PRIOR_ROWS = 1.0
_ITERATIONS = 200
_TOLERANCE = 1e-10


def shares(answer_NMK: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray | None = None) -> np.ndarray:
    """The shares of M answers, >= 0 with sum 1, whose mean loses least: log loss of classes, squared error of numbers.

    Args:
        answer_NMK: Probabilities of K classes by each of M models, or predictions with K = 1.
        y_N: Class indices, or values.
        weight_N: Weights of rows, >= 0.
    """
    weight_N = np.ones(len(y_N)) if weight_N is None else weight_N
    num_models = answer_NMK.shape[1]
    if answer_NMK.shape[2] > 1:
        true_NM = np.clip(answer_NMK[np.arange(len(y_N)), :, y_N.astype(np.int64)], LEAST, 1.0)
        share_M = np.full(num_models, 1 / num_models)
        for _ in range(_ITERATIONS * 10):
            taken_NM = true_NM * share_M
            before_M, share_M = share_M, weight_N @ (taken_NM / taken_NM.sum(axis=1, keepdims=True)) / weight_N.sum()
            if np.abs(share_M - before_M).max() < 1e-7:
                break
        return np.asarray(share_M / share_M.sum())
    error_NM = answer_NMK[:, :, 0] - y_N[:, None]  # of a mean with shares that sum to 1 the error is the mean of the errors
    gram_MM = (error_NM * weight_N[:, None]).T @ error_NM / weight_N.sum()
    sum_to_one = 1e6 * (np.trace(gram_MM) + 1e-30) * np.ones((num_models, num_models))
    gram_MM = gram_MM + 1e-9 * np.trace(gram_MM) * np.eye(num_models)

    def loss(share_M: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        hessian = gram_MM + sum_to_one
        gradient = hessian @ share_M - sum_to_one[0]
        return float(share_M @ gram_MM @ share_M + sum_to_one[0, 0] * (share_M.sum() - 1) ** 2) / 2, gradient, hessian

    share_M = newton(loss, np.full(num_models, 1 / num_models), bounded=num_models)
    return np.asarray(share_M / share_M.sum())


def stack(
    level_NMK: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray | None = None, *, classes: bool, non_negative: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (M,) and offsets (K,) of the linear model over what M models say.

    Logistic for classes, whose scores are the weighted sums of log probabilities; least squares for numbers. Weights are
    pulled a little to equal ones.

    Args:
        level_NMK: Log probabilities of K classes by each of M models, or predictions with K = 1.
        y_N: Class indices, or values.
        weight_N: Weights of rows, >= 0.
    """
    num_models, num_outputs = level_NMK.shape[1:]
    weight_N = np.ones(len(y_N)) if weight_N is None else weight_N
    weight_N = weight_N / weight_N.sum()
    middle, scale = 0.0, 1.0
    if not classes:  # centred and in the target's own scale, so that one pull fits all targets
        middle, scale = float(weight_N @ y_N), float(np.sqrt(weight_N @ np.square(y_N - weight_N @ y_N))) or 1.0
        level_NMK, y_N = (level_NMK - middle) / scale, (y_N - middle) / scale
    # Offsets are free; the little is for classes, of whose offsets only the differences count.
    pull = np.concatenate([np.full(num_models, _PRIOR_ROWS / len(y_N)), np.full(num_outputs, 1e-9)])
    equal = np.concatenate([np.full(num_models, 1 / num_models), np.zeros(num_outputs)])

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        value, gradient, hessian = (_softmax_loss if classes else _squared_loss)(level_NMK, y_N, weight_N, theta)
        away = theta - equal
        return value + float(pull @ np.square(away)) / 2, gradient + pull * away, hessian + np.diag(pull)

    theta = newton(loss, equal, bounded=num_models if non_negative else 0)
    weight_M, offset_K = theta[:num_models], theta[num_models:]
    if not classes:
        offset_K = middle + scale * offset_K - weight_M.sum() * middle
    return weight_M, offset_K


def newton(loss: Callable[[np.ndarray], tuple[float, np.ndarray, np.ndarray]], start: np.ndarray, *, bounded: int = 0) -> np.ndarray:
    """Where a convex loss is least, its first `bounded` arguments being at least 0.

    Args:
        loss: Value, gradient and Hessian at a point.
    """
    theta = start.copy()
    held = np.arange(len(theta)) < bounded
    value, gradient, hessian = loss(theta)
    for _ in range(_ITERATIONS):
        free = ~(held & (theta <= 0) & (gradient > 0))
        step = np.zeros_like(theta)
        step[free] = np.linalg.solve(hessian[np.ix_(free, free)], gradient[free])
        size = 1.0
        while True:
            trial = theta - size * step
            trial[held] = np.maximum(trial[held], 0.0)
            found = loss(trial)
            if found[0] <= value - 1e-4 * float(gradient @ (theta - trial)) or size < 1e-12:
                break
            size /= 2
        gained = value - found[0]
        if gained > 0:
            theta, (value, gradient, hessian) = trial, found
        if gained <= _TOLERANCE * (1 + abs(value)):
            break
    return theta


def _softmax_loss(level_NMK: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray, theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    num_models = level_NMK.shape[1]
    score_NK = np.einsum("nmk,m->nk", level_NMK, theta[:num_models]) + theta[num_models:]
    score_NK = score_NK - score_NK.max(axis=1, keepdims=True)
    log_p_NK = score_NK - np.log(np.exp(score_NK).sum(axis=1, keepdims=True))
    p_NK = np.exp(log_p_NK)
    place_N = y_N.astype(np.int64)
    value = -float(weight_N @ log_p_NK[np.arange(len(y_N)), place_N])
    away_NK = p_NK * weight_N[:, None]
    share_NK = away_NK.copy()
    away_NK[np.arange(len(y_N)), place_N] -= weight_N
    gradient = np.concatenate([np.einsum("nk,nmk->m", away_NK, level_NMK), away_NK.sum(axis=0)])
    mean_NM = np.einsum("nk,nmk->nm", p_NK, level_NMK)
    centred_NMK = level_NMK - mean_NM[:, :, None]
    upper = np.einsum("nk,nmk,nlk->ml", share_NK, centred_NMK, level_NMK)
    side = np.einsum("nk,nmk->mk", share_NK, centred_NMK)
    lower = np.diag(share_NK.sum(axis=0)) - share_NK.T @ p_NK
    return value, gradient, np.block([[upper, side], [side.T, lower]])


def _squared_loss(level_NMK: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray, theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    design_ND = np.column_stack([level_NMK[:, :, 0], np.ones(len(y_N))])
    error_N = design_ND @ theta - y_N
    weighted_ND = design_ND * weight_N[:, None]
    return float(weight_N @ np.square(error_N)) / 2, weighted_ND.T @ error_N, weighted_ND.T @ design_ND
