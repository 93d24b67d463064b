"""What every launcher must do, for launchers of third parties too. Its ranks need nothing but Tidemill, and run on this machine.

Example:
    `check_launcher(MyLauncher(), tmp_path)`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tidemill.core.errors import ConfigError, Unavailable
from tidemill.core.events import Event, Events
from tidemill.core.launcher import Launcher, Outcome, RankJob, RanksFailed, Resources
from tidemill.core.ranks.entry import attempt_folder
from tidemill.core.ranks.pulse import pulse, read_beat

RANKS = 2
_HANG_S = 4.0
# What is stopped is gone within this, also on a machine that has much to do.
_GONE_S = 20.0


def check_launcher(launcher: Launcher, folder: Path, *, brief: bool = False) -> None:
    """Hold a launcher to its contract.

    Args:
        brief: Leave out most, where ranks take long to start: places, meeting, a kill and a hang remain.

    Raises:
        AssertionError: If it breaks the contract.
    """
    _gives_each_rank_its_place(launcher, folder / "places")
    _lets_ranks_find_each_other(launcher, folder / "meeting")
    _starts_again_after_a_kill(launcher, folder / "kill")
    if brief:
        _names_who_hangs(launcher, folder / "hang")
        return
    _passes_on_what_ranks_tell(launcher, folder / "telling")
    _names_who_raised_and_stops_the_others(launcher, folder / "raise")
    _names_who_ended_early(launcher, folder / "early")
    _names_who_hangs(launcher, folder / "hang")
    _names_who_is_frozen(launcher, folder / "freeze")
    _raises_what_need_not_be_tried_again(launcher, folder / "refusal")
    _keeps_earlier_attempts(launcher, folder / "kill")
    _refuses_no_ranks(launcher, folder / "none")


# What the ranks of the checks do.


def place(arguments: Mapping[str, Any]) -> dict[str, Any]:
    print(f"rank {os.environ['RANK']} says {arguments['word']}")  # noqa: T201 - must be found in the log
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    return {"arguments": dict(arguments), **{name: os.environ[name] for name in names}}


def meet(_: Mapping[str, Any]) -> int:
    """The sum of all ranks, by way of rank 0."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank:
        while True:
            try:
                with socket.create_connection(address, timeout=60) as peer:
                    peer.sendall(bytes([rank]))
                    return peer.recv(1)[0]
            except ConnectionRefusedError:  # rank 0 is not there yet
                time.sleep(0.05)
    with socket.create_server(address) as server:
        server.settimeout(60)
        peers = [server.accept()[0] for _ in range(ranks - 1)]
        total = sum(peer.recv(1)[0] for peer in peers)
        for peer in peers:
            peer.sendall(bytes([total]))
            peer.close()
    return total


def tell(_: Mapping[str, Any]) -> None:
    for step in range(3):
        pulse().step(step)
        pulse().events.emit("check.step", f"step {step}", step=step)


def fall(arguments: Mapping[str, Any]) -> int:
    """Rank 1 ends in its first attempt as `arguments["how"]` says, at step 3; the others wait for it at step 4. A later attempt finishes."""
    folder, rank = Path(arguments["folder"]), int(os.environ["RANK"])
    child = subprocess.Popen(["sleep", "600"])
    with (folder / "pids").open("a") as file:
        file.write(f"{os.getpid()}\n{child.pid}\n")
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if attempt == 0 or arguments.get("always"):
        pulse().step(3)
        if rank != 1:
            pulse().step(4)
            pulse().doing("waiting for rank 1")
            while not (folder / "gone").exists():
                time.sleep(0.05)
            raise Unavailable("rank 1 must be there, is gone")
        mine = attempt_folder(folder, attempt) / f"rank-{rank}.beat"
        while (told := read_beat(mine)) is None or told.step != 3:  # a launcher knows what was told
            time.sleep(0.05)
        if arguments["how"] == "vanish":
            (folder / "gone").touch()
        _HOW[arguments["how"]]()
    child.kill()
    child.wait()
    return attempt


def _raise() -> None:
    raise ValueError("a thing that no restart mends\nand more")


def _refuse() -> None:
    raise ConfigError("train.parallel: must suit", hint="take another")


_HOW: Mapping[str, Callable[[], Any]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raise": _raise,
    "refuse": _refuse,
    "leave": lambda: os._exit(0),
    "vanish": lambda: os._exit(3),
    "hang": lambda: time.sleep(600),
    "freeze": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


# The checks.


def _gives_each_rank_its_place(launcher: Launcher, folder: Path) -> None:
    arguments = {"word": "grüezi", "list": [1, 2.5, None], "nested": {"a": True}}
    outcome = launcher.run(RankJob(target=f"{__name__}:place", arguments=arguments, folder=folder), RANKS, Resources(threads=2))
    assert (outcome.ranks, outcome.restarts) == (RANKS, 0)
    assert [result["RANK"] for result in outcome.results] == [str(rank) for rank in range(RANKS)], "results come by rank"
    assert {result["WORLD_SIZE"] for result in outcome.results} == {str(RANKS)}
    assert len({(result["MASTER_ADDR"], result["MASTER_PORT"]) for result in outcome.results}) == 1, "all meet at one address"
    assert all(int(result["LOCAL_RANK"]) < int(result["LOCAL_WORLD_SIZE"]) for result in outcome.results)
    assert all(result["OMP_NUM_THREADS"] == "2" for result in outcome.results)
    assert all(result["arguments"] == arguments for result in outcome.results), "arguments arrive as they are"
    for rank in range(RANKS):
        assert f"rank {rank} says grüezi" in (folder / "attempt-0" / f"rank-{rank}.log").read_text(encoding="utf-8")


def _lets_ranks_find_each_other(launcher: Launcher, folder: Path) -> None:
    outcome = launcher.run(RankJob(target=f"{__name__}:meet", folder=folder), RANKS, Resources())
    assert outcome.results == [sum(range(RANKS))] * RANKS


def _passes_on_what_ranks_tell(launcher: Launcher, folder: Path) -> None:
    heard: list[Event] = []
    launcher.run(RankJob(target=f"{__name__}:tell", folder=folder, events=Events(heard.append)), RANKS, Resources())
    for rank in range(RANKS):
        steps = [event.fields["step"] for event in heard if event.kind == "check.step" and event.fields["rank"] == rank]
        assert steps == [0, 1, 2], f"rank {rank}'s events, each once and in order"


def _starts_again_after_a_kill(launcher: Launcher, folder: Path) -> None:
    outcome = launcher.run(_fall(folder, "kill", restarts=1), RANKS, Resources())
    assert outcome.restarts == 1
    assert outcome.results == [1] * RANKS, "all ranks of the second attempt"
    failure = outcome.failures[0]
    assert (failure.rank, failure.cause, failure.step, failure.attempt) == (1, "killed", 3, 0)
    assert "SIGKILL" in failure.detail
    assert failure.host
    _nothing_is_left(folder)


def _names_who_raised_and_stops_the_others(launcher: Launcher, folder: Path) -> None:
    failures = _fails(launcher, _fall(folder, "raise", restarts=1, always=True)).failures
    assert len(failures) == 2, "as many attempts as were asked for"
    assert all((failure.rank, failure.cause) == (1, "error") for failure in failures)
    assert failures[0].detail == "ValueError: a thing that no restart mends"
    assert "Traceback" in failures[0].log.read_text(encoding="utf-8")
    _nothing_is_left(folder)


def _names_who_ended_early(launcher: Launcher, folder: Path) -> None:
    failure = _fails(launcher, _fall(folder / "leave", "leave")).failures[0]
    assert (failure.rank, failure.cause) == (1, "ended"), "code 0 without a result is no success"
    _nothing_is_left(folder / "leave")
    failure = _fails(launcher, _fall(folder / "vanish", "vanish")).failures[0]
    assert (failure.rank, failure.cause, failure.detail) == (1, "ended", "3"), "not who raises because it is gone"
    _nothing_is_left(folder / "vanish")


def _names_who_hangs(launcher: Launcher, folder: Path) -> None:
    failure = _fails(launcher, _fall(folder, "hang", hang_s=_HANG_S)).failures[0]
    assert (failure.rank, failure.cause, failure.step) == (1, "hung", 3), "not the ones that wait for it"
    assert "in fall" in failure.log.read_text(encoding="utf-8"), "where it hangs is in its log"
    _nothing_is_left(folder)


def _names_who_is_frozen(launcher: Launcher, folder: Path) -> None:
    failure = _fails(launcher, _fall(folder, "freeze", hang_s=_HANG_S)).failures[0]
    assert (failure.rank, failure.cause, failure.step) == (1, "hung", 3)
    _nothing_is_left(folder)


def _raises_what_need_not_be_tried_again(launcher: Launcher, folder: Path) -> None:
    raised = None
    try:
        launcher.run(_fall(folder, "refuse", restarts=3), RANKS, Resources())
    except ConfigError as error:
        raised = (error.message, error.hint)
    assert raised == ("train.parallel: must suit", "take another"), "what a rank raised, as it is"
    assert not (folder / "attempt-1").exists(), "what is wrong with the call is wrong the next time too"
    _nothing_is_left(folder)


def _keeps_earlier_attempts(launcher: Launcher, folder: Path) -> None:
    log = folder / "attempt-0" / "rank-1.log"
    before = log.stat()
    assert launcher.run(_fall(folder, "kill"), RANKS, Resources()).results == [2] * RANKS, "the second call counts on"
    assert log.stat() == before


def _refuses_no_ranks(launcher: Launcher, folder: Path) -> None:
    try:
        launcher.run(RankJob(target=f"{__name__}:place", folder=folder), 0, Resources())
    except ConfigError:
        return
    raise AssertionError("0 ranks must be refused")


def _fall(folder: Path, how: str, *, restarts: int = 0, hang_s: float = 60.0, always: bool = False) -> RankJob:
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {"folder": str(folder), "how": how, "always": always}
    return RankJob(target=f"{__name__}:fall", arguments=arguments, folder=folder, restarts=restarts, hang_s=hang_s)


def _fails(launcher: Launcher, job: RankJob) -> RanksFailed:
    try:
        outcome: Outcome = launcher.run(job, RANKS, Resources())
    except RanksFailed as failed:
        return failed
    raise AssertionError(f"a rank that fails must fail the job, got {outcome}")


def _nothing_is_left(folder: Path) -> None:
    """Neither a rank nor what it started."""
    limit = time.monotonic() + _GONE_S
    pids = [int(line) for line in (folder / "pids").read_text().split()]
    assert len(pids) >= RANKS
    while left := [pid for pid in pids if _alive(pid)]:
        assert time.monotonic() < limit, f"processes {left} must be gone"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
