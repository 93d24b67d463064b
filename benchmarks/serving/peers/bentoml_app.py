"""BentoML: two workers, batches of at most 32. A batch's first argument is a list, so that a record comes in a list of one."""

from __future__ import annotations

from typing import Any

import bentoml
import handlers


@bentoml.service(workers=2, traffic={"timeout": 60})
class Service:
    def __init__(self) -> None:
        self.model = handlers.load()

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=10_000)
    def predict(self, records: list[dict[str, Any]]) -> list[Any]:
        return [handlers.answer(value) for value in self.model.records(records)]
