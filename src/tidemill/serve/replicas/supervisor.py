"""The process above the replicas: it keeps their number, changes what they answer with together, and adds up what they counted.

It loads no model. Replicas end when it does.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tidemill.core.errors import TidemillError, Unavailable
from tidemill.core.events import Events
from tidemill.core.ledger import Ledger
from tidemill.core.project import to_plain
from tidemill.serve.address import bound, reachable
from tidemill.serve.config import ServeConfig
from tidemill.serve.counts import Snapshot, merged
from tidemill.serve.deployment.roster import Roster
from tidemill.serve.deployment.slot import Slot, Standing
from tidemill.serve.listener import bound_socket, listening_socket
from tidemill.serve.process import Running, url
from tidemill.serve.replicas.config import bounds
from tidemill.serve.replicas.keeper import Keeper
from tidemill.serve.replicas.scaling import Load, Scaler

# How often replicas are asked what they counted, and how long one may take to say it.
LOOK_S = 1.0
SNAPSHOT_S = 2.0
MARGIN_S = 5.0

# What replicas tell that is said once for all of them, or again and again as their number follows the load.
_OWN_EVENTS = ("serve.ready", "serve.stopping", "serve.stopped")


def supervise(
    slots: Sequence[Slot],
    *,
    config: ServeConfig,
    ledger: Ledger | None,
    follow: bool,
    accept_latency: bool,
    events: Events,
    on_ready: Callable[[Running], None] | None,
) -> None:
    """Answer by several processes until SIGTERM, SIGINT or `Running.stop`; requests in flight are finished before it returns.

    Raises:
        TidemillError: If a replica cannot be started, as the replica says; the others are ended.
    """
    host = bound(config.host)
    with listening_socket(host, config.port, together=True) as http:
        grpc = listening_socket(host, config.grpc_port, together=True) if config.grpc_port is not None else None
        config = replace(config, port=http.getsockname()[1], grpc_port=grpc.getsockname()[1] if grpc is not None else None)
        if config.limits is not None and config.limits.redis is None:
            told = (
                "limits are counted by each replica alone, so that a caller may ask as many times as much; serve.limits.redis counts once"
            )
            events.warn("serve.limits_each", told)
        supervisor = Supervisor(slots, config=config, accept_latency=accept_latency, events=events)
        roster = Roster(
            slots, ledger=ledger, follow=follow, deploy=supervisor.deploy, told=supervisor.stand, events=events, where=url(config)
        )
        supervisor.roster = roster
        try:
            supervisor.run(on_ready)
        finally:
            if grpc is not None:
                grpc.close()


class Supervisor:
    """Replicas, and what they are to be. Safe from several threads."""

    def __init__(self, slots: Sequence[Slot], *, config: ServeConfig, accept_latency: bool, events: Events) -> None:
        self.roster: Roster | None = None
        self._config = config
        self._bounds = bounds(config.replicas)
        self._accept_latency = accept_latency
        self._events = events
        self._slots = tuple(slots)
        self._generation = 0
        self._standings: tuple[Standing, ...] = ()
        self._keepers: dict[int, Keeper] = {}
        self._departed: Snapshot = {}
        self._restarts = 0
        # Changes of what is answered, and replicas that join in, come one after the other.
        self._changing = threading.RLock()
        self._counting = threading.Lock()
        self._stopping = threading.Event()
        self._failure: TidemillError | None = None

    def run(self, on_ready: Callable[[Running], None] | None) -> None:
        """Start replicas, the first alone: it shows whether the packages can be served at all; then keep them until it is time to stop."""
        self._listen_to_signals()
        try:
            if self._start([1]) and self._start(range(2, self._bounds.min + 1)):
                self._answer(on_ready)
        finally:
            self._stop()
        if self._failure is not None:
            raise self._failure

    def deploy(self, slots: tuple[Slot, ...]) -> None:
        """Load beside the old in every replica, then answer with the new in all of them.

        Raises:
            TidemillError: If a replica cannot; then all answer as before.
            Unavailable: If no replica answers now.
        """
        with self._changing:
            asked = self._ready()
            prepared: list[Keeper] = []
            lost = 0
            try:
                for keeper in asked:
                    try:
                        keeper.ask("prepare", to_plain(slots))
                        prepared.append(keeper)
                    except Unavailable as error:  # it died: by chance, or of this package
                        lost += 1
                        if lost > 1:
                            raise TidemillError("loading must leave replicas alive, two ended over it") from error
            except BaseException:
                for keeper in prepared:
                    keeper.tell("discard")
                raise
            if not prepared:
                raise Unavailable("no replica answers now")
            self._slots, self._generation = slots, self._generation + 1
            for keeper in prepared:
                with suppress(Unavailable):
                    keeper.ask("commit")
                    keeper.generation = self._generation

    def stand(self, standings: tuple[Standing, ...]) -> None:
        """Have every replica say how what is deployed stands."""
        self._standings = standings
        for keeper in self._ready():
            keeper.tell("stand", to_plain(standings))

    # What keepers ask.

    def spec(self) -> tuple[int, dict[str, Any]]:
        with self._changing:
            made = {"config": self._config, "slots": self._slots, "standings": self._standings, "accept_latency": self._accept_latency}
            return self._generation, to_plain(made)

    def admit(self, keeper: Keeper) -> None:
        with self._changing:  # nothing changes between the last look and the first request
            if keeper.generation != self._generation:
                keeper.ask("prepare", to_plain(self._slots))
                keeper.ask("commit")
                keeper.generation = self._generation
            keeper.tell("stand", to_plain(self._standings))
            keeper.listen()
            keeper.ready.set()
        self._events.emit("serve.replica", f"replica {keeper.number} answers (process {keeper.pid})", replica=keeper.number, pid=keeper.pid)

    def hear(self, keeper: Keeper, word: str, value: Any) -> Any:
        if word == "event":
            if value["kind"] not in _OWN_EVENTS:
                message = f"replica {keeper.number}: {value['message']}"
                self._events.emit(value["kind"], message, level=value["level"], **{**value["fields"], "replica": keeper.number})
        elif word == "metrics":
            return self._metrics()
        elif self.roster is not None and word == "load":
            self.roster.load(value)
        elif self.roster is not None and word == "unload":
            self.roster.unload(value)
        return None

    def listening(self) -> socket.socket:
        return bound_socket(bound(self._config.host), self._config.port, together=True)

    def alone(self, keeper: Keeper) -> bool:
        return all(other is keeper for other in self._ready())

    def ended(self, keeper: Keeper, *, again: bool) -> None:
        with self._counting:
            self._departed = merged([("", self._departed), ("", keeper.snapshot)], only_sums=True)
            keeper.snapshot = {}
            self._restarts += again
        if again:
            told = f"replica {keeper.number} ended, the next one is started"
            self._events.emit("serve.replica_ended", told, level="warning", replica=keeper.number, pid=keeper.pid)

    def hopeless(self, keeper: Keeper, error: TidemillError) -> None:
        self._failure = self._failure or error
        self._stopping.set()

    # The life of the whole.

    def _start(self, numbers: Sequence[int]) -> bool:
        """Start replicas, and wait until each answers; False where the server ends."""
        started = [Keeper(number, self) for number in numbers]
        for keeper in started:
            self._keepers[keeper.number] = keeper
            keeper.start()
        for keeper in started:
            while not keeper.settled.wait(0.1):
                if self._stopping.is_set():
                    return False
        return not self._stopping.is_set()

    def _answer(self, on_ready: Callable[[Running], None] | None) -> None:
        config = self._config
        at = f"{reachable(config.host)}:{config.grpc_port}" if config.grpc_port is not None else None
        running = Running(url=url(config), grpc=at, stop=self._stopping.set)
        if self.roster is not None:
            self.roster.begin()
            threading.Thread(target=self.roster.run, args=(self._stopping,), name="roster", daemon=True).start()
        self._events.emit("serve.ready", running.url, url=running.url, grpc=running.grpc, replicas=len(self._ready()))
        threading.Thread(target=self._watch, name="scaling", daemon=True).start()
        if on_ready is not None:
            on_ready(running)
        self._stopping.wait()
        self._events.emit("serve.stopping", "finishing requests in flight")

    def _stop(self) -> None:
        self._stopping.set()
        keepers = list(self._keepers.values())
        for keeper in keepers:
            keeper.stop()
        until = time.monotonic() + self._config.drain_timeout_s + MARGIN_S
        for keeper in keepers:
            if not keeper.wait(max(0.0, until - time.monotonic())):
                keeper.kill()
                keeper.wait(MARGIN_S)
        if self._failure is None:
            self._events.emit("serve.stopped", "stopped")

    def _watch(self) -> None:
        """Know what replicas have counted, should one die, and keep as many as the load wants."""
        scaler, before, then = Scaler(self._bounds), self._counted(), time.monotonic()
        while not self._stopping.wait(LOOK_S):
            counted, now = self._counted(), time.monotonic()
            if self._bounds.most > self._bounds.min:
                load, there = Load.between(before, counted, seconds=now - then), len(self._ready())
                if there == len(self._keepers):
                    self._scale(scaler.look(load, replicas=there, now=now), load)
            before, then = counted, now

    def _scale(self, wanted: int, load: Load) -> None:
        there = len(self._keepers)
        if wanted == there or self._stopping.is_set():
            return
        told = f"{wanted} replicas in the place of {there}: {load.cpu:.2f} cores, {load.in_flight:.1f} requests in flight"
        self._events.emit("serve.scaled", told, replicas=wanted)
        if wanted > there:
            self._start([number for number in range(1, wanted + 1) if number not in self._keepers])
        else:
            keeper = self._keepers[max(self._keepers)]
            keeper.stop()
            if not keeper.wait(self._config.drain_timeout_s + MARGIN_S):
                keeper.kill()
                keeper.wait(MARGIN_S)
            del self._keepers[keeper.number]

    def _ready(self) -> list[Keeper]:
        return [keeper for keeper in list(self._keepers.values()) if keeper.ready.is_set()]

    def _counted(self) -> Snapshot:
        """What all replicas have counted since the start, those included that have ended: no sum ever goes back."""
        fresh: list[tuple[Keeper, int, Snapshot]] = []
        for keeper in self._ready():
            pid = keeper.pid
            with suppress(TidemillError):
                fresh.append((keeper, pid, keeper.ask("snapshot", timeout_s=SNAPSHOT_S)))
        with self._counting:
            for keeper, pid, snapshot in fresh:
                # Kept before it is shown: should the replica die now, what was shown has been counted.
                if keeper.ready.is_set() and keeper.pid == pid:
                    keeper.snapshot = snapshot
            parts = [(str(keeper.number), keeper.snapshot) for keeper in list(self._keepers.values())]
            return merged([("", self._departed), *parts])

    def _metrics(self) -> Snapshot:
        counted = self._counted()
        counted["tidemill_replicas"] = {"together": "sum", "gauge": True, "samples": [[[], [len(self._ready())]]]}
        counted["tidemill_replica_restarts_total"] = {"together": "sum", "gauge": False, "samples": [[[], [self._restarts]]]}
        return counted

    def _listen_to_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self._stopping.set())
