"""The pool of ranks: what a job returns, and what is said of one that fails, hangs or dies."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def total(*, more: int) -> int:
    import torch
    import torch.distributed as dist

    mine = torch.tensor([int(os.environ["RANK"]) + more])
    dist.all_reduce(mine)
    return int(mine)


def alone() -> tuple[bool, str]:
    import torch.distributed as dist

    return dist.is_initialized(), os.environ["WORLD_SIZE"]


def refuse() -> None:
    raise ValueError("not like this")


def wait_in_vain() -> None:
    import torch.distributed as dist

    if dist.get_rank() == 0:
        time.sleep(60)
    dist.barrier()


def die() -> None:
    import torch.distributed as dist

    if dist.get_rank() == 1:
        os._exit(1)
    dist.barrier()


def test_each_job_has_a_world_of_its_ranks(ranks: Any) -> None:
    assert ranks.run(f"{__file__}:total", ranks=8, more=1) == [36] * 8
    assert ranks.run(f"{__file__}:total", ranks=3, more=1) == [6] * 3
    assert ranks.run(f"{__file__}:alone", ranks=2, group=False) == [(False, "2")] * 2


def test_a_refusal_names_every_rank_and_leaves_the_pool(ranks: Any) -> None:
    with pytest.raises(Exception, match="not like this") as caught:
        ranks.run(f"{__file__}:refuse", ranks=3)
    assert sorted(caught.value.failures) == [0, 1, 2]
    assert ranks.run(f"{__file__}:total", ranks=2, more=0) == [1] * 2


def test_a_hang_names_where_each_rank_stands(ranks: Any) -> None:
    with pytest.raises(Exception, match="failed on ranks") as caught:
        ranks.run(f"{__file__}:wait_in_vain", ranks=2, timeout_s=2)
    assert all("wait_in_vain" in stack for stack in caught.value.failures.values())
    assert "barrier" in caught.value.failures[1]
    assert ranks.run(f"{__file__}:total", ranks=2, more=0) == [1] * 2


def test_a_death_is_seen_and_new_ranks_are_started(ranks: Any) -> None:
    with pytest.raises(Exception, match="failed on ranks") as caught:
        ranks.run(f"{__file__}:die", ranks=2)
    assert caught.value.failures[1] == "the process ended"
    assert ranks.run(f"{__file__}:total", ranks=2, more=0) == [1] * 2
