"""The trials of a search keep the same promises in a folder and in PostgreSQL, with workers that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tidemill.core.errors import Unavailable
from tidemill.tune.store import Board, Store
from tidemill.tune.trial import Trial


@pytest.fixture(params=["folder", pytest.param("postgresql", marks=pytest.mark.server)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of an empty storage; empty for the folder's own."""
    if request.param == "folder":
        return ""
    psycopg = pytest.importorskip("psycopg")
    server = request.getfixturevalue("postgresql")
    database = f"tune_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")
    return f"{server.rpartition('/')[0]}/{database}"


@pytest.fixture
def opened(place: str, tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Opens the same study again and again, each time as another worker."""
    stores: list[Store] = []

    def open_(study: str = "s") -> Store:
        stores.append(Store(tmp_path / "work", study=study, url=place or None))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


def at_most(most: int) -> Callable[[Board], dict[str, int] | None]:
    return lambda board: {"model.x": board.number} if len(board.finished) + len(board.running) < most else None


def claim(store: Store, most: int = 100) -> Trial:
    trial, _ = store.claim(at_most(most))
    assert trial is not None
    return trial


def test_what_one_finishes_all_see(opened: Callable[..., Store]) -> None:
    ann, ben = opened(), opened()
    first, second = claim(ann), claim(ben)
    assert (first.number, second.number) == (0, 1)
    _, board = ben.claim(at_most(2))
    assert [trial.number for trial in board.running] == [0, 1]
    assert ann.finish(
        replace(first, state="complete", value=0.1 + 0.2, seconds=1.5, curve=[1.0, 0.5], measure="xgboost valid_log_loss", pace=0.1)
    )
    assert ben.finish(replace(second, state="pruned", why="median"))
    found = opened().finished()
    assert [(trial.number, trial.state, trial.value, trial.why) for trial in found] == [
        (0, "complete", 0.1 + 0.2, None),
        (1, "pruned", None, "median"),
    ]
    assert found[0] == replace(
        first, state="complete", value=0.1 + 0.2, seconds=1.5, curve=[1.0, 0.5], measure="xgboost valid_log_loss", pace=0.1
    )
    assert opened("other").finished() == []


def test_what_was_agreed_on_stays(opened: Callable[..., Store]) -> None:
    def agree(board: Board) -> None:
        board.notes.setdefault("narrowed", {"after": len(board.finished)})

    store = opened()
    store.claim(agree)
    store.finish(replace(claim(store), state="complete", value=1.0))
    opened().claim(agree)
    assert opened().notes() == {"narrowed": {"after": 0}}


def test_a_worker_that_leaves_gives_its_number_back(opened: Callable[..., Store]) -> None:
    ann, ben = opened(), opened()
    lost = claim(ann)
    kept = claim(ben)
    ann.close()
    again = claim(ben)
    assert (lost.number, kept.number, again.number) == (0, 1, 0)
    assert ben.finish(replace(again, state="complete", value=2.0))


def test_what_comes_of_a_trial_that_was_given_up_does_not_count(opened: Callable[..., Store]) -> None:
    ann, ben = opened(), opened()
    trial = claim(ann)
    ann.close()
    again = claim(ben)
    assert again.number == trial.number
    assert not ann.finish(replace(trial, state="complete", value=1.0))
    assert ben.finish(replace(again, state="complete", value=2.0))
    assert [trial.value for trial in ben.finished()] == [2.0]


WORKER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from tidemill.tune.store import Store
folder, url, most, pause = sys.argv[1:]
store = Store(Path(folder), study="s", url=url or None)
while True:
    trial, board = store.claim(lambda board: {"model.x": board.number} if len(board.finished) + len(board.running) < int(most) else None)
    if trial is None and not board.running:
        break
    if trial is None:
        time.sleep(0.01)
        continue
    print(trial.number, flush=True)
    time.sleep(float(pause))
    store.finish(replace(trial, state="complete", value=float(trial.number), measure=store._owners.me))
"""


def start(place: str, folder: Path, most: int, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(WORKER), str(folder), place, str(most), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_many_processes_take_each_number_once(place: str, opened: Callable[..., Store], tmp_path: Path) -> None:
    workers = [start(place, tmp_path / "work", 60, 0.0) for _ in range(4)]
    taken = [int(line) for worker in workers for line in worker.communicate()[0].split()]
    assert [worker.returncode for worker in workers] == [0, 0, 0, 0]
    assert sorted(taken) == list(range(60))
    assert [(trial.number, trial.value) for trial in opened().finished()] == [(number, float(number)) for number in range(60)]


def test_killed_processes_lose_no_finished_trial(place: str, opened: Callable[..., Store], tmp_path: Path) -> None:
    """Workers are killed in the middle of a trial, again and again; those that stay finish the search."""
    steady = start(place, tmp_path / "work", 24, 0.05)
    kept: dict[int, str] = {}
    for _ in range(4):
        victim = start(place, tmp_path / "work", 24, 0.05)
        assert victim.stdout is not None
        victim.stdout.readline()
        victim.stdout.readline()
        time.sleep(0.01)
        seen = {trial.number: trial.measure for trial in opened().finished()}
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        victim.stdout.close()
        assert kept.items() <= seen.items()
        kept = seen
    steady.communicate()
    assert steady.returncode == 0
    found = opened().finished()
    assert [trial.number for trial in found] == list(range(24))
    assert kept.items() <= {trial.number: trial.measure for trial in found}.items()
    assert all(trial.state == "complete" for trial in found)


@pytest.mark.server
def test_a_storage_that_does_not_answer_is_unavailable(free_port: int, tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(Unavailable, match=r"tune.storage: PostgreSQL does not answer"):
        Store(tmp_path, study="s", url=f"postgresql://nobody@127.0.0.1:{free_port}/x")


def test_a_lost_session_comes_back_as_another(opened: Callable[..., Store], place: str) -> None:
    """Where the server ends a worker's session, what it had claimed is free, and it goes on under a new name."""
    if not place:
        pytest.skip("a folder has no sessions")
    psycopg = pytest.importorskip("psycopg")
    ann, ben = opened(), opened()
    lost = claim(ann)
    with psycopg.connect(place, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
            " WHERE l.locktype = 'advisory' AND a.datname = current_database() AND l.pid = %s",
            (ann._owners._session.info.backend_pid,),  # type: ignore[attr-defined]
        )
    deadline = time.monotonic() + 10
    while (again := claim(ben)).number != lost.number and time.monotonic() < deadline:
        time.sleep(0.05)
    assert again.number == lost.number
    assert not ann.finish(replace(lost, state="complete", value=1.0))
    assert claim(ann).number > 0
