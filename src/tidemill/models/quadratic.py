"""The least point of a quadratic with an absolute penalty: what every linear fit comes down to."""

from __future__ import annotations

import warnings

import numpy as np

from tidemill.core.load import need

# Directions whose curvature is this much less than the steepest's are rounding: the features there repeat each other.
RANK = 1e-12

_SWEEPS = 10_000


def least(q_UU: np.ndarray, c_U: np.ndarray, *, l1: float = 0.0, free_U: np.ndarray | None = None) -> np.ndarray:
    """The b that minimises b'Qb / 2 - c'b + l1 |b|, the shortest one where several do and l1 is 0.

    Args:
        q_UU: Symmetric, no negative eigenvalue.
        l1: Penalty on the absolute values.
        free_U: True for those that are not penalised at all.
    """
    held_U = np.ones(len(c_U), bool) if free_U is None else ~free_U
    b_U = np.zeros(len(c_U))
    # Whatever the penalised ones are, the free ones follow: they are solved for and put in.
    inverse, cross = _pseudo_inverse(q_UU[~held_U][:, ~held_U]), q_UU[~held_U][:, held_U]
    q_PP = q_UU[held_U][:, held_U] - cross.T @ inverse @ cross
    c_P = c_U[held_U] - cross.T @ inverse @ c_U[~held_U]
    b_U[held_U] = _lasso(q_PP, c_P, l1) if l1 > 0 else _pseudo_inverse(q_PP) @ c_P
    b_U[~held_U] = inverse @ (c_U[~held_U] - cross @ b_U[held_U])
    return b_U


def _lasso(q_PP: np.ndarray, c_P: np.ndarray, l1: float) -> np.ndarray:
    """Coordinate descent finds which are not 0 and their signs; those are then solved for exactly."""
    values_P, vectors_PP = np.linalg.eigh(q_PP)
    kept_P = values_P > RANK * max(values_P[-1], 0.0)
    if not kept_P.any():
        return np.zeros(len(c_P))
    # As few rows as there are unknowns that give the same quadratic: any solver for rows will do.
    root_PP = np.sqrt(values_P[kept_P])[:, None] * vectors_PP[:, kept_P].T
    target_P = (vectors_PP[:, kept_P].T @ c_P) / np.sqrt(values_P[kept_P])
    linear_model = need("sklearn.linear_model", "model.kind linear")
    solver = linear_model.Lasso(alpha=l1 / len(root_PP), fit_intercept=False, tol=1e-10, max_iter=_SWEEPS)
    with warnings.catch_warnings():
        # Not quite there is near enough: what it lacks is made up below, or by the next step.
        warnings.simplefilter("ignore", need("sklearn.exceptions", "model.kind linear").ConvergenceWarning)
        b_P = np.array(solver.fit(root_PP, target_P).coef_, np.float64)
    active_P = b_P != 0
    exact_A = _pseudo_inverse(q_PP[active_P][:, active_P]) @ (c_P[active_P] - l1 * np.sign(b_P[active_P]))
    if (np.sign(exact_A) == np.sign(b_P[active_P])).all():
        b_P[active_P] = exact_A
    return b_P


def _pseudo_inverse(q_UU: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.pinv(q_UU, rcond=RANK, hermitian=True))
