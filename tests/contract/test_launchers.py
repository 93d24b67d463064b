"""Every launcher under the one body of its contract."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tidemill.core.load import load
from tidemill.testing.launcher import check_launcher


@pytest.mark.slow
def test_local_ranks(tmp_path: Path) -> None:
    check_launcher(load("launcher", "local")(), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # Ray lets go of its programs so
@pytest.mark.parametrize("brief", [True, pytest.param(False, marks=pytest.mark.long)])
def test_ray_actors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brief: bool) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'tidemill[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    for last in (False, False, True):  # Ray gives its node 30 seconds to start, which a busy machine may take
        try:
            ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)  # one cluster for all checks
            break
        except Exception as error:
            ray.shutdown()
            if last or "timed out during startup" not in str(error):
                raise
    try:
        check_launcher(load("launcher", "ray")(), tmp_path, brief=brief)  # its actors start slowly
    finally:
        ray.shutdown()
        gc.collect()  # here, where their warnings are awaited
