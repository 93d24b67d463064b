"""The parameters of the next trial, drawn by Optuna from the trials that it may look at.

Nothing is remembered between draws: each makes a study in memory of the trials given, with a sampler seeded by the search's
seed and the trial's number. So a trial depends on the trials before it and on nothing else, in whichever process.
"""

from __future__ import annotations

import random
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.core.load import need
from tidemill.tune.space import Dimension, Space
from tidemill.tune.trial import Trial

# Trials that must have ended before a sampler learns; those before are drawn at random.
STARTUP_TRIALS = 8

_PURPOSE = "tuning"


def draw(
    space: Space, trials: Sequence[Trial], *, number: int, sampler: str, seed: int, start: Mapping[str, Any], greater_is_better: bool
) -> dict[str, Any]:
    """Parameters by path of trial `number`.

    Args:
        trials: Those that ended, and those that run, which a sampler keeps away from.
        start: Values that are taken instead of drawn, where the space holds them.

    Raises:
        MissingDependency: If the sampler needs a library that is not installed.
    """
    if sampler == "grid":
        return grid(space, seed)[number]
    optuna = need("optuna", _PURPOSE)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(
            direction="maximize" if greater_is_better else "minimize",
            sampler=_sampler(optuna, sampler, f"{seed}/{number}", conditional=any(d.when for d in space.dimensions)),
        )
        if sampler != "random":
            study.add_trials([_frozen(optuna, space, trial, greater_is_better) for trial in trials if space.holds(trial.params)])
        asked = study.ask()
        params = dict(space.fixed)
        for dimension in space.walk(params):
            value = start.get(dimension.path)
            params[dimension.path] = value if dimension.holds(value) else _suggested(asked, dimension)
    return params


def grid(space: Space, seed: int) -> list[dict[str, Any]]:
    """Every combination of a space, in a seeded order, so that the first ones are spread over it."""
    combinations = space.grid()
    random.Random(zlib.crc32(f"{seed}/grid".encode())).shuffle(combinations)
    return combinations


def distribution(dimension: Dimension) -> Any:
    """The dimension in Optuna's words."""
    kinds = need("optuna", _PURPOSE).distributions
    if dimension.kind == "choice":
        return kinds.CategoricalDistribution(dimension.choices)
    if dimension.kind == "int":
        return kinds.IntDistribution(int(dimension.low), int(dimension.high))
    return kinds.FloatDistribution(float(dimension.low), float(dimension.high), log=dimension.kind == "log_float")


def study_of(space: Space, trials: Sequence[Trial], *, greater_is_better: bool) -> Any:
    """A study in memory of the trials that lie in the space, for Optuna's analyses."""
    optuna = need("optuna", _PURPOSE)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if greater_is_better else "minimize")
    study.add_trials([_frozen(optuna, space, trial, greater_is_better) for trial in trials if space.holds(trial.params)])
    return study


def _suggested(asked: Any, dimension: Dimension) -> Any:
    if dimension.kind == "choice":
        return asked.suggest_categorical(dimension.key, dimension.choices)
    if dimension.kind == "int":
        return asked.suggest_int(dimension.key, int(dimension.low), int(dimension.high))
    return asked.suggest_float(dimension.key, float(dimension.low), float(dimension.high), log=dimension.kind == "log_float")


def _sampler(optuna: Any, name: str, seed: str, *, conditional: bool) -> Any:
    samplers, number = optuna.samplers, zlib.crc32(seed.encode())
    if name == "random":
        return samplers.RandomSampler(seed=number)
    if name == "gp":
        need("torch", 'tune.sampler "gp"')
        return samplers.GPSampler(seed=number, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False)
    return samplers.TPESampler(seed=number, n_startup_trials=STARTUP_TRIALS, multivariate=True, group=conditional)


def _frozen(optuna: Any, space: Space, trial: Trial, greater_is_better: bool) -> Any:
    """A trial as Optuna takes it: what the space searches, and the last mark of one that was stopped."""
    states = {
        "complete": optuna.trial.TrialState.COMPLETE,
        "pruned": optuna.trial.TrialState.PRUNED,
        "running": optuna.trial.TrialState.RUNNING,
    }
    params: dict[str, Any] = {}
    distributions: dict[str, Any] = {}
    seen: dict[str, Any] = dict(space.fixed)
    for dimension in space.walk(seen):
        seen[dimension.path] = params[dimension.key] = trial.params[dimension.path]
        distributions[dimension.key] = distribution(dimension)
    sign = 1.0 if greater_is_better else -1.0
    last = [(progress, sign * value) for progress, value in trial.marks().items()][-1:] if trial.state == "pruned" else []
    return optuna.trial.create_trial(
        state=states[trial.state],
        params=params,
        distributions=distributions,
        value=trial.value,
        intermediate_values=dict(last),
    )
