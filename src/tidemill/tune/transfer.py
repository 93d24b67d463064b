"""Draws that learn from searches on other tables as well as from the trials at hand.

Each earlier search gives a Gaussian process over its trials. What they predict is averaged with weights: tables that are
alike count more, and from the third trial on those that rank the trials at hand as they really came (Feurer et al. 2018,
ranking-weighted ensembles). What the average gets wrong here is learnt by one more process over the trials at hand. The next
trial is the candidate with the highest sum of what is expected and what is not known (upper confidence bound); the first
few are chosen to cover the earlier tables together, as a portfolio.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidemill.tune.space import Dimension, Space
from tidemill.tune.trial import Trial

# The first trials after the project's own, drawn to cover the earlier tables; from then on ranks are compared.
COVERING = 3
# Random candidates, those around each of the best trials at hand, and how many of these.
CANDIDATES, NEIGHBOURS, CENTRES = 1200, 150, 3
STEP = 0.12
# How much an agreement of all pairs outweighs one of half of them, and what a distance of one takes away.
TRUST, NEARNESS = 6.0, 0.25
CURIOSITY = 0.7
# Trials of a search that a process is made of, and winners of it that become candidates.
MOST_TRIALS, WINNERS = 100, 8
LENGTH, NOISE = 0.35, 0.3


@dataclass(frozen=True)
class Process:
    """The mean of a Gaussian process with a Matern 5/2 kernel over the unit cube."""

    x_ND: np.ndarray
    alpha_N: np.ndarray
    length: float
    mean: float

    def predict(self, x_CD: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.mean + _kernel(x_CD, self.x_ND, self.length) @ self.alpha_N
        return found


@dataclass(frozen=True)
class Prior:
    """What earlier searches say, over the whole space of this one."""

    space: Space
    processes: Sequence[Process]
    nearness_T: np.ndarray
    """How much each table counts before anything is known of this one."""
    winners: Sequence[dict[str, Any]]
    """The best settings of each."""

    @classmethod
    def of(cls, space: Space, studies: Sequence[Mapping[str, Any]]) -> Prior:
        """The prior of earlier searches: `trials` ({"params", "value"}), `greater_is_better` and `distance` of their tables."""
        found = [(process, study) for study in studies if (process := _process_of(space, study)) is not None]
        distance_T = np.array([float(study.get("distance", 0.0)) for _, study in found])
        winners = [winner for _, study in found for winner in _winners(space, study)]
        return cls(space, [process for process, _ in found], np.exp(-NEARNESS * distance_T), winners)


def propose(prior: Prior, space: Space, trials: Sequence[Trial], *, number: int, seed: int, greater_is_better: bool) -> dict[str, Any]:
    """Parameters by path of trial `number`, inside `space`, which may be narrower than the prior's.

    Args:
        trials: Those that ended, and those that run, which count as middling.
    """
    rng = np.random.default_rng(zlib.crc32(f"{seed}/{number}/transfer".encode()))
    here = _scored(prior.space, trials, greater_is_better)
    x_ND, y_N = _cube(prior.space, [params for params, _ in here]), np.array([score for _, score in here])
    candidates = _candidates(prior, space, here, rng)
    x_CD = _cube(prior.space, candidates)
    there_TC = np.array([process.predict(x_CD) for process in prior.processes]).reshape(len(prior.processes), len(candidates))
    there_TN = np.array([process.predict(x_ND) for process in prior.processes]).reshape(len(prior.processes), len(here))
    weight_T = prior.nearness_T
    if len(here) <= COVERING and len(weight_T):
        reached_T = there_TN.max(axis=1, initial=-1.0)
        score_C = weight_T @ np.maximum(there_TC, reached_T[:, None])
    else:
        weight_T = weight_T * np.exp(TRUST * _agreement(there_TN, y_N))
        weight_T = weight_T / max(weight_T.sum(), 1e-300)
        score_C = _expected(weight_T @ there_TN, weight_T @ there_TC, x_ND, x_CD, y_N)
    if here:
        score_C = np.where((_distances(x_CD, x_ND) > 1e-6).all(axis=1), score_C, -np.inf)
    return candidates[int(np.argmax(score_C))]


def _scored(space: Space, trials: Sequence[Trial], greater_is_better: bool) -> list[tuple[dict[str, Any], float]]:
    """Parameters and scores, more is better: 1 the best, 0 the median. What was stopped counts as below, what runs as middling."""
    sign = 1.0 if greater_is_better else -1.0
    inside = [trial for trial in trials if space.holds(trial.params)]
    values = np.array([sign * (trial.value or 0.0) for trial in inside if trial.value is not None])
    scale = _scale(values)
    by_state = {"pruned": -0.5, "running": 0.0}
    return [(trial.params, by_state[trial.state] if trial.value is None else float(scale(sign * trial.value))) for trial in inside]


def _scale(values_N: np.ndarray) -> Any:
    """From a value to its score among others."""
    if not len(values_N):
        return lambda value: 0.0
    middle, best = float(np.median(values_N)), float(values_N.max())
    span = best - middle if best > middle else 1.0
    return lambda value: np.clip((value - middle) / span, -2.0, 1.0)


def _process_of(space: Space, study: Mapping[str, Any]) -> Process | None:
    """The process over an earlier search's trials that have every parameter of the space; None where there are too few."""
    sign = 1.0 if study["greater_is_better"] else -1.0
    usable = [trial for trial in study["trials"] if all(dimension.path in trial["params"] for dimension in space.dimensions)][:MOST_TRIALS]
    if len(usable) < COVERING + 1:
        return None
    values_N = sign * np.array([trial["value"] for trial in usable], np.float64)
    y_N = np.asarray(_scale(values_N)(values_N), np.float64)
    x_ND = _cube(space, [trial["params"] for trial in usable])
    mean = float(y_N.mean())
    best = (-math.inf, LENGTH, np.zeros(len(y_N)))
    for length in (0.3, 0.6, 1.2):
        kernel_NN = _kernel(x_ND, x_ND, length)
        for noise in (0.05, 0.3, 1.0):
            factor_NN = np.linalg.cholesky(kernel_NN + noise * np.eye(len(y_N)))
            alpha_N = np.linalg.solve(factor_NN.T, np.linalg.solve(factor_NN, y_N - mean))
            scale = max(1e-9, float((y_N - mean) @ alpha_N) / len(y_N))
            likelihood = -0.5 * len(y_N) * math.log(scale) - float(np.log(np.diag(factor_NN)).sum())
            best = max(best, (likelihood, length, alpha_N), key=lambda found: found[0])
    return Process(x_ND, best[2], best[1], mean)


def _expected(there_N: np.ndarray, there_C: np.ndarray, x_ND: np.ndarray, x_CD: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """The score of each candidate: what others say, brought to the scale of here, what they get wrong here, and what is not known."""
    if not len(y_N):
        return there_C
    slope = 0.0
    if len(y_N) > COVERING and there_N.std() > 1e-9:
        slope = max(0.0, float(np.cov(there_N, y_N, bias=True)[0, 1] / there_N.var()))
    level = float(y_N.mean() - slope * there_N.mean())
    kernel_NN = _kernel(x_ND, x_ND, LENGTH) + NOISE * np.eye(len(y_N))
    kernel_CN = _kernel(x_CD, x_ND, LENGTH)
    solved_NC = np.linalg.solve(kernel_NN, kernel_CN.T)
    expected_C = level + slope * there_C + solved_NC.T @ (y_N - level - slope * there_N)
    unknown_C = np.sqrt(np.maximum(1.0 - (kernel_CN * solved_NC.T).sum(axis=1), 0.0))
    found: np.ndarray = expected_C + CURIOSITY * float(y_N.std()) * unknown_C
    return found


def _agreement(there_TN: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """For each earlier table, how many pairs of trials it ranks as they came, in -1..1."""
    first, second = np.triu_indices(len(y_N), k=1)
    here_P = np.sign(y_N[first] - y_N[second])
    found: np.ndarray = (np.sign(there_TN[:, first] - there_TN[:, second]) * here_P).sum(axis=1) / max(1, len(first))
    return found


def _candidates(prior: Prior, space: Space, here: Sequence[tuple[dict[str, Any], float]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Winners of earlier searches, settings at random, and neighbours of the best at hand."""
    found = [{**space.fixed, **space.within(winner)} for winner in prior.winners]
    places = list(rng.random((CANDIDATES, len(space.dimensions))))
    for params, _ in sorted(here, key=lambda entry: -entry[1])[:CENTRES]:
        centre_D = np.array([_place(dimension, params[dimension.path]) for dimension in space.dimensions])
        places += list(np.clip(centre_D + rng.normal(0.0, STEP, (NEIGHBOURS, len(centre_D))), 0.0, 1.0))
    return found + [_params(space, place_D) for place_D in places]


def _winners(space: Space, study: Mapping[str, Any]) -> list[dict[str, Any]]:
    sign = -1.0 if study["greater_is_better"] else 1.0
    best = [space.within(trial["params"]) for trial in sorted(study["trials"], key=lambda trial: sign * trial["value"])[:WINNERS]]
    return [params for params in best if len(params) == len(space.dimensions)]


def _params(space: Space, place_D: np.ndarray) -> dict[str, Any]:
    return {**space.fixed, **{d.path: _value(d, float(place)) for d, place in zip(space.dimensions, place_D, strict=True)}}


def _cube(space: Space, settings: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Settings as points of the unit cube, shape (N, D)."""
    points = [[_place(dimension, params[dimension.path]) for dimension in space.dimensions] for params in settings]
    return np.array(points, np.float64).reshape(len(settings), len(space.dimensions))


def _place(dimension: Dimension, value: Any) -> float:
    """Where a value lies in its dimension, 0..1; a little outside where it was allowed more elsewhere."""
    if dimension.kind == "choice":
        return (dimension.choices.index(value) + 0.5) / len(dimension.choices) if value in dimension.choices else 0.5
    low, high = float(dimension.low), float(dimension.high)
    if dimension.kind == "log_float":
        low, high, value = math.log(low), math.log(high), math.log(max(float(value), 1e-300))
    return min(max((float(value) - low) / (high - low), -0.5), 1.5) if high > low else 0.5


def _value(dimension: Dimension, place: float) -> Any:
    """The value at a place, the other way round."""
    if dimension.kind == "choice":
        return dimension.choices[min(int(place * len(dimension.choices)), len(dimension.choices) - 1)]
    low, high = float(dimension.low), float(dimension.high)
    if dimension.kind == "log_float":
        return min(max(math.exp(math.log(low) + place * (math.log(high) - math.log(low))), low), high)
    if dimension.kind == "int":
        return min(int(low + place * (high - low + 1)), int(high))
    return low + place * (high - low)


def _kernel(a_AD: np.ndarray, b_BD: np.ndarray, length: float) -> np.ndarray:
    scaled_AB = math.sqrt(5) * _distances(a_AD, b_BD) / length
    found: np.ndarray = (1 + scaled_AB + scaled_AB**2 / 3) * np.exp(-scaled_AB)
    return found


def _distances(a_AD: np.ndarray, b_BD: np.ndarray) -> np.ndarray:
    squares_AB = (a_AD**2).sum(1)[:, None] + (b_BD**2).sum(1)[None, :] - 2 * a_AD @ b_BD.T
    found: np.ndarray = np.sqrt(np.maximum(squares_AB, 0.0))
    return found
