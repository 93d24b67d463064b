"""How many replicas a load wants: one more when it stays above a bound, one fewer when that would stay well below it."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.serve.counts import Snapshot
from tidemill.serve.replicas.config import ReplicasConfig

# One fewer must be enough at this share of the bounds, so that it does not come back at once.
SLACK = 0.7


@dataclass(frozen=True, kw_only=True)
class Load:
    """What all replicas together did in a while."""

    cpu: float
    """Cores in use on the mean."""
    in_flight: float
    """Requests in flight on the mean."""

    @classmethod
    def between(cls, before: Snapshot, after: Snapshot, *, seconds: float) -> Load:
        """From what was counted; by Little's law the requests in flight are the seconds that requests took, by seconds that went by."""
        spent = {name: _total(after, name) - _total(before, name) for name in (_CPU, _REQUESTS)}
        return cls(cpu=max(0.0, spent[_CPU]) / seconds, in_flight=max(0.0, spent[_REQUESTS]) / seconds)


class Scaler:
    """Decides, one look after the other."""

    def __init__(self, config: ReplicasConfig) -> None:
        self._config = config
        self._high_since: float | None = None
        self._low_since: float | None = None

    def look(self, load: Load, *, replicas: int, now: float) -> int:
        """How many replicas there shall be.

        Args:
            now: Seconds of any clock that only goes forward.
        """
        config = self._config
        high = load.cpu > config.cpu * replicas or load.in_flight > config.in_flight * replicas
        fewer = replicas - 1
        low = load.cpu < SLACK * config.cpu * fewer and load.in_flight < SLACK * config.in_flight * fewer
        self._high_since = (self._high_since if self._high_since is not None else now) if high else None
        self._low_since = (self._low_since if self._low_since is not None else now) if low else None
        if self._high_since is not None and now - self._high_since >= config.up_s and replicas < config.most:
            return self._moved(replicas + 1)
        if self._low_since is not None and now - self._low_since >= config.down_s and replicas > config.min:
            return self._moved(fewer)
        return replicas

    def _moved(self, replicas: int) -> int:
        self._high_since = self._low_since = None
        return replicas


_CPU = "tidemill_process_cpu_seconds_total"
_REQUESTS = "tidemill_request_duration_seconds"


def _total(snapshot: Snapshot, name: str) -> float:
    return float(sum(numbers[0] for _, numbers in snapshot.get(name, {}).get("samples", [])))
