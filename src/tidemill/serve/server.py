"""`serve`: packages checked, warmed up, held to their contract, then answered for until the process is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tidemill.core.errors import ConfigError
from tidemill.core.events import Events
from tidemill.core.ledger import Ledger
from tidemill.core.load import need
from tidemill.core.package import Package
from tidemill.serve.address import bound, is_loopback
from tidemill.serve.app import App
from tidemill.serve.config import ServeConfig
from tidemill.serve.deployment.local import Deployment
from tidemill.serve.deployment.roster import Roster
from tidemill.serve.deployment.slot import Slot, slot_of
from tidemill.serve.listener import listening_socket
from tidemill.serve.process import Running, answer, url
from tidemill.serve.replicas.config import bounds

__all__ = ["Running", "check_address", "load", "serve"]


def serve(
    targets: Sequence[Package | Slot],
    *,
    config: ServeConfig | None = None,
    ledger: Ledger | None = None,
    follow: bool = True,
    accept_latency: bool = False,
    allow_open: bool = False,
    events: Events | None = None,
    on_ready: Callable[[Running], None] | None = None,
) -> None:
    """Answer for packages until SIGTERM, SIGINT or `Running.stop`; requests in flight are finished before it returns.

    Args:
        targets: Packages checked by `Package.open`, which stay, or slots of the ledger; the first is the default of `/predict`.
        ledger: Whose aliases are followed by slots that follow one; what is deployed is entered there.
        follow: Whether what is loaded later by name follows its alias.
        accept_latency: Serve although a promised latency is broken on this hardware; recorded as an event.
        allow_open: Listen on an address that is not loopback, where whoever reaches it may ask.
        on_ready: Called from another thread when requests are taken.

    Raises:
        ConfigError: If the address is not loopback, nothing guards it and `allow_open` is not said, or no address of this machine.
        Conflict: If the port is taken.
        ContractViolation: If a package breaks its contract on this hardware.
        MissingDependency: If the extra [serve] is not installed.
    """
    need("httptools", "tidemill serve")
    config, events = config or ServeConfig(), events or Events()
    check_address(config.host, allow_open=allow_open, guarded=config.auth is not None, events=events)
    slots = [target if isinstance(target, Slot) else slot_of(target) for target in targets]
    _check_once(slots)
    if bounds(config.replicas).most > 1:
        from tidemill.serve.replicas.supervisor import supervise

        supervise(slots, config=config, ledger=ledger, follow=follow, accept_latency=accept_latency, events=events, on_ready=on_ready)
    else:
        opened = {slot: target for slot, target in zip(slots, targets, strict=True) if isinstance(target, Package)}
        _serve_here(slots, opened, config, ledger, follow, accept_latency, events, on_ready)


def load(targets: Sequence[Package], *, config: ServeConfig, accept_latency: bool = False, events: Events | None = None) -> App:
    """The application for packages: each loaded, warmed up, and its contract held on this hardware.

    Raises:
        ContractViolation: If a package breaks its contract on this hardware.
    """
    slots = [slot_of(package) for package in targets]
    _check_once(slots)
    opened = dict(zip(slots, targets, strict=True))
    return Deployment(config, accept_latency=accept_latency, events=events or Events()).start(slots, opened=opened)


def check_address(host: str, *, allow_open: bool, events: Events, guarded: bool = False) -> None:
    """Refuse an address that others can reach, unless credentials are asked for or the word is given.

    Raises:
        ConfigError: If `host` is not loopback, nothing guards it and `allow_open` is false.
    """
    if is_loopback(host) or guarded:
        return
    if not allow_open:
        raise ConfigError(
            f"serve.host: must be a loopback address, got {host!r}: whoever reaches it could ask",
            hint="[serve.auth] asks for keys or tokens; --allow-open listens there all the same",
        )
    events.warn("serve.open", f"listening on {host}: whoever reaches it may ask", host=host)


def _check_once(slots: Sequence[Slot]) -> None:
    """Slots that follow may come to the same version in time; of those that stay it is a mistake.

    Raises:
        ConfigError: If two that stay are one model.
    """
    staying = [slot.key for slot in slots if slot.follows is None]
    for name, version, identity in staying:
        if staying.count((name, version, identity)) > 1:
            raise ConfigError(f"a model must be served once, got {name!r} version {version!r} twice")


def _serve_here(
    slots: Sequence[Slot],
    opened: Mapping[Slot, Package],
    config: ServeConfig,
    ledger: Ledger | None,
    follow: bool,
    accept_latency: bool,
    events: Events,
    on_ready: Callable[[Running], None] | None,
) -> None:
    """Answer in this process alone."""
    taken = listening_socket(bound(config.host), config.port)
    stopping = threading.Event()
    following: list[threading.Thread] = []
    try:
        config = replace(config, port=taken.getsockname()[1])
        deployment = Deployment(config, accept_latency=accept_latency, events=events)
        app = deployment.start(slots, opened=opened)

        def deploy(wanted: tuple[Slot, ...]) -> None:
            deployment.prepare(wanted)
            deployment.commit()

        roster = Roster(slots, ledger=ledger, follow=follow, deploy=deploy, told=app.stand, events=events, where=url(config))
        app.repository = roster
        following.append(threading.Thread(target=roster.run, args=(stopping,), name="roster", daemon=True))

        def ready(running: Running) -> None:
            roster.begin()
            following[0].start()
            if on_ready is not None:
                on_ready(running)

        answer(app, taken, events=events, on_ready=ready)
    finally:
        stopping.set()
        taken.close()
        for thread in following:
            if thread.is_alive():  # in the middle of a change: the interpreter must not end under a runtime that loads
                thread.join(config.drain_timeout_s)
