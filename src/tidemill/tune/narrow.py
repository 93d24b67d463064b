"""A space made smaller by what the first trials showed.

Importance is the share of the variance between trials that a parameter explains on its own, by a random forest over them
(functional ANOVA, Hutter et al. 2014).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tidemill.core.load import need
from tidemill.tune.draw import study_of
from tidemill.tune.space import Dimension, Space
from tidemill.tune.trial import Trial, ranked

# A parameter that explains less than this share of what an average one would is fixed.
UNIMPORTANT = 0.25
# The share of the complete trials that count as good, and how many at least.
GOOD_SHARE = 0.25
MIN_GOOD = 3
# How far, as a share of a range, the narrowed one reaches beyond the good trials on either side.
MARGIN = 0.1
# Complete trials below which nothing can be said.
MIN_TRIALS = 6


def importance(space: Space, trials: Sequence[Trial], *, seed: int, greater_is_better: bool) -> dict[str, float]:
    """The share of what the trials differ in that each parameter explains, by path, the largest first; empty where it cannot be told.

    Parameters under a condition are left out: not every trial has them.
    """
    complete = [trial for trial in trials if trial.state == "complete" and space.holds(trial.params)]
    names = [d.key for d in space.dimensions if not d.when and len({str(trial.params[d.path]) for trial in complete}) > 1]
    if len(complete) < MIN_TRIALS or not names:
        return {}
    found = need("optuna.importance", "tune.narrow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = study_of(space, complete, greater_is_better=greater_is_better)
        shares = found.get_param_importances(study, evaluator=found.FanovaImportanceEvaluator(seed=seed), params=names)
    return {name: float(share) for name, share in shares.items() if math.isfinite(share)}


def narrowed(space: Space, trials: Sequence[Trial], *, seed: int, greater_is_better: bool) -> dict[str, Any] | None:
    """What to fix and to what to narrow: `after`, `importance`, `fixed` by path and `ranges` by key; None with too few trials."""
    shares = importance(space, trials, seed=seed, greater_is_better=greater_is_better)
    order = [trial for trial in ranked(trials, greater_is_better=greater_is_better) if space.holds(trial.params)]
    if not shares or not order:
        return None
    good = order[: max(MIN_GOOD, round(len(order) * GOOD_SHARE))]
    fixed: dict[str, Any] = {}
    ranges: dict[str, list[float]] = {}
    parents = {condition.path for dimension in space.dimensions for condition in dimension.when}
    for dimension in space.dimensions:
        share = shares.get(dimension.key)
        if share is not None and share < UNIMPORTANT / len(shares) and dimension.path not in parents:
            fixed[dimension.path] = order[0].params[dimension.path]
        elif dimension.kind != "choice":
            values = [
                trial.params[dimension.path]
                for trial in good
                if dimension.path in trial.params and dimension.holds(trial.params[dimension.path])
            ]
            if len(values) >= MIN_GOOD and (ends := _ends(dimension, values)) != (dimension.low, dimension.high):
                ranges[dimension.key] = list(ends)
    return {"after": len(trials), "importance": shares, "fixed": fixed, "ranges": ranges}


def with_narrowing(space: Space, note: Mapping[str, Any] | None) -> Space:
    """The space under what `narrowed` said."""
    if not note:
        return space
    kept = [dimension for dimension in space.dimensions if dimension.path not in note["fixed"]]
    ranges = note["ranges"]
    return Space(
        dimensions=tuple(replace(d, low=ranges[d.key][0], high=ranges[d.key][1]) if d.key in ranges else d for d in kept),
        fixed={**space.fixed, **note["fixed"]},
    )


def _ends(dimension: Dimension, values: Sequence[float]) -> tuple[float, float]:
    """The range of the good values and a margin, inside the dimension's own."""
    log = dimension.kind == "log_float"
    scaled = [math.log(value) if log else value for value in (dimension.low, dimension.high, min(values), max(values))]
    margin = MARGIN * (scaled[1] - scaled[0])
    low, high = max(scaled[0], scaled[2] - margin), min(scaled[1], scaled[3] + margin)
    if log:
        low, high = math.exp(low), math.exp(high)
    if dimension.kind == "int":
        return math.floor(low), math.ceil(high)
    return max(low, dimension.low), min(high, dimension.high)
