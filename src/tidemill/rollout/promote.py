"""Promotion: an alias moves to a version only while that version keeps its contract."""

from __future__ import annotations

from typing import Literal

from tidemill.core.contract import enforce, judge
from tidemill.core.errors import TidemillError
from tidemill.core.ledger import CHAMPION, Entry, Ledger


def promote(
    ledger: Ledger,
    name: str,
    version: int,
    *,
    alias: str = CHAMPION,
    expected: int | Literal["any"] | None = "any",
    why: str = "",
) -> Entry:
    """Point `alias` at `version`, whose package is opened and held against its contract first.

    Raises:
        ContractViolation: If its evidence breaks a promise; the refusal is recorded.
        DataError: If the package is damaged; the refusal is recorded.
        Conflict: If the alias is elsewhere than `expected`.
    """
    found = ledger.version(name, version)
    try:
        package = found.open()
        enforce(judge(package.contract(), package.evidence()))
    except TidemillError as error:
        ledger.record("refused", name, version=version, why=str(error), evidence={"alias": alias})
        raise
    return ledger.promote(name, version, alias=alias, expected=expected, why=why, evidence={"identity": found.identity, **found.evidence})
