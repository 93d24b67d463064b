"""Runs whose ranks are killed, frozen or hang, at any moment: they end, and end where the undisturbed run does."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tidemill.core.launcher import Outcome, RankJob, RanksFailed, Resources
from tidemill.core.ranks.pulse import read_beat
from tidemill.engines.local.launcher import LocalLauncher

if TYPE_CHECKING:
    from tests.numerics.pool import Pool

pytest.importorskip("torch")

RANKS = 2


def job(folder: Path, **arguments: Any) -> RankJob:
    hang_s, restarts = arguments.pop("hang_s", 120.0), arguments.pop("restarts", 0)
    told = {"folder": str(folder), **arguments}
    return RankJob(
        target="faulty_training:train", arguments=told, folder=folder, paths=[str(Path(__file__).parent)], restarts=restarts, hang_s=hang_s
    )


def run(folder: Path, ranks: int = RANKS, **arguments: Any) -> Outcome:
    return LocalLauncher().run(job(folder, **arguments), ranks, Resources())


def pooled(ranks: Pool, folder: Path, count: int = RANKS, **arguments: Any) -> list[dict[str, Any]]:
    """What each rank returned, in processes that stand: for runs in which nothing is to happen to them."""
    arguments["folder"] = str(folder)
    return ranks.run(str(Path(__file__).with_name("faulty_training.py")) + ":train", ranks=count, group=False, arguments=arguments)


@pytest.fixture(scope="module")
def undisturbed(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    """What runs that nobody disturbs end with, with the model on each rank and sharded."""
    return {sharded: pooled(ranks, tmp_path_factory.mktemp("undisturbed"), width=20_000, sharded=sharded)[0] for sharded in (False, True)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_rank_is_killed_at_any_moment(tmp_path: Path, undisturbed: dict[bool, Any], seed: int) -> None:
    kill_one(tmp_path, undisturbed, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5, 50))
def test_a_rank_is_killed_at_any_of_many_moments(tmp_path: Path, undisturbed: dict[bool, Any], seed: int) -> None:
    kill_one(tmp_path, undisturbed, seed)


def kill_one(folder: Path, undisturbed: dict[bool, Any], seed: int) -> None:
    """Kill a random rank once, every second time while a checkpoint is being written; the run ends as the undisturbed one, bitwise."""
    chance, sharded = random.Random(seed), seed % 4 >= 2
    killed: list[int] = []
    victim = threading.Thread(target=_kill, args=(folder, chance, killed), kwargs={"while_saving": seed % 2 == 0})
    victim.start()
    try:
        outcome = run(folder, width=20_000, sharded=sharded, restarts=3)
    finally:
        victim.join(60)
    assert killed, "the kill must have hit"
    assert outcome.restarts == 1
    assert (outcome.failures[0].cause, outcome.failures[0].detail) == ("killed", "SIGKILL")
    for result in outcome.results:
        assert result["losses"] == undisturbed[sharded]["losses"]
        assert result["digest"] == undisturbed[sharded]["digest"]
        assert result["first"] >= killed[0], "what was saved before is there"


def _kill(folder: Path, chance: random.Random, killed: list[int], *, while_saving: bool) -> None:
    """Wait for a random step, or for a checkpoint being written after it, and a random moment more; tells the last step saved until then."""
    rank, step = chance.randrange(RANKS), chance.randrange(1, 20)
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        beat = read_beat(folder / "attempt-0" / f"rank-{rank}.beat")
        saved = max((int(path.name.split("-")[-1]) for path in folder.glob("checkpoints/step-*")), default=0)
        if (
            beat is not None
            and max(saved, beat.step or 0) >= step
            and (not while_saving or any(folder.glob("checkpoints/.partial-step-*")))
        ):
            if not while_saving:
                time.sleep(chance.random() * 0.05)
            os.kill(beat.pid, signal.SIGKILL)
            killed.append(saved)
            return
        time.sleep(0.0005)


@pytest.mark.slow
def test_it_goes_on_on_another_number_of_ranks_within_rounding(tmp_path: Path, ranks: Pool) -> None:
    """Without dropout the losses of the whole would be the same; here, saved on 2 ranks and read on 3 and on 1, the weights are."""
    saved, _ = pooled(ranks, tmp_path, 2, sharded=True, steps=4)
    for count in (3, 1, 2):
        for result in pooled(ranks, tmp_path, count, sharded=True, steps=4):
            assert result["first"] == 4, "nothing was trained again"
            assert result["digest"] == saved["digest"]
            assert result["losses"] == saved["losses"]


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_with_its_last_step_and_collective(tmp_path: Path) -> None:
    with pytest.raises(RanksFailed) as failed:
        run(tmp_path, hang=[7, 1], hang_s=10.0)
    failure = failed.value.failures[0]
    assert (failure.rank, failure.cause, failure.step) == (1, "hung", 7)
    assert failure.collective == "gloo:all_reduce"
    assert failure.after_s < 30
    assert "_misbehave" in failure.log.read_text()
    waiting = read_beat(tmp_path / "attempt-0" / "rank-0.beat")
    assert waiting is not None
    assert waiting.waiting, "the other one waits for it"
