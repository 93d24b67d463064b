"""What a step lowers, as sums: of the loss over rows or tokens, and of their weights.

Sums, because the mean of a step is taken over all its micro-batches and ranks at once: a mean of means is another number
where they differ in rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tidemill.core.errors import Unsupported

if TYPE_CHECKING:
    from torch import Tensor

# (scores, target, weight or None) -> (sum of weighted losses, sum of weights)
Objective = Callable[["Tensor", "Tensor", "Tensor | None"], tuple["Tensor", "Tensor | float"]]

# A token whose target is this is not counted, as in torch.
IGNORED = -100


def objective(task: str, *, scale: float = 1.0, label_smoothing: float = 0.0) -> Objective:
    """The loss of a task.

    Args:
        task: regression (squared error), binary and multiclass (log-loss), next_token (log-loss of each token).
        scale: regression: what an error is divided by, the target's standard deviation, above 0.
        label_smoothing: Share of a class's weight that goes to all classes alike, in 0..1.

    Raises:
        Unsupported: If there is no such task.
    """
    if task == "regression":
        return partial(squared_error, scale=scale)
    if task == "binary":
        return partial(binary_log_loss, label_smoothing=label_smoothing)
    if task == "multiclass":
        return partial(log_loss, label_smoothing=label_smoothing)
    if task == "next_token":
        return partial(token_log_loss, label_smoothing=label_smoothing)
    raise Unsupported(f"a network must have a task with a loss, got {task!r}", hint="regression, binary, multiclass, next_token")


def squared_error(scores: Tensor, target: Tensor, weight: Tensor | None, *, scale: float) -> tuple[Tensor, Tensor | float]:
    """Scores (N, 1) or (N,), target (N,)."""
    error_N = (scores.float().reshape(-1) - target.float()) / scale
    return _summed(error_N * error_N, weight)


def binary_log_loss(scores: Tensor, target: Tensor, weight: Tensor | None, *, label_smoothing: float) -> tuple[Tensor, Tensor | float]:
    """Scores (N, 1) or (N,): log-odds of class 1; target (N,): 0 or 1."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    target_N = target.float()
    if label_smoothing:
        target_N = target_N * (1 - label_smoothing) + label_smoothing / 2
    scores_N = scores.float().reshape(-1)
    if weight is None:
        return binary_cross_entropy_with_logits(scores_N, target_N, reduction="sum"), float(len(scores_N))
    return _summed(binary_cross_entropy_with_logits(scores_N, target_N, reduction="none"), weight)


def log_loss(scores: Tensor, target: Tensor, weight: Tensor | None, *, label_smoothing: float) -> tuple[Tensor, Tensor | float]:
    """Scores (N, K), target (N,): the index of the class."""
    from torch.nn.functional import cross_entropy

    scores_NK, target_N = scores.float(), target.long()
    if weight is None:
        return cross_entropy(scores_NK, target_N, reduction="sum", label_smoothing=label_smoothing), float(len(scores_NK))
    return _summed(cross_entropy(scores_NK, target_N, reduction="none", label_smoothing=label_smoothing), weight)


def token_log_loss(scores: Tensor, target: Tensor, weight: Tensor | None, *, label_smoothing: float) -> tuple[Tensor, Tensor | float]:
    """Scores (N, L, V), target (N, L): the token that each place should say, `IGNORED` for none; weight (N,), (N, L) or None."""
    from torch.nn.functional import cross_entropy

    scores_TV, target_T = scores.float().flatten(0, 1), target.long().flatten()
    counted_T = (target_T != IGNORED).float()
    if weight is not None:
        counted_T = counted_T * (weight if weight.ndim == 2 else weight[:, None].expand(target.shape)).flatten()
    loss_T = cross_entropy(scores_TV, target_T, reduction="none", ignore_index=IGNORED, label_smoothing=label_smoothing)
    return _summed(loss_T, counted_T)


def _summed(loss: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | float]:
    if weight is None:
        return loss.sum(), float(len(loss))
    return (loss * weight).sum(), weight.sum()
