"""What a server answers for, as it is and as the ledger wants it: the one place where it is changed, one change after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tidemill.core.errors import Conflict, NotFound, TidemillError, Unavailable
from tidemill.core.events import Events
from tidemill.core.ledger import Ledger
from tidemill.serve.deployment.slot import Slot, Standing, resolved, slot_of

# How often the ledger is looked at, and how often one that does not answer is told of.
LOOK_S = 0.5
TOLD_AGAIN_S = 60.0

Deploy = Callable[[tuple[Slot, ...]], None]
Tell = Callable[[tuple[Standing, ...]], None]


class Roster:
    """Follows the ledger, and loads and unloads by name. Safe from several threads.

    Args:
        ledger: Where aliases are looked up; without one nothing is followed.
        deploy: Loads what is new beside the old, then answers with exactly these slots; raises and leaves all as it was where it cannot.
        told: Is told how every slot stands whenever that changes.
        where: Address of the server, for the ledger.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        *,
        ledger: Ledger | None,
        follow: bool = True,
        deploy: Deploy,
        told: Tell,
        events: Events,
        where: str = "",
    ) -> None:
        self._slots = list(slots)
        self._ledger = ledger
        self._follow = follow
        self._deploy = deploy
        self._told = told
        self._events = events
        self._where = where
        self._lock = threading.RLock()
        self._unloaded: dict[str, list[Slot]] = {}
        # By reference: the version that could not be deployed, and why. It is tried again when the alias has moved, or by `load`.
        self._failed: dict[str, tuple[Slot, str]] = {}
        self._head: int | None = None
        self._quiet_until = 0.0

    def begin(self) -> None:
        """Tell how things stand, and enter into the ledger what answers now."""
        with self._lock:
            self._tell()
            for slot in self._slots:
                self._record("deployed", slot, before=None)

    def run(self, stopping: threading.Event) -> None:
        """Follow the ledger until `stopping`; returns at once where nothing is followed."""
        if self._ledger is None or not self._follow:
            return
        while not stopping.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """One look at the ledger: deploy what an alias that is followed has moved to. Never raises."""
        with self._lock:
            try:
                head = self._ledger.head() if self._ledger is not None else None
                if head == self._head:
                    return
                for slot in [slot for slot in self._slots if slot.follows is not None]:
                    self._follow_one(slot)
                self._head = head
            except Exception as error:  # noqa: BLE001 - the edge of a thread, which must go on looking
                self._complain(error)

    def load(self, ref: str) -> None:
        """Answer for a name: one that was unloaded, one that answers already (anew), or one of the ledger.

        Raises:
            NotFound: If there is no such name.
            TidemillError: If its package cannot be deployed; all is as it was.
        """
        with self._lock:
            known = self._unloaded.get(ref) or [slot for slot in self._slots if slot.name == ref]
            wanted = [self._again(slot) for slot in known] or [self._found(ref)]
            others = [slot for slot in self._slots if slot not in known]
            self._change([*others, *wanted] if ref in self._unloaded or not known else _in_place(self._slots, known, wanted), wanted)
            self._unloaded.pop(wanted[0].name, None)
            self._tell()

    def unload(self, name: str) -> None:
        """Answer no more for any version of a name.

        Raises:
            NotFound: If nothing of that name answers.
            Conflict: If nothing else does.
        """
        with self._lock:
            gone = [slot for slot in self._slots if slot.name == name]
            if not gone:
                raise NotFound("model", name, {slot.name for slot in self._slots})
            left = [slot for slot in self._slots if slot not in gone]
            if not left:
                raise Conflict(f"one model must answer, {name} is the last", hint="load another first, or stop the server")
            self._deploy(tuple(left))
            self._slots, self._unloaded[name] = left, gone
            self._events.emit("serve.unloaded", f"{name} was unloaded", model=name)
            self._tell()

    def standings(self) -> tuple[Standing, ...]:
        """How every slot stands."""
        with self._lock:
            made = [self._standing(slot) for slot in self._slots]
            return (*made, *(replace(self._standing(slot), state="unloaded") for gone in self._unloaded.values() for slot in gone))

    def _follow_one(self, slot: Slot) -> None:
        wanted = self._found(slot.ref)
        failed = self._failed.get(slot.ref)
        if wanted.key == slot.key:
            if failed is not None:
                del self._failed[slot.ref]
                self._tell()
        elif failed is None or failed[0].key != wanted.key:
            try:
                self._change(_in_place(self._slots, [slot], [wanted]), [wanted], before=slot)
            except Unavailable:  # nothing is known of the package: the next look tries again
                raise
            except Exception as error:  # noqa: BLE001 - the process edge: whatever a package does, the one that answers goes on
                self._failed[slot.ref] = (wanted, str(error))
                told = f"{slot.name} {wanted.version} could not be deployed, {slot.version} goes on: {error}"
                self._events.emit("serve.not_deployed", told, level="error", model=slot.name, version=wanted.version, serving=slot.version)
                self._record("not_deployed", wanted, before=slot, reason=str(error))
            self._tell()

    def _change(self, slots: list[Slot], new: Sequence[Slot], *, before: Slot | None = None) -> None:
        start = time.monotonic()
        self._deploy(tuple(slots))
        known, self._slots = self._slots, slots
        for slot in new:
            self._failed.pop(slot.ref, None)
        self._tell()
        for slot in [slot for slot in new if slot not in known]:
            was = f" in the place of {before.version}" if before is not None else ""
            told = f"{slot.name} {slot.version} answers{was}, after {time.monotonic() - start:.1f} s"
            self._events.emit("serve.deployed", told, model=slot.name, version=slot.version)
            self._record("deployed", slot, before=before)

    def _again(self, slot: Slot) -> Slot:
        """What a slot's reference stands for now."""
        return replace(slot_of(slot.open()), ref=slot.ref) if slot.number is None else self._found(slot.ref) if self._ledger else slot

    def _found(self, ref: str) -> Slot:
        if self._ledger is None:
            raise NotFound("model", ref, {slot.name for slot in self._slots} | set(self._unloaded))
        return resolved(ref, self._ledger, follow=self._follow)

    def _standing(self, slot: Slot) -> Standing:
        failed = self._failed.get(slot.ref)
        return Standing(
            model=slot.name,
            alias=slot.follows,
            version=slot.version,
            wanted=failed[0].version if failed else slot.version,
            state="failed" if failed else "serving",
            reason=failed[1] if failed else None,
        )

    def _tell(self) -> None:
        self._told(self.standings())

    def _record(self, kind: Any, slot: Slot, *, before: Slot | None, reason: str = "") -> None:
        """Enter what happened; a ledger that takes nothing stops no server."""
        if self._ledger is None or slot.number is None:
            return
        evidence = {"at": self._where, "alias": slot.follows, "before": before.number if before is not None else None}
        try:
            self._ledger.record(kind, slot.name, version=slot.number, why=reason or f"at {self._where}", evidence=evidence)
        except (TidemillError, OSError) as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + TOLD_AGAIN_S
            hint = "" if isinstance(error, Unavailable) else "; what is served stays"
            self._events.warn("serve.ledger", f"the ledger cannot be followed now: {error}{hint}")


def _in_place(slots: Sequence[Slot], old: Sequence[Slot], new: Sequence[Slot]) -> list[Slot]:
    """The slots with some of them exchanged, so that the default stays the default."""
    exchanged = dict(zip(old, new, strict=True))
    return [exchanged.get(slot, slot) for slot in slots]
