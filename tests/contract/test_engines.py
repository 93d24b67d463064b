"""Every data engine keeps the one contract."""

from __future__ import annotations

from tidemill.engines.local.engine import LocalEngine
from tidemill.testing.engine import DataEngineSuite


class TestLocalEngine(DataEngineSuite):
    engine_type = LocalEngine
