"""The command line by itself: help, exit codes, JSON, colours and pipes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tidemill import __version__, cli
from tidemill.core.errors import (
    ConfigError,
    Conflict,
    ContractViolation,
    DataError,
    MissingDependency,
    NotFound,
    TidemillError,
    Unavailable,
    Unsupported,
)

VERBS = (
    "init",
    "run",
    "package",
    "predict",
    "serve",
    "serve keys",
    "stream",
    "models",
    "deploy",
    "monitor",
    "compress",
    "bench",
    "plan",
    "ui",
    "doctor",
)


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _parsers(inner)


@pytest.mark.parametrize("parser", list(_parsers(cli.build_parser())), ids=lambda parser: parser.prog)
def test_every_help_has_an_example_that_is_a_right_call(parser: argparse.ArgumentParser) -> None:
    text = parser.format_help()
    assert "example: tidemill" in text
    example = str(parser.epilog).removeprefix("example: ").split(" && ")[0]
    words = [word.strip("'") for word in example.split()[1:]]
    if "'" in example:  # a reason of several words
        words = [*words[: words.index("--why") + 1], "reason"]
    cli.build_parser().parse_args(words)
    if parser.prog != "tidemill":
        assert example.startswith(" ".join(parser.prog.split()))


def test_the_verbs_are_those_of_the_design_and_no_more() -> None:
    (verbs,) = [action for action in cli.build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    assert sorted(verbs.choices) == sorted(VERBS)


@pytest.mark.parametrize("arguments", [[], ["models"], ["monitor"]])
def test_without_a_command_the_help_is_shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out.startswith("usage: tidemill")
    assert not shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "invalid choice: 'rum'"),
        (["run", "--sample", "half"], "argument --sample: invalid float value: 'half'"),
        (["run", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["predict", "flights"], "the following arguments are required: input, output"),
        (["models", "promote", "flights", "two"], "argument version: invalid int value: 'two'"),
        (["models", "promote", "flights", "2", "--expected", "one"], "argument --expected: must be a version, none or any, got 'one'"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_wrong_call(arguments: list[str], message: str, as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*arguments, *(["--json"] if as_json else [])]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("tidemill: ")
    assert "--help shows what it takes" in shown.err
    assert bool(shown.out) == as_json
    if as_json:
        assert json.loads(shown.out)["error"]["exit_code"] == 2


@pytest.mark.parametrize("verb", ["stream", "deploy", "compress", "ui"])
def test_what_is_not_built_says_so_and_what_there_is_instead(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "anything"]) == 2
    first, second = capsys.readouterr().err.strip().splitlines()
    assert first == f"tidemill: tidemill {verb} is not built in this version"
    assert len(second.split()) > 3


ERRORS = [
    (ConfigError("model.depth: must be in 1..16, got 0"), 2), (DataError("column 'a' must be int64", field="a"), 1),
    (NotFound("model", "smal", ["small"]), 2), (Conflict("champion moved"), 1), (ContractViolation(["auc: promised 0.9, got 0.8"]), 3),
    (MissingDependency("httptools", "serve", "tidemill serve"), 2), (Unavailable("disk full", hint="free some"), 1),
    (Unsupported("not built", hint="use another"), 2),
]  # fmt: skip


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_each_error_has_its_exit_code_and_form(
    error: TidemillError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _failing(monkeypatch, error)
    assert cli.main(["doctor", "--json"]) == code
    shown = capsys.readouterr()
    told = json.loads(shown.out)["error"]
    assert told["kind"] == type(error).__name__
    assert told["exit_code"] == code
    assert (told["message"], told["hint"]) == (error.message, error.hint)
    assert told["field"] == getattr(error, "field", None)
    assert shown.err == f"tidemill: {error.message}\n" + (f"  {error.hint}\n" if error.hint else "")


def test_an_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _failing(monkeypatch, KeyboardInterrupt())
    assert cli.main(["doctor"]) == 130
    assert "tidemill: interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "/data/x"), ("must have free space", "free some")),
        (PermissionError(13, "Permission denied", "/data/x"), ("/data/x must be writable", "change its rights")),
        (NotADirectoryError(20, "Not a directory", "/data/x"), ("/data/x must be a folder", "name another folder")),
        (FileNotFoundError(2, "No such file or directory", "/data/x"), ("/data/x", "No such file")),
    ],
)
def test_what_the_disk_refuses(
    error: OSError, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _failing(monkeypatch, error)
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().err
    assert all(word in said for word in words), said


def test_what_was_not_foreseen_is_one_line_and_a_traceback_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _failing(monkeypatch, ZeroDivisionError("division by zero"))
    assert cli.main(["doctor", "--home", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said == f"tidemill: internal error: ZeroDivisionError: division by zero\n  the traceback is in {tmp_path / 'crash.log'}\n"
    assert "Traceback" in (tmp_path / "crash.log").read_text()


def test_home_is_the_nearest_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / ".tidemill").mkdir()
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert cli.home(argparse.Namespace(home=None)) == tmp_path / ".tidemill"
    assert cli.home(argparse.Namespace(home="elsewhere")) == Path("elsewhere")


@pytest.mark.parametrize("arguments", [["models", "list"], ["models", "history"], ["predict", "flights", "in.parquet", "out.parquet"]])
def test_looking_leaves_nothing_behind(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == (2 if arguments[0] == "predict" else 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["package", "m.onnx", "--data", "rows.parquet"], ["init", "rows.parquet", "--target", "late"]])
def test_a_name_that_cannot_be_one(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*arguments, "--name", "../Bad Name"]) == 2
    assert "name: must be lower-case letters, digits, - and _, got '../Bad Name'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_program(tmp_path: Path) -> None:
    assert _program(tmp_path, "--version").stdout == f"tidemill {__version__}\n"
    nothing = _program(tmp_path)
    assert nothing.returncode == 2
    assert all(verb in nothing.stdout for verb in VERBS)


def test_in_a_pipe_nothing_is_coloured(tmp_path: Path) -> None:
    for environment in ({}, {"NO_COLOR": "1"}, {"TERM": "dumb"}):
        shown = _program(tmp_path, "doctor", env=environment)
        assert shown.returncode == 0, shown.stderr
        assert "python" in shown.stdout
        assert "\x1b" not in shown.stdout + shown.stderr


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_reader_that_goes_away_is_told_nothing(form: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tidemill.cli", "doctor", *form]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == ""


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes `tidemill doctor` meet `error`."""

    def examine(home: Path) -> Any:
        raise error

    monkeypatch.setattr("tidemill.doctor.examine", examine)


def _program(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "tidemill.cli", *arguments],
        cwd=folder, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
