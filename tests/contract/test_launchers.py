"""Every launcher under the one body of its contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.core.load import load
from tidemill.testing.launcher import check_launcher


@pytest.mark.slow
def test_local_ranks(tmp_path: Path) -> None:
    check_launcher(load("launcher", "local")(), tmp_path)
