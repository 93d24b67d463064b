"""`tidemill serve keys`: API keys made, listed, renewed and ended."""

from __future__ import annotations

import argparse
import datetime as dt
import re
from pathlib import Path

from tidemill.cli import options as given
from tidemill.core.errors import ConfigError

UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def add(options: argparse.Namespace) -> int:
    from tidemill.serve.access import keys

    expires = dt.datetime.now(dt.UTC) + duration(options.expires) if options.expires else None
    key = keys.add(_path(options), options.name, scopes=options.scope or ["predict", "read"], expires=expires)
    return given.say(options, {"name": options.name, "key": key}, lambda: _show(key))


def listed(options: argparse.Namespace) -> int:
    from tidemill.serve.access import keys

    found = keys.listed(_path(options))

    def show() -> None:
        from tidemill.ui.console import table

        rows = [
            [k["name"], k["id"], " ".join(k["scopes"]), k["created"][:16].replace("T", " "), (k["expires"] or "never")[:16].replace("T", " "),
             "yes" if k["valid"] else "no"]
            for k in found
        ]  # fmt: skip
        table(["name", "id", "scopes", "created", "ends", "valid"], rows)

    return given.say(options, found, show)


def rotate(options: argparse.Namespace) -> int:
    from tidemill.serve.access import keys

    key = keys.rotate(_path(options), options.name, overlap=duration(options.overlap))
    return given.say(options, {"name": options.name, "key": key}, lambda: _show(key))


def revoke(options: argparse.Namespace) -> int:
    from tidemill.serve.access import keys

    count = keys.revoke(_path(options), options.which)
    return given.say(
        options,
        {"revoked": count},
        lambda: print(f"{count} ended; running servers refuse {'it' if count == 1 else 'them'} within a second"),
    )


def duration(text: str) -> dt.timedelta:
    """A length of time such as 30m, 24h or 90d.

    Raises:
        ConfigError: If it is none.
    """
    match = re.fullmatch(r"(\d+)([mhd])", text)
    if match is None:
        raise ConfigError(f"a length of time must be such as 30m, 24h or 90d, got {text!r}")
    return dt.timedelta(**{UNITS[match[2]]: int(match[1])})


def _path(options: argparse.Namespace) -> Path:
    return Path(options.file) if options.file else given.home(options) / "keys.json"


def _show(key: str) -> None:
    print(key)
    print("this is the only time that it is shown; send it as Authorization: Bearer, or as X-API-Key")
