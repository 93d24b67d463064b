from __future__ import annotations

import io

import pytest
from rich.console import Console

from tidemill.core.events import Events
from tidemill.ui.console import console, table


def screen(*, terminal: bool, width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=width, highlight=False, soft_wrap=not terminal, legacy_windows=False), file


def tell(target: Console) -> None:
    events = Events(console(target))
    events.emit("run.started", "flights", run="r1")
    events.emit("stage.cached", "data", stage="data", path="/x")
    events.emit("stage.started", "train", stage="train")
    events.emit("train.round", "round 7", level="progress", round=7)
    events.warn("train.slow", "something [bold]odd[/bold]\x1b[2J")
    events.emit("stage.done", "train", stage="train", seconds=21.7, facts={"rounds": 214, "metric": "roc_auc", "valid": 0.7071})
    events.emit("package.registered", "flights version 3", version=3)


def test_a_pipe_gets_one_plain_line_for_what_stays() -> None:
    target, file = screen(terminal=False)
    tell(target)
    assert file.getvalue().splitlines() == [
        "· data      unchanged",
        "! something [bold]odd[/bold]\ufffd[2J",
        "✓ train     21.7\u00a0s      214 rounds, ROC AUC 0.7071",
    ]


def test_a_terminal_gets_colour_and_the_same_lines() -> None:
    target, file = screen(terminal=True)
    tell(target)
    assert "\x1b[32m✓ \x1b[0m" in file.getvalue()
    assert "round 7" in file.getvalue()
    assert "\x1b[?25h" in file.getvalue().rpartition("\x1b[?25l")[2]  # the cursor is back


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    target, file = screen(terminal=True)
    tell(target)
    assert "\x1b[32m" not in file.getvalue()


def test_an_error_ends_the_moving_line_and_marks_the_stage() -> None:
    target, file = screen(terminal=False)
    events = Events(console(target))
    events.emit("stage.started", "data", stage="data")
    events.emit("run.failed", "column late must exist", level="error")
    assert file.getvalue() == "✗ data\n"


def test_a_screen_without_unicode_gets_ascii_marks() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    target = Console(file=file, force_terminal=False, highlight=False)
    Events(console(target)).emit("stage.cached", "data", stage="data")
    file.flush()
    assert file.buffer.getvalue() == b". data      unchanged\n"  # type: ignore[attr-defined]


def test_a_table_in_a_pipe_is_never_cut() -> None:
    target, file = screen(terminal=False, width=20)
    table(["name", "quality"], [["flights", "0.7071"], ["x" * 60, "航班[red]"]], screen=target)
    assert file.getvalue().splitlines() == ["name" + " " * 58 + "quality", "flights" + " " * 55 + "0.7071", "x" * 60 + "  航班[red]"]


def test_a_table_on_a_terminal_folds_to_its_width() -> None:
    target, file = screen(terminal=True, width=40)
    table(["name", "promise"], [["flights", "word " * 20]], screen=target)
    assert file.getvalue().count("word") == 20
    assert len(file.getvalue().splitlines()) > 3


def test_what_a_server_says_of_itself_stays_in_a_log() -> None:
    target, file = screen(terminal=False)
    events = Events(console(target))
    events.emit("serve.ready", "http://127.0.0.1:8000", url="http://127.0.0.1:8000")
    events.emit("serve.failed", "POST /predict: odd [row]", level="error", traceback="Traceback [most recent]\nValueError: odd")
    events.emit("serve.stopping", "finishing requests in flight")
    assert file.getvalue().splitlines() == [
        "✓ serve     http://127.0.0.1:8000  (fields and examples: http://127.0.0.1:8000/docs)",
        "✗ serve     POST /predict: odd [row]",
        "Traceback [most recent]",
        "ValueError: odd",
    ]
