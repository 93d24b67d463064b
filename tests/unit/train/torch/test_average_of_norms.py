"""A moving average of a network with norms answers with statistics of the same weights."""

from __future__ import annotations

import torch
from torch import nn

from tidemill.train.torch.ema import Average, Weights


def test_running_statistics_move_with_the_weights() -> None:
    norm = nn.BatchNorm1d(3)
    average = Average(Weights(norm.named_parameters(), norm.named_buffers()), decay=0.5)
    norm.running_mean += 8.0  # type: ignore[operator]
    with torch.no_grad():
        norm.weight += 8.0
    average.update()
    moved = average.averages["weight"] - 1.0
    torch.testing.assert_close(average.averages["running_mean"], moved)
    assert 0 < float(moved[0].detach()) < 8
    average.swap()
    torch.testing.assert_close(norm.running_mean, moved.detach())
    average.swap()
    torch.testing.assert_close(norm.running_mean, torch.full((3,), 8.0))
