"""What a rank does that answers for a package: its part of the network, batch after batch.

The first rank takes what is asked at its `Desk` and tells the others; all compute; the first answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tidemill.core.errors import ConfigError, Unsupported
from tidemill.core.ranks.answering import Desk
from tidemill.core.ranks.pulse import pulse
from tidemill.core.ranks.wire import packed, unpacked
from tidemill.core.runtimes.torch_ranks import SCORE
from tidemill.models.kinds import kind_of
from tidemill.models.networks.base import NetworkModel
from tidemill.models.networks.fitted import NEVER
from tidemill.train.torch.parallel.layout import Layout, ParallelConfig
from tidemill.train.torch.parallel.parallel import Parallel, parallelize
from tidemill.train.torch.place import group, own_device, place

# How often the ranks tell each other that nothing is asked: each stays known to be alive, and no operation waits for long.
_TICK_S = 1.0
# What is asked goes in one operation with its length where it is no longer than this, in bytes.
_HEAD = 16_384
_LENGTH = 8


def run(arguments: Mapping[str, Any]) -> None:
    """Answer until there is nothing more to come."""
    with group() if int(arguments["tensor"]) * int(arguments["pipeline"]) > 1 else nullcontext():
        rank, ranks = place()
        config = ParallelConfig(tensor=arguments["tensor"], pipeline=arguments["pipeline"], schedule="gpipe")
        network, unseen = _network(arguments, Layout.of(config, ranks=ranks))
        told = _Told(rank, ranks)
        desk = Desk(arguments) if rank == 0 else None
        asked = 0
        while True:
            message = told(desk.next(_TICK_S) if desk is not None else None)
            asked += 1
            pulse().step(asked)
            pulse().doing("answering")
            if message is None:
                continue
            if not message:
                return
            scores = _scores(network, unpacked(message), even=config.pipeline > 1)
            if desk is not None:
                scores[:, unseen] = NEVER
                desk.answer(packed({SCORE: scores}))


def _network(arguments: Mapping[str, Any], layout: Layout) -> tuple[Parallel, list[int]]:
    kind = kind_of(arguments["kind"])
    if not isinstance(kind, NetworkModel):
        raise Unsupported(f"runtime torch runs networks, {arguments['kind']!r} is none", hint="onnxruntime runs every graph")
    fitted = kind.load(Path(arguments["folder"]))
    torch.backends.cudnn.allow_tf32 = False  # products in full single precision, as everywhere
    try:
        network = parallelize(fitted.module, layout, device=own_device())
    except ConfigError as error:
        raise type(error)(error.message.replace("train.parallel", "parallel"), hint=error.hint) from error
    for part in network.parts:
        part.eval()
    return network, list(fitted.shape.unseen)


def _scores(network: Parallel, inputs: Mapping[str, np.ndarray], *, even: bool) -> np.ndarray:
    """Scores [N, S] in single precision.

    Args:
        even: Whether rows are filled up to a power of two, as a pipeline keeps something for each shape.
    """
    rows = len(next(iter(inputs.values())))
    if even:
        places = np.minimum(np.arange(1 << (rows - 1).bit_length()), rows - 1)
        inputs = {name: array[places] for name, array in inputs.items()}
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    return np.array(network.scores(given)[:rows].float().cpu().numpy())


class _Told:
    """What the first rank was asked, on every rank: None for nothing yet, empty for the end."""

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank, self._alone = rank, ranks == 1
        # On the CPU, whatever the network computes on.
        self._group = None if self._alone else dist.new_group(backend="gloo")

    def __call__(self, message: bytes | None) -> bytes | None:
        if self._alone:
            return message
        head = torch.zeros(_LENGTH + _HEAD, dtype=torch.uint8)
        if self._rank == 0:
            length = -1 if message is None else len(message)
            content = length.to_bytes(_LENGTH, "little", signed=True) + (message or b"")[:_HEAD]
            head[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        dist.broadcast(head, 0, group=self._group)
        whole: bytes = head.numpy().tobytes()
        length = int.from_bytes(whole[:_LENGTH], "little", signed=True)
        if length < 0:
            return None
        if length <= _HEAD:
            return whole[_LENGTH : _LENGTH + length]
        rest = (
            torch.frombuffer(bytearray(message[_HEAD:]), dtype=torch.uint8) if message else torch.empty(length - _HEAD, dtype=torch.uint8)
        )
        dist.broadcast(rest, 0, group=self._group)
        tail: bytes = rest.numpy().tobytes()
        return whole[_LENGTH:] + tail
