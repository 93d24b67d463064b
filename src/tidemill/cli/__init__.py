"""The command line: one verb a stage, `--json` everywhere, no traceback for a user's mistake.

Exit codes: 0 done, 1 failed, 2 wrong call or config, 3 contract broken, 130 interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tidemill.cli.options import home
from tidemill.cli.parser import build_parser
from tidemill.core.artifact import disk_errors
from tidemill.core.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, TidemillError

if TYPE_CHECKING:
    from tidemill.cli.parser import Command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    known = build_parser()
    options = argparse.Namespace(home=None, json="--json" in (sys.argv if arguments is None else arguments))
    try:
        options = known.parse_args(arguments)
        command: Command | None = getattr(options, "command", None)
        if command is None:
            (getattr(options, "parser", None) or known).print_help()
            return EXIT_USAGE
        with disk_errors(Path(options.home or Path.cwd())):
            return command(options)
    except TidemillError as error:
        return _fail(
            options, error.message, hint=error.hint, kind=type(error).__name__, code=error.exit_code, field=getattr(error, "field", None)
        )
    except KeyboardInterrupt:
        return _fail(options, "interrupted; finished stages are kept, the same command goes on", kind="Interrupted", code=EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except OSError as error:
        where = error.filename2 or error.filename or "a file"
        message = f"{where} must be readable and writable: {error.strerror or error}"
        return _fail(options, message, hint="change its rights or name another", kind="OSError", code=EXIT_FAILED)
    except Exception as error:  # noqa: BLE001 - the process edge: whatever was not foreseen is recorded and said in one line
        log = _record_crash(options, error)
        return _fail(
            options,
            f"internal error: {type(error).__name__}: {error}",
            hint=f"the traceback is in {log}",
            kind="Internal",
            code=EXIT_FAILED,
        )


def program() -> NoReturn:
    """Run the command of `sys.argv` and end the process with its exit code.

    The interpreter is not taken down piece by piece: that takes time, and bindings that find their objects still held complain on stderr.
    """
    try:
        code = main()
        atexit._run_exitfuncs()
    except KeyboardInterrupt:  # a second one, while the first was answered
        code = EXIT_INTERRUPTED
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _fail(options: argparse.Namespace, message: str, *, kind: str, code: int, hint: str | None = None, field: str | None = None) -> int:
    if getattr(options, "json", False):
        problem = {"error": {"kind": kind, "message": message, "hint": hint, "field": field, "exit_code": code}}
        print(json.dumps(problem, ensure_ascii=False))
    print(f"tidemill: {message}" + (f"\n  {hint}" if hint else ""), file=sys.stderr)
    return code


def _record_crash(options: argparse.Namespace, error: Exception) -> str:
    try:
        folder = home(options)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "crash.log").open("a", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)) + "\n")
        return str(folder / "crash.log")
    except OSError:
        traceback.print_exc()
        return "the lines above"
