"""The project file: read, merged, overridden and validated whole before anything runs.

Each section's struct lives beside the code that it configures and is found by `load("section", name)`. A struct may
carry `unbuilt: ClassVar[dict[str, str]]`, known keys that this version does not do yet, each with what to do instead,
a `check()` method for rules across fields, which raises ConfigError, and `check_project(project)` for rules across sections.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tidemill.core.artifact import hash_json
from tidemill.core.errors import ConfigError, Unsupported, nearest
from tidemill.core.load import TABLE, load

Task = Literal["binary", "multiclass", "regression", "forecast", "retrieval"]


@dataclass(frozen=True, kw_only=True)
class Project:
    """A whole project. Build it from files with `read`, or in Python from the sections' structs."""

    name: str
    """Name of the package, the deployment and the ledger entry: lower-case letters, digits, - and _."""
    data: Any
    """`[data]`: where rows come from and how they are split."""
    task: Task | None = None
    """What is predicted; told from the target's type when absent."""
    seed: int = 0
    """Seed of everything random."""
    features: Any = None
    """`[features]`: operators by column."""
    model: Any = None
    """`[model]`: the kind of model and its parameters."""
    train: Any = None
    """`[train]`: how the model is fitted."""
    tune: Any = None
    """`[tune]`: search over parameters; absent means none."""
    compress: Any = None
    """`[compress]`: quantise, prune, distil; absent means none."""
    contract: Any = None
    """`[contract]`: the promises that a package must keep."""
    serve: Any = None
    """`[serve]`: the server."""
    stream: Any = None
    """`[stream]`: predictions over a stream."""
    monitor: Any = None
    """`[monitor]`: drift and quality of live traffic."""
    rollout: Any = None
    """`[rollout]`: how versions replace each other."""
    engine: Any = None
    """`[engine]`: where the work runs and with how much memory."""
    folder: Path = field(default=Path("."), compare=False)
    """Folder that relative paths and `prepare` modules are resolved against."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.task in ("forecast", "retrieval"):
            raise Unsupported(f"task: {self.task!r} is not built in this version", hint="binary, multiclass and regression are")
        for section in _SECTIONS:
            if getattr(self, section) is None and section not in _OPTIONAL:
                object.__setattr__(self, section, load("section", section)())
        if getattr(self.contract, "interval", None) is not None and getattr(self.model, "interval", None) is None:
            raise ConfigError("contract.interval: needs intervals to promise anything of", hint="set model.interval, such as 0.9")
        for section in _SECTIONS:
            if hasattr(getattr(self, section), "check_project"):
                getattr(self, section).check_project(self)

    def to_json(self) -> dict[str, Any]:
        """The tree as plain values, without the folder."""
        tree = {f.name: to_plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "folder"}
        return {key: value for key, value in tree.items() if value is not None}


_SECTIONS = tuple(name for name in TABLE["section"])
_OPTIONAL = ("tune", "compress", "stream", "data")


def read(files: Sequence[Path | str], overrides: Iterable[str] = ()) -> Project:
    """The project in `files`, later ones overriding earlier ones, then `path=value` overrides.

    Raises:
        ConfigError: If a file is missing, is no TOML, or holds an unknown key or a bad value.
        Unsupported: If a key is known and not built yet.
    """
    if not files:
        raise ConfigError("a project needs at least one file")
    return from_tree(_tree(files, overrides), folder=Path(files[0]).resolve().parent, where=_where(files))


def read_section(name: str, files: Sequence[Path | str], overrides: Iterable[str] = ()) -> Any:
    """One section of a project, whatever the others say: `read` for a command that needs no more of it.

    Raises:
        ConfigError, Unsupported: As `read`, for this section alone.
    """
    return build(load("section", name), _tree(files, overrides).get(name, {}), path=name, where=_where(files))


def _tree(files: Sequence[Path | str], overrides: Iterable[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name in files:
        path = Path(name)
        try:
            tree = _merged(tree, tomllib.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ConfigError(f"project file {path} must exist", hint="tidemill init DATA --target COLUMN writes one") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"project file {path} must be readable: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: must be TOML: {error}") from error
    for override in overrides:
        tree = _merged(tree, _override(override))
    return tree


def _where(files: Sequence[Path | str]) -> str:
    return ", ".join(str(name) for name in files) or "command line"


def from_tree(tree: Mapping[str, Any], *, folder: Path = Path("."), where: str = "project") -> Project:
    """The project that a tree of plain values describes; the same checks as for a file."""
    known = [f.name for f in dataclasses.fields(Project) if f.name != "folder"]
    for key in tree:
        if key not in known:
            raise ConfigError(_unknown(key, known, where))
    for key in ("name", "data"):
        if key not in tree:
            raise ConfigError(f"{key}: must be given ({where})")
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key in TABLE["section"]:
            values[key] = build(load("section", key), value, path=key, where=where)
        else:
            values[key] = _value(get_type_hints(Project)[key], value, key, where)
    return Project(**values, folder=folder)


def build(struct: type, tree: Any, *, path: str, where: str = "project") -> Any:
    """An instance of the dataclass `struct` from a mapping, every key and value checked.

    A struct may define the classmethod `from_tree(tree, path, where)` to parse itself.
    """
    if isinstance(tree, struct):
        return tree
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: must be a table, got {tree!r} ({where})")
    if hasattr(struct, "from_tree"):
        return struct.from_tree(tree, path, where)
    fields = {f.name: f for f in dataclasses.fields(struct)}
    unbuilt: Mapping[str, str] = getattr(struct, "unbuilt", {})
    hints = get_type_hints(struct)
    values = {}
    for key, value in tree.items():
        if key in unbuilt:
            raise Unsupported(f"{path}.{key}: is not built in this version ({where})", hint=unbuilt[key])
        if key not in fields:
            raise ConfigError(_unknown(f"{path}.{key}", [f"{path}.{name}" for name in [*fields, *unbuilt]], where))
        values[key] = _value(hints[key], value, f"{path}.{key}", where, fields[key].metadata)
    for key, f in fields.items():
        if key not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{path}.{key}: must be given ({where})")
    made = struct(**values)
    if hasattr(made, "check"):
        made.check()
    return made


def check_name(name: str) -> None:
    """Check the name of a project or package, which is that of folders, addresses and metrics too.

    Raises:
        ConfigError: If it is more than lower-case letters, digits, - and _.
    """
    if not re.fullmatch(r"[a-z0-9_-]+", name):
        raise ConfigError(f"name: must be lower-case letters, digits, - and _, got {name!r}")


def to_plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if callable(value):
        return f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', type(value).__name__)}"
    return str(value) if isinstance(value, Path) else value


def fingerprint(**parts: Any) -> str:
    """What a stage's output depends on, as one hash."""
    return hash_json({key: to_plain(value) for key, value in parts.items()})


def _value(hint: Any, value: Any, path: str, where: str, limits: Mapping[str, Any] = types.MappingProxyType({})) -> Any:
    """`value` as the type `hint` says, or a ConfigError that names the path."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _union(args, value, path, where, limits)
    if origin is Literal:
        if value not in args:
            close = nearest(str(value), [str(arg) for arg in args])
            extra = f"; did you mean {close!r}?" if close else ""
            raise ConfigError(f"{path}: must be one of {', '.join(map(str, args))}, got {value!r} ({where}){extra}")
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path=path, where=where)
    if origin in (tuple, list, Sequence):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path}: must be a list, got {value!r} ({where})")
        items = [_value(args[0], item, f"{path}[{i}]", where) for i, item in enumerate(value)] if args else list(value)
        return tuple(items)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: must be a table, got {value!r} ({where})")
        return {key: _value(args[1], item, f"{path}.{key}", where) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{path}: must be {_name(hint)}, got {value!r} ({where})")
    low, high = limits.get("min"), limits.get("max")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bounds = f"in {low}..{high}" if high is not None else f"at least {low}"
        raise ConfigError(f"{path}: must be {bounds}, got {value!r} ({where})")
    return value


def _union(args: tuple[Any, ...], value: Any, path: str, where: str, limits: Mapping[str, Any]) -> Any:
    if value is None and type(None) in args:
        return None
    choices = [arg for arg in args if arg is not type(None)]
    failures = []
    for choice in choices:
        try:
            return _value(choice, value, path, where, limits)
        except ConfigError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    for choice, failure in zip(choices, failures, strict=True):
        if isinstance(choice, type) and isinstance(value, choice) and not isinstance(value, bool):
            raise failure  # of the right type, and out of its range
    deepest = max(failures, key=lambda failure: failure.message.partition(": ")[0].count("."))
    if deepest.message.partition(": ")[0] != path:
        raise deepest
    raise ConfigError(f"{path}: must be {' or '.join(_name(choice) for choice in choices)}, got {value!r} ({where})")


def _name(hint: Any) -> str:
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    if hint in plain:
        return plain[hint]
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(map(str, get_args(hint)))
    return {dict: "a table", list: "a list", tuple: "a list"}.get(origin, getattr(hint, "__name__", str(hint)))


def _unknown(path: str, known: Iterable[str], where: str) -> str:
    close = nearest(path, known)
    return f"{path}: is not a known key ({where})" + (f"; did you mean {close!r}?" if close else f"; known: {', '.join(known)}")


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both_tables = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both_tables else value
    return result


def _override(text: str) -> dict[str, Any]:
    """The tree of one `path=value`; the value is TOML, or text where it is none."""
    path, equals, raw = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set: must be path=value, got {text!r}")
    try:
        tree = tomllib.loads(f"{path} = {raw}")
    except tomllib.TOMLDecodeError:
        value: Any = raw.strip()
        for key in reversed(path.strip().split(".")):
            value = {key: value}
        tree = value
    return tree
