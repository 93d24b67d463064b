"""Names and texts written so that SQL takes them for nothing else."""

from __future__ import annotations

from collections.abc import Iterable


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"


def literals(texts: Iterable[object]) -> str:
    """A list of texts in SQL."""
    return "[" + ", ".join(literal(str(text)) for text in texts) + "]"
