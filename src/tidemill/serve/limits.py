"""`[serve.limits]`: how much one key or one address may ask, counted here or, over several servers, in Redis.

The rate is kept by the generic cell rate algorithm (ITU-T I.371): one number a caller says when its next request would be in time, and a
burst may come that much too early. A day's quota is a plain count, by days of UTC.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from tidemill.core.errors import ConfigError
from tidemill.core.events import Events
from tidemill.serve.access.scopes import Caller
from tidemill.serve.http import Refused, Request
from tidemill.serve.shared import Shared

# Callers that are remembered at once; beyond, those that were longest silent are forgotten.
REMEMBERED = 100_000
DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Rate:
    """`{ per_s = 100, burst = 200, per_day = 1000000 }`, in requests."""

    per_s: float | None = field(default=None, metadata={"min": 1e-6, "max": 1e9})
    """Requests a second in the long run, above 0; any number when absent."""
    burst: int | None = field(default=None, metadata={"min": 1, "max": 1_000_000_000})
    """Requests that may come at once; one second's when absent."""
    per_day: int | None = field(default=None, metadata={"min": 1})
    """Requests of one day of UTC; any number when absent."""

    def check(self) -> None:
        if self.per_s is None and self.per_day is None:
            raise ConfigError("serve.limits: a rate must say per_s or per_day, says neither")
        if self.burst is not None and self.per_s is None:
            raise ConfigError("serve.limits: burst has no effect without per_s")

    @property
    def interval_s(self) -> float:
        """Time between requests in the long run, 0 where any number may come."""
        return 0.0 if self.per_s is None else 1.0 / self.per_s

    @property
    def ahead_s(self) -> float:
        """How much too early a request of a burst may come."""
        return 0.0 if self.per_s is None else ((self.burst or max(1, math.ceil(self.per_s))) - 1) / self.per_s


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """How much may be asked. Health is never counted."""

    per_key: Rate | None = None
    """Limit of each API key's name or token's subject."""
    per_address: Rate | None = None
    """Limit of each client address, for those without a credential too."""
    redis: str | None = None
    """redis://... that several servers count in together; each counts by itself when absent."""
    proxies: int = field(default=0, metadata={"min": 0, "max": 16})
    """Proxies in front that add to X-Forwarded-For; the address is that many from the header's end. 0 trusts the connection alone."""

    def check(self) -> None:
        for rate in (self.per_key, self.per_address):
            if rate is not None:
                rate.check()
        if self.per_key is None and self.per_address is None:
            raise ConfigError("serve.limits: must say per_key or per_address, says neither")


class Counter(Protocol):
    """Counts requests. Safe from several threads."""

    def take(self, who: str, rate: Rate) -> float:
        """Count one request of `who`: 0.0, or in how many seconds the next would be in time (it is not counted then)."""
        ...


class Limits:
    """Refuses what is beyond `[serve.limits]`."""

    def __init__(self, config: LimitsConfig, *, events: Events | None = None) -> None:
        self._config = config
        here = LocalCounter()
        self._counter: Counter = RedisCounter(config.redis, instead=here, events=events or Events()) if config.redis else here
        self.waits = config.redis is not None
        """Whether counting takes a way over the network."""

    def check_address(self, request: Request) -> None:
        """Count a request of an address, before it is known who asks.

        Raises:
            Refused: With 429, if it is beyond the limit; says when to come again.
        """
        if self._config.per_address is not None:
            self._take("address", self.address(request), self._config.per_address)

    def check_caller(self, caller: Caller | None) -> None:
        """Count a request of whoever has a credential.

        Raises:
            Refused: As above.
        """
        if self._config.per_key is not None and caller is not None:
            self._take("key", caller.name, self._config.per_key)

    def address(self, request: Request) -> str:
        """Whose address counts: the connection's, or what the outermost trusted proxy saw."""
        if self._config.proxies:
            seen = [part.strip() for part in str(request.headers.get("x-forwarded-for") or "").split(",") if part.strip()]
            if len(seen) >= self._config.proxies:
                return seen[-self._config.proxies][:64]
        return request.client

    def _take(self, kind: str, who: str, rate: Rate) -> None:
        wait = self._counter.take(f"{kind}:{who}", rate)
        if wait > 0:
            after = str(max(1, math.ceil(wait)))
            raise Refused(
                429, "limit", f"too many requests of this {kind}", hint=f"come again in {after} s", headers=(("retry-after", after),)
            )


class LocalCounter:
    """Counts in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[float, int, int]] = OrderedDict()

    def take(self, who: str, rate: Rate) -> float:
        now, clock = time.monotonic(), time.time()
        day = int(clock // DAY_S)
        with self._lock:
            due, counted_day, count = self._known.pop(who, (0.0, day, 0))
            if counted_day != day:
                count = 0
            start = max(due, now)
            wait = start - now - rate.ahead_s if rate.per_s is not None else 0.0
            if wait <= 1e-9 and rate.per_day is not None and count >= rate.per_day:
                wait = (day + 1) * DAY_S - clock
            allowed = wait <= 1e-9
            self._known[who] = (start + rate.interval_s, day, count + 1) if allowed else (due, day, count)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            return 0.0 if allowed else wait


# The same in one step in Redis, by its own clock. Keys: due, count. Arguments: interval, ahead (seconds), quota (0 for none).
_SCRIPT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local interval, ahead, quota = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local start = now
if interval > 0 then
  start = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
  local wait = start - now - ahead
  if wait > 1e-6 then return tostring(wait) end
end
local midnight = (math.floor(now / 86400) + 1) * 86400
if quota > 0 then
  local key = KEYS[2] .. ':' .. tostring(math.floor(now / 86400))
  if tonumber(redis.call('GET', key) or '0') >= quota then return tostring(midnight - now) end
  redis.call('INCR', key)
  redis.call('EXPIREAT', key, midnight + 60)
end
if interval > 0 then
  redis.call('SET', KEYS[1], string.format('%.6f', start + interval), 'PX', math.ceil((start + interval - now + ahead) * 1000) + 1000)
end
return '0'
"""


class RedisCounter:
    """Counts in Redis, for all servers together; while Redis does not answer, each counts by itself, and says so."""

    def __init__(self, url: str, *, instead: Counter, events: Events) -> None:
        told = ("serve.limits_alone", "Redis does not answer, each server counts by itself")
        self._shared = Shared(url, setting="serve.limits.redis", warning=told, events=events)
        self._script = self._shared.client.register_script(_SCRIPT)
        self._instead = instead

    def take(self, who: str, rate: Rate) -> float:
        base = f"tidemill:limit:{who}"
        arguments = [repr(rate.interval_s), repr(rate.ahead_s), rate.per_day or 0]
        answer = self._shared.ask(lambda: self._script(keys=[f"{base}:due", f"{base}:day"], args=arguments))
        return self._instead.take(who, rate) if answer is None else float(answer)
