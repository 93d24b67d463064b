from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tidemill.core.errors import Unavailable
from tidemill.core.launcher import RankJob, Resources
from tidemill.engines.local.launcher import LocalLauncher
from tidemill.testing.launcher import _alive

_SCRIPT = """
import sys
from pathlib import Path
from tidemill.core.launcher import RankJob, Resources
from tidemill.engines.local.launcher import LocalLauncher
job = RankJob(target="tidemill.testing.launcher:fall", arguments={"folder": sys.argv[1], "how": "hang"}, folder=Path(sys.argv[1]))
LocalLauncher().run(job, 2, Resources())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_launcher_ends_its_ranks(tmp_path: Path, number: signal.Signals) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", _SCRIPT, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        pids = _wait_for_pids(tmp_path / "pids", 4)
        assert [pid for pid in pids if not _alive(pid)] == [], sorted(path.name + path.read_text() for path in tmp_path.glob("attempt-0/*"))
        launcher.send_signal(number)
        assert launcher.wait(60) != 0
        limit = time.monotonic() + 30
        while left := [pid for pid in pids if _alive(pid)]:
            assert time.monotonic() < limit, f"ranks or what they started are left: {left}"
            time.sleep(0.05)
    finally:
        launcher.kill()
        launcher.wait()


def test_more_gpus_than_there_are_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(Unavailable, match="2 ranks of 1 GPUs must find as many here, found 1"):
        LocalLauncher().run(RankJob(target="os:getcwd", folder=tmp_path), 2, Resources(gpus=1))
    assert not (tmp_path / "attempt-0").exists()


def _wait_for_pids(file: Path, number: int) -> list[int]:
    limit = time.monotonic() + 60
    while True:
        lines = file.read_text().split() if file.exists() else []
        if len(lines) >= number:
            return [int(line) for line in lines]
        assert time.monotonic() < limit, f"ranks must start, got {lines}"
        time.sleep(0.05)
