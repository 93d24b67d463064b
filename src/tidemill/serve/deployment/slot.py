"""One place of a server: which package answers there, and whether it follows an alias."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tidemill.core.ledger import CHAMPION, Ledger
from tidemill.core.package import Package


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A package to answer for. Two slots of the same name, version and identity are one model."""

    ref: str
    """How it was asked for: NAME, NAME@alias, NAME@3, or a folder."""
    name: str
    path: str
    """Folder of the package."""
    version: str
    """The ledger's number, or the first digits of the identity of a package from no ledger."""
    identity: str
    number: int | None = None
    """The version in the ledger; none for a folder."""
    follows: str | None = None
    """The alias whose moves it follows; none where it stays."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.name, self.version, self.identity

    def open(self) -> Package:
        return Package.open(Path(self.path), version=None if self.number is None else self.version)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a slot stands, for whoever looks at the server."""

    model: str
    alias: str | None
    version: str
    """The version that answers; of an unloaded one the last that did."""
    wanted: str
    """The version that its alias is at."""
    state: Literal["serving", "failed", "unloaded"]
    """failed: the wanted version could not be deployed, the other one answers."""
    reason: str | None = None


def slot_of(package: Package) -> Slot:
    """The slot of an opened package, which stays."""
    number = int(package.version) if package.version is not None and package.version.isdigit() else None
    return Slot(
        ref=str(package.path),
        name=package.name,
        path=str(package.path),
        version=str(package.version or package.identity[:12]),
        identity=package.identity,
        number=number,
    )


def resolved(ref: str, ledger: Ledger, *, follow: bool = True) -> Slot:
    """The slot of a name in the ledger; it follows its alias, `champion` where none is said, unless a version was.

    Raises:
        NotFound: If the name, alias or version is unknown.
        Unavailable: If the ledger does not answer.
    """
    found = ledger.resolve(ref)
    name, _, alias = ref.removeprefix("models:/").partition("@")
    fixed = "/" in name or alias.isdigit() or not follow
    return Slot(
        ref=ref,
        name=found.name,
        path=str(found.path),
        version=str(found.version),
        identity=found.identity,
        number=found.version,
        follows=None if fixed else alias or CHAMPION,
    )
