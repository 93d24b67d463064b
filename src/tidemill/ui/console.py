"""What a person at a terminal sees: one calm line a stage, and tables. Progress goes to stderr, results to stdout.

Colour and moving lines only where a terminal shows them: `NO_COLOR`, pipes and dumb terminals get plain lines.
"""

from __future__ import annotations

import atexit
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tidemill.ui.format import number, plain, score, seconds, words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from tidemill.core.events import Event, Listener

# Progress moves the line at most this often.
TELL_S = 0.1

MARKS = {"now": ("\u203a", ">"), "done": ("\u2713", "+"), "cached": ("\u00b7", "."), "failed": ("\u2717", "x"), "warning": ("!", "!")}
# What a server says of itself stays: its lines go to a log as often as to a terminal.
SERVING = {"serve.loaded": "{0}", "serve.ready": "{0}  (fields and examples: {0}/docs)", "serve.stopped": "{0}"}
COLOURS = {"done": "green", "cached": "dim", "failed": "red", "warning": "yellow"}


def console(screen: Console | None = None) -> Listener:
    """A listener that tells of a run on stderr.

    A stage under way is one line that moves; when it ends, that line stays, with its time and what came of it. Warnings
    stay. Errors are left to the caller, who knows what to do about them; here only the mark of the stage says so.
    """
    from rich.console import Console

    return _Teller(screen or Console(stderr=True, highlight=False, soft_wrap=True))


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, screen: Console | None = None) -> None:
    """Print rows under their columns on stdout: folded to the width of a terminal, whole lines in a pipe."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    screen = screen or Console(highlight=False)
    cells = [[_clean(str(cell)) for cell in row] for row in rows]
    if screen.is_terminal:
        made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        for column in columns:
            made.add_column(Text(column), overflow="fold")
        for row in cells:
            made.add_row(*(Text(cell) for cell in row))
        screen.print(made)
        return
    lines = [list(columns), *cells]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        text = "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        screen.print(Text(text.rstrip()), soft_wrap=True)


class _Teller:
    """Turns events into lines."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._stage: str | None = None
        self._live: Live | None = None
        self._shown_at = 0.0

    def __call__(self, event: Event) -> None:
        stage = str(event.fields.get("stage", ""))
        if event.kind == "stage.started":
            self._stage = stage
            self._show("")
        elif event.kind == "stage.cached":
            self._line("cached", stage, "unchanged")
        elif event.kind == "stage.done":
            told = _outcome(stage, event.fields.get("facts") or {})
            self._line("done", stage, seconds(event.fields.get("seconds")), told)
            self._stage = None
        elif event.level == "warning":
            self._line("warning", event.message)
        elif event.kind == "train.profiled":
            self._line("done", "profile", event.message)
        elif event.kind in SERVING:
            self._line("done", "serve", SERVING[event.kind].format(event.message))
        elif event.kind == "serve.failed":
            self._line("failed", "serve", event.message)
            self._screen.print(str(event.fields.get("traceback", "")), markup=False, style="dim")
        elif event.level == "error":
            self._line("failed", self._stage or event.kind.partition(".")[0])
            self._stage = None
        elif event.kind.endswith((".done", ".registered")):
            self._clear()
        elif event.kind != "run.started" and not (event.level == "progress" and time.monotonic() - self._shown_at < TELL_S):
            self._shown_at = time.monotonic() if event.level == "progress" else 0.0
            self._show(event.message or _progress(event.fields), name=self._stage or event.kind.partition(".")[0])

    def _show(self, text: str, *, name: str | None = None) -> None:
        """Put what happens now on the moving line, on a terminal; it moves with the events, no thread stirs it between them."""
        if not self._screen.is_terminal:
            return
        from rich.live import Live
        from rich.text import Text

        line = Text.assemble(
            (f"{MARKS['now'][0 if self._fancy else 1]} ", "cyan"), f"{_clean(name or self._stage or ''):<10}", (_clean(text), "dim")
        )
        line.truncate(max(self._screen.width - 1, 10), overflow="ellipsis")
        if self._live is None:
            self._live = Live(console=self._screen, auto_refresh=False, transient=True)
            self._live.start()
            atexit.register(self._clear)
        self._live.update(line, refresh=True)

    def _line(self, state: str, name: str, *parts: str) -> None:
        """A line that stays."""
        from rich.text import Text

        self._clear()
        mark = MARKS[state][0 if self._fancy else 1]
        first = f"{_clean(name):<10}" if parts else _clean(name)
        columns = [f"{_clean(part):<12}" for part in parts[:-1]] + [_clean(part) for part in parts[-1:]]
        text = Text.assemble((f"{mark} ", COLOURS[state]), first, *((column, "dim") for column in columns))
        text.rstrip()
        self._screen.print(text)

    def _clear(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            atexit.unregister(self._clear)

    @property
    def _fancy(self) -> bool:
        return self._screen.encoding.lower().replace("-", "").startswith("utf")


def _outcome(stage: str, facts: Mapping[str, Any]) -> str:
    """What came of a stage, in a few words, from the facts that it left."""
    rows = facts.get("rows")
    parts = []
    if isinstance(rows, Mapping) and stage == "data":
        parts.append(f"{number(sum(rows.values()))} rows")
    elif isinstance(rows, int):
        parts.append(f"{number(rows)} rows")
    counted = ("columns", "trials", "rounds") if stage == "train" else ("columns", "features", "trials", "rounds")
    parts += [f"{number(facts[key])} {key}" for key in counted if isinstance(facts.get(key), int)]
    if facts.get("left_out"):
        parts.append(f"{number(facts['left_out'])} left out")
    metric = facts.get("metric")
    value = next((facts[key] for key in ("value", "best", "valid") if isinstance(facts.get(key), (int, float))), None)
    if isinstance(metric, str) and value is not None:
        low, high = facts.get("low"), facts.get("high")
        between = f" ({score(low)} to {score(high)})" if isinstance(low, (int, float)) and isinstance(high, (int, float)) else ""
        parts.append(f"{words(metric)} {score(value)}{between}")
    if facts.get("verdict") in ("overfit", "useless"):
        parts.append(str(facts["verdict"]))
    return ", ".join(parts)


def _progress(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {plain(value)}" for key, value in fields.items() if isinstance(value, (int, float, str)))


def _clean(text: str) -> str:
    """`text` on one line, without characters that steer a terminal."""
    return re.sub(
        "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]", "\ufffd", text.replace("\n", " ").replace("\t", " ")
    )
