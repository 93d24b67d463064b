"""Micro-batches of one shape, for pipelines, whose buffers have one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from tidemill.train.torch.loader.step import MicroBatch

# Lengths are filled up to a multiple, so that there are few shapes.
_LENGTHS = 16
# Inputs whose axis 1 is a length.
_BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids")
# A token whose target is this is not counted, as in torch.
_IGNORED = -100


def even(micro: Sequence[MicroBatch], device: torch.device, *, agree: bool) -> list[MicroBatch]:
    """The micro-batches, filled up to one number of rows and, of tokens, to one length; what fills up counts nothing.

    Args:
        agree: Whether ranks that read other rows take part: all go through the same shapes, or some of them would compare
            notes about a new one while the others do not.
    """
    num_rows, length = _largest([one.inputs for one in micro], device, agree=agree)
    return [_filled(one, num_rows, length) for one in micro]


def even_inputs(inputs: Mapping[str, Tensor], device: torch.device, *, agree: bool) -> dict[str, Tensor]:
    """The same for the inputs of an evaluation."""
    num_rows, length = _largest([inputs], device, agree=agree)
    return {name: _grown(value, num_rows - len(value), length if name in _BY_TOKEN else None) for name, value in inputs.items()}


def _largest(batches: Sequence[Mapping[str, Tensor]], device: torch.device, *, agree: bool) -> tuple[int, int]:
    """The largest number of rows, and the largest length, rounded up."""
    rows = max(len(value) for inputs in batches for value in inputs.values())
    lengths = [value.shape[1] for inputs in batches for name, value in inputs.items() if name in _BY_TOKEN]
    wanted = torch.tensor([rows, max([1, *lengths])], device=device)
    if agree:
        torch.distributed.all_reduce(wanted, op=torch.distributed.ReduceOp.MAX)
    num_rows, length = (int(value) for value in wanted)
    return num_rows, -(-length // _LENGTHS) * _LENGTHS


def _filled(one: MicroBatch, num_rows: int, length: int) -> MicroBatch:
    missing = num_rows - len(one.target)
    weight = one.weight
    if missing and weight is None:
        weight = torch.ones(len(one.target))
    token_target = one.target.ndim == 2
    return dataclasses.replace(
        one,
        inputs={name: _grown(value, missing, length if name in _BY_TOKEN else None) for name, value in one.inputs.items()},
        target=_grown(one.target, missing, length if token_target else None, fill=_IGNORED if token_target else 0),
        weight=None if weight is None else _grown(weight, missing, length if weight.ndim == 2 else None),
    )


def _grown(value: Tensor, missing: int, length: int | None, *, fill: int = 0) -> Tensor:
    if length is not None and value.shape[1] < length:
        value = pad(value, (0, length - value.shape[1]), value=fill)
    if missing:
        value = torch.cat((value, value.new_full((missing, *value.shape[1:]), fill)))
    return value
