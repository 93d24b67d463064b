"""What one model's runs and calls add to the metrics."""

from __future__ import annotations

from tidemill.serve.metrics import PHASES, Metrics
from tidemill.serve.model import Model


class ModelCounts:
    """The samples of one model, found once. Safe from several threads."""

    def __init__(self, metrics: Metrics, model: Model) -> None:
        labels = model.name, model.version
        self._lock = metrics.lock
        self._phases = [metrics.phase_seconds.sample(*labels, phase) for phase in PHASES]
        self._rows = metrics.rows.sample(*labels)
        self._executions = metrics.executions.sample(*labels)
        self._batch_rows = metrics.batch_rows.sample(*labels)
        kinds = ("text", "padding") if model.has_tokens else ()
        self._tokens = [metrics.tokens.sample(*labels, kind) for kind in kinds]

    def run(self, rows: int, *, cost: int, padding: int) -> None:
        """Count one run of the model."""
        with self._lock:
            self._executions.value += 1
            self._batch_rows.observe(rows)
            for sample, tokens in zip(self._tokens, (cost, padding), strict=False):
                sample.value += tokens

    def call(self, rows: int, *phases: float) -> None:
        """Count one answered call, by the seconds of each of `PHASES`; while holding the metrics' lock."""
        self._rows.value += rows
        for phase, seconds in zip(self._phases, phases, strict=True):
            phase.observe(seconds)
