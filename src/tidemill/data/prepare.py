"""The user's `prepare`: found, called with the sources that it names, and blamed by line when it fails."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tidemill.core.artifact import hash_file, hash_json
from tidemill.core.errors import ConfigError, DataError, TidemillError, nearest
from tidemill.data.config import ONE


def called(prepare: Any, frames: Mapping[str, Any], folder: Path) -> Any:
    """What `prepare` makes of the sources' lazy frames, each handed to the parameter of its name.

    Args:
        prepare: `module:function` or a function.
        frames: Narwhals lazy frame by source name.
        folder: The project's folder, where the module is looked for first.

    Raises:
        ConfigError: If there is no such function, or it takes what is no source.
        DataError: If it raises; names the line of the user's file.
    """
    shown = name_of(prepare)
    with modules_of(folder):
        function = _function(prepare, folder)
        arguments = _arguments(function, frames, shown)
        try:
            return function(**arguments)
        except TidemillError:
            raise
        except Exception as error:
            raise DataError(f"prepare {shown} raised {_said(error)} ({_line(error, function, folder)})") from error


def source_hash(prepare: Any, folder: Path) -> str | None:
    """Hash of the function's module and of every module of the project's folder that it imports; None where there is none."""
    if prepare is None:
        return None
    with modules_of(folder) as imported:
        function = _function(prepare, folder)
        files = imported()
    code = inspect.unwrap(function)
    if (file := inspect.getsourcefile(code)) and Path(file).is_file():
        files.add(Path(file).resolve())
    return hash_json(sorted([file.name, hash_file(file)] for file in files))


def name_of(prepare: Any) -> str:
    """`module:function`, for messages."""
    return prepare if isinstance(prepare, str) else f"{getattr(prepare, '__module__', '?')}:{getattr(prepare, '__qualname__', prepare)}"


@contextmanager
def modules_of(folder: Path) -> Iterator[Callable[[], set[Path]]]:
    """The folder's modules can be imported inside the block, fresh; afterwards nothing of them is left in the interpreter.

    Yields a function that lists the files of the folder's modules imported so far.
    """
    folder = folder.resolve()
    path, before, bytecode = list(sys.path), dict(sys.modules), sys.dont_write_bytecode

    def here() -> dict[str, Path]:
        new = {name: module for name, module in sys.modules.items() if before.get(name) is not module}
        files = {name: getattr(module, "__file__", None) for name, module in new.items()}
        return {name: Path(file).resolve() for name, file in files.items() if file and Path(file).resolve().is_relative_to(folder)}

    # A module of the same name from another folder, or an older state of this one, must not answer.
    local = (
        {file.stem for file in folder.iterdir() if file.suffix == ".py" or (file / "__init__.py").is_file()} if folder.is_dir() else set()
    )
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in local and _replaceable(module)}
    for name in hidden:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield lambda: set(here().values())
    finally:
        for name in here():
            if name not in before or name in hidden:
                del sys.modules[name]
        sys.modules.update(hidden)
        sys.path[:] = path
        sys.dont_write_bytecode = bytecode


def _replaceable(module: Any) -> bool:
    file, name = getattr(module, "__file__", None), str(getattr(module, "__name__", "__main__")).partition(".")[0]
    kept = name in sys.stdlib_module_names or name in ("tidemill", "__main__")
    return isinstance(file, str) and not kept and "site-packages" not in Path(file).parts


def _function(prepare: Any, folder: Path) -> Callable[..., Any]:
    if not isinstance(prepare, str):
        if not callable(prepare):
            raise ConfigError(f"data.prepare: must be a function, got {prepare!r}")
        return prepare  # type: ignore[no-any-return]
    module_name, _, attribute = prepare.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise ConfigError(f"data.prepare: module {module_name!r} must be in {folder}, is not found") from error
        raise DataError(f"data.prepare: {prepare} cannot be imported: {_said(error)} ({_line(error, None, folder)})") from error
    except Exception as error:
        raise DataError(f"data.prepare: {prepare} cannot be imported: {_said(error)} ({_line(error, None, folder)})") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        close = nearest(attribute, [name for name, value in vars(module).items() if callable(value)])
        hint = f"did you mean {module_name}:{close}?" if close else None
        raise ConfigError(f"data.prepare: {getattr(module, '__file__', module_name)} must define the function {attribute!r}", hint=hint)
    return function  # type: ignore[no-any-return]


def _arguments(function: Callable[..., Any], frames: Mapping[str, Any], shown: str) -> dict[str, Any]:
    """Each parameter's frame; a single unnamed source goes to the only parameter, whatever its name."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in named if p.default is p.empty]
    if any(p.kind is p.POSITIONAL_ONLY for p in parameters):
        raise ConfigError(f"data.prepare: {shown} must take its sources by name, not by position only")
    if list(frames) == [ONE] and len(required) == 1:
        return {required[0]: frames[ONE]}
    for name in required:
        if name not in frames:
            close = nearest(name, frames)
            hint = f"did you mean {close!r}?" if close else None
            raise ConfigError(f"data.prepare: {shown} takes {name!r}, which is no source; sources are {', '.join(frames)}", hint=hint)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unused = [name for name in frames if not takes_all and name not in [p.name for p in named]]
    if unused:
        raise ConfigError(
            f"data.prepare: {shown} must take every source, does not take {unused[0]!r}", hint=f"add the parameter {unused[0]}"
        )
    return dict(frames)


def _line(error: BaseException, function: Callable[..., Any] | None, folder: Path) -> str:
    """File and line of the last frame that is the user's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    own = inspect.getsourcefile(inspect.unwrap(function)) if function else None
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if frame.filename == own or Path(frame.filename).is_relative_to(folder.resolve())]
    mine = [frame for frame in mine if "site-packages" not in frame.filename] or list(frames)
    return f"{Path(mine[-1].filename).name}:{mine[-1].lineno}"


def _said(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
