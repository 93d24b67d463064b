"""Which blocks each stage of a pipeline holds: layers evenly, what comes before them on the first stage and what comes after on the last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from tidemill.train.planner.network import Block, Network


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Consecutive stages that hold alike: the place of the first, how many they are, and each one's blocks with how often they come."""

    index: int
    alike: int
    blocks: Sequence[tuple[Block, int]]

    def __iter__(self) -> Iterator[tuple[Block, int]]:
        return iter(self.blocks)

    def held(self, tensor: int) -> float:
        """Parameters on one rank."""
        return sum(count * block.held(tensor) for block, count in self.blocks)


def stages(network: Network, *, tensor: int, pipeline: int) -> list[Stage]:
    """The stages of a pipeline, those alike together.

    What the layers do not divide by goes to the middle: the first and the last stage have more to do.
    """
    blocks = network.blocks(tensor)
    layers = [block for block in blocks if block.name == "layer"]
    before = [block for block in blocks if block.name == "embedding"]
    after = [block for block in blocks if block.name == "head"]
    share, rest = divmod(len(layers), pipeline)
    low = (pipeline - rest) // 2
    held: list[list[Block]] = []
    start = 0
    for place in range(pipeline):
        size = share + (low <= place < low + rest)
        held.append(layers[start : start + size])
        start += size
    held[0] = before + held[0]
    held[-1] = held[-1] + after
    found: list[Stage] = []
    place = 0
    for _, group in groupby(held, key=lambda stage: [id(block) for block in stage]):
        alike = list(group)
        found.append(Stage(index=place, alike=len(alike), blocks=tuple(_counted(alike[0]))))
        place += len(alike)
    return found


def _counted(blocks: Sequence[Block]) -> Iterator[tuple[Block, int]]:
    for _, group in groupby(blocks, key=id):
        same = list(group)
        yield same[0], len(same)
