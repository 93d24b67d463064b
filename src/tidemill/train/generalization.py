"""Whether a model knows its training rows better than new ones, and what to do about it, in words.

The gap is the validation loss less the training loss, held against two things. Noise: half the 95 % bootstrap interval of
the validation loss. And the gain of the model over the trivial one on its training rows: the part of it that the gap takes
back does not hold on new rows. Boosted trees always have some gap, so that a gap beyond noise alone is no fault.

| verdict | when |
|---|---|
| `useless` | the validation loss is not below the trivial model's |
| `overfit` | the gap is beyond noise and takes back a third of the gain or more |
| `alike` | the gap is within noise and takes back less than a twentieth of the gain |
| `usual` | everything between |

A loss that still fell in the last round allowed is said beside the verdict: the fit was cut off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tidemill.core.metrics import METRICS, interval

OVERFIT_SHARE = 1 / 3
ALIKE_SHARE = 1 / 20

# Rows and resamples of the bootstrap; the noise of more rows follows from theirs.
NOISE_ROWS = 50_000
NOISE_RESAMPLES = 200

_SMALLER = {
    "xgboost": "a smaller max_depth, a larger min_child_weight or reg_lambda, a subsample below 1, or more rows",
    "linear": "a larger l2, fewer features, or more rows",
    "random_forest": "a smaller max_depth, or more rows",
    "mlp": "a larger dropout, a smaller width, train.early_stopping, or more rows",
    "dcn": "a larger dropout, a smaller width, train.early_stopping, or more rows",
    "text": "a larger dropout, fewer train.epochs, or more rows",
    "decoder": "a larger dropout, fewer train.epochs, or more rows",
    "image": "more augmentation, fewer train.epochs, or more rows",
}
_LARGER = {
    "xgboost": "a larger max_depth, or features that say more",
    "linear": "a model that bends, such as xgboost, or features that say more",
    "random_forest": "a larger max_depth, or features that say more",
}


def loss_of(task: str) -> str:
    """The loss that the judgement goes by: every model of the task makes it small."""
    return "rmse" if task == "regression" else "log_loss"


def noise(task: Any, y_N: np.ndarray, p: np.ndarray, weight_N: np.ndarray | None = None, *, seed: int = 0) -> float:
    """How far the validation loss may lie from the truth by chance: half of its 95 % bootstrap interval."""
    step = -(-len(y_N) // NOISE_ROWS)
    part = slice(None, None, step)
    weight = None if weight_N is None else weight_N[part]
    found = interval(loss_of(task), y_N[part], p[part], seed=seed, resamples=NOISE_RESAMPLES, weight=weight, task=task)
    return (found.high - found.low) / 2 / math.sqrt(step)


def judge(
    task: str,
    *,
    kind: str,
    train: Mapping[str, float | None],
    valid: Mapping[str, float | None],
    trivial: Mapping[str, float | None],
    noise: float,
    best_round: int | None = None,
    num_rounds: int | None = None,
) -> dict[str, Any] | None:
    """The verdict, its figures, and one or two sentences (`said`); None where a loss is undefined.

    Args:
        kind: Kind of model, for the advice.
        train, valid, trivial: Metrics on training rows, on validation rows, and of the trivial model on validation rows.
        noise: As `noise` gives it.
        best_round: The round that was kept, from 0, where fitting goes in rounds.
        num_rounds: The most rounds that were allowed.
    """
    metric = loss_of(task)
    found = [losses.get(metric) for losses in (train, valid, trivial)]
    if any(value is None for value in found) or not math.isfinite(noise):
        return None
    on_train, on_valid, constant = (float(value or 0.0) for value in found)
    gap, gain = on_valid - on_train, constant - on_train
    share = max(gap, 0.0) / gain if gain > 0 else None
    cut_off = best_round is not None and num_rounds is not None and best_round == num_rounds - 1
    verdict = _verdict(on_valid, constant, gap, share, noise)
    said = _sentence(verdict, METRICS[metric].title, on_train, on_valid, constant, gap, share, noise, kind)
    if cut_off:
        said += f" The best round is the last of {num_rounds}: raise model.num_rounds."
    return {
        "verdict": verdict, "metric": metric, "train": on_train, "valid": on_valid, "trivial": constant,
        "gap": gap, "noise": noise, "share": share, "cut_off": cut_off, "said": said,
    }  # fmt: skip


def _verdict(valid: float, trivial: float, gap: float, share: float | None, noise: float) -> str:
    if valid >= trivial or share is None:
        return "useless"
    if gap > noise and share >= OVERFIT_SHARE:
        return "overfit"
    return "alike" if gap <= noise and share < ALIKE_SHARE else "usual"


def _sentence(
    verdict: str, name: str, train: float, valid: float, trivial: float, gap: float, share: float | None, noise: float, kind: str
) -> str:
    start = f"Training {name} {train:.4g}, validation {valid:.4g}"
    if verdict == "useless":
        return f"{start}: no better than the {trivial:.4g} of a model that looks at nothing."
    if verdict == "alike":
        return f"{start}, alike within noise ({noise:.2g}): a larger model may find more; try {_LARGER.get(kind, 'a larger model')}."
    if gap <= noise:
        return f"{start}: the gap of {gap:.2g} is within noise ({noise:.2g})."
    beyond = f"{gap / noise:.1f} times what noise explains" if noise > 0 else "beyond noise"
    told = f"{start}: the gap of {gap:.2g} is {beyond} and takes back {share:.0%} of the gain over the trivial model"
    if verdict == "usual":
        return f"{told}, which is usual."
    return (
        f"{told}. The model knows its training rows better than new ones; try {_SMALLER.get(kind, 'a smaller model, or more rows')}. "
        "Validation rows of another time than the training rows look the same."
    )
