"""One tree of errors, split by what the caller can do about them.

Grammar of a message: what must hold, what was got, where; then a hint.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CONTRACT = 3
EXIT_INTERRUPTED = 130


class TidemillError(Exception):
    """Root of every error that Tidemill raises on purpose; `exit_code` is the command line's answer to it."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}; {self.hint}"


class ConfigError(TidemillError):
    """The project file or the call is wrong: mend it and call again."""

    exit_code = EXIT_USAGE


class DataError(TidemillError):
    """The data is not what was declared: mend the data or the declaration.

    `field` names the column, where one is at fault.
    """

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field


class NotFound(TidemillError):
    """A name is not known; the message lists the known ones, the nearest first."""

    exit_code = EXIT_USAGE

    def __init__(self, what: str, name: str, known: Iterable[str] = (), *, hint: str | None = None) -> None:
        self.name = name
        self.known = sorted(known)
        super().__init__(f"{what} {name!r} is not known{_choices(name, self.known)}", hint=hint)


class Conflict(TidemillError):
    """Somebody else changed or holds the same thing: look again and retry."""


class ContractViolation(TidemillError):
    """A measured value breaks a promise. Nothing that depends on the promise was written."""

    exit_code = EXIT_CONTRACT

    def __init__(self, breaches: Iterable[str], *, hint: str | None = None) -> None:
        self.breaches = list(breaches)
        super().__init__("contract broken: " + "; ".join(self.breaches), hint=hint)


class MissingDependency(TidemillError):
    """A library is not installed; the message names the extra that brings it."""

    exit_code = EXIT_USAGE

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        self.library = library
        self.extra = extra
        super().__init__(f"{purpose} needs {library}", hint=f"pip install 'tidemill[{extra}]'")


class Unavailable(TidemillError):
    """A service or resource does not answer now; `retry_after_s` says when to try again."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class Unsupported(TidemillError):
    """Known, but not done here; the message names what can do it."""

    exit_code = EXIT_USAGE


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest in spelling to `name`, or None where none is close."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def _choices(name: str, known: list[str]) -> str:
    if not known:
        return ""
    close = nearest(name, known)
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f" (did you mean {close!r}? known: {listed})" if close else f" (known: {listed})"
