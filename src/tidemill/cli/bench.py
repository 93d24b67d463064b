"""`tidemill bench`: how fast a package answers here, or a server anywhere."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidemill.cli import options as given
from tidemill.core.errors import ConfigError, DataError, NotFound
from tidemill.core.schema import Schema

if TYPE_CHECKING:
    from tidemill.core.package import Package

# Most rows that are taken out of a file.
MOST_ROWS = 2_000


def bench(options: argparse.Namespace) -> int:
    if (options.model is None) == (options.url is None):
        raise ConfigError("a package or --url must be named, and not both", hint="tidemill bench flights, tidemill bench --url http://...")
    found = _server(options) if options.url else _package(options)
    name = re.sub(r"[^\w.-]+", "-", f"{found['name']}-{found['version'] or 'folder'}")
    out = Path(options.output) if options.output else given.home(options) / "reports" / f"bench-{found['of']}-{name}.html"
    from tidemill.ui.bench import render_bench

    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render_bench(found), encoding="utf-8")
    return given.say(options, {**found, "report": str(out)}, lambda: _show(found, out))


def _package(options: argparse.Namespace) -> dict[str, Any]:
    from tidemill.bench.package import EVIDENCE, RunPlan, bench_package
    from tidemill.core.package import add_evidence

    _only(options, "--url", ("concurrency", "rate", "key", "ca", "version", "name"))
    package, events = given.resolve(options, options.model), given.events(options)
    said: dict[str, Any] = _lengths(options)
    if options.runtime:
        said["runtime"] = tuple(options.runtime.split(","))
    plan = RunPlan(
        batch=_numbers("--batch", options.batch),
        sessions=_numbers("--sessions", options.sessions),
        threads=_numbers("--threads", options.threads),
        **said,
    )
    records = _records(Path(options.rows), package.schema) if options.rows else _own_rows(options, package)
    found = bench_package(package, records=records, plan=plan, events=events)
    try:
        add_evidence(package, EVIDENCE, found)
    except OSError as error:
        events.warn("bench.evidence_not_written", f"{package.path}: what was measured stays out of the package: {error.strerror}")
    return found


def _server(options: argparse.Namespace) -> dict[str, Any]:
    import os

    from tidemill.bench.server import LoadPlan, bench_server

    _only(options, "NAME", ("sessions", "threads", "runtime"))
    rows = (lambda columns: _records(Path(options.rows), Schema.from_json(columns))) if options.rows else None
    plan: dict[str, Any] = _lengths(options)
    if options.concurrency:
        plan["concurrency"] = _numbers("--concurrency", options.concurrency)
    if options.batch:
        plan["batch"] = _numbers("--batch", options.batch)
    if options.rate:
        plan["rate"] = _numbers("--rate", options.rate, kind=float)
    access = {"api_key": options.key or os.environ.get("TIDEMILL_API_KEY"), "ca": options.ca}
    return bench_server(
        options.url,
        model=options.name,
        version=options.version,
        records=rows,
        plan=LoadPlan(**plan),
        events=given.events(options),
        **{name: value for name, value in access.items() if value is not None},
    )


def _show(found: Mapping[str, Any], out: Path) -> None:
    from tidemill.ui.bench import HOW, cautions, columns, sentence
    from tidemill.ui.console import table

    table(*columns(found))
    print(f"\n{sentence(found)}")
    if found.get("knee"):
        print(HOW)
    for caution in cautions(found):
        print(f"beware: {caution}")
    if found["of"] == "package":
        print("entered into the package as evidence/bench")
    print(f"page: {out}")


def _records(path: Path, schema: Schema) -> list[dict[str, Any]]:
    """Rows of a file with the model's columns.

    Raises:
        NotFound: If a column is missing.
        DataError: If it holds no row.
    """
    from tidemill.core.engine import EngineConfig, Source, open_engine

    with open_engine(EngineConfig()) as engine:
        rows = engine.scan(Source(path=str(path), types={column.name: column.type for column in schema}), None)
        for name in schema.names:
            if name not in rows.schema.names:
                raise NotFound("column", name, rows.schema.names, hint=f"in {path}")
        records: list[dict[str, Any]] = []
        for batch in rows.batches():
            records += batch.select(schema.names).slice(0, MOST_ROWS - len(records)).to_pylist()
            if len(records) >= MOST_ROWS:
                break
    if not records:
        raise DataError(f"{path} must hold rows, holds none")
    return records


def _own_rows(options: argparse.Namespace, package: Package) -> list[dict[str, Any]] | None:
    """Rows of the test split that the package was made with, where they are still here."""
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        return None
    from tidemill.packaging.compare import held_out
    from tidemill.packaging.rows import every

    try:
        split, _ = held_out(package, given.home(options) / "store")
    except DataError:
        return None
    rows: list[dict[str, Any]] = every(split, package.schema.names, MOST_ROWS).to_pylist()
    return rows


def _lengths(options: argparse.Namespace) -> dict[str, Any]:
    said = {"seconds": options.seconds, "repeats": options.repeats}
    return {name: value for name, value in said.items() if value is not None}


def _numbers(option: str, text: str | None, kind: Callable[[str], Any] = int) -> tuple[Any, ...]:
    """Numbers that stand behind commas."""
    try:
        return tuple(kind(part) for part in (text or "").split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"{option}: must be numbers such as 1,8,64, got {text!r}") from None


def _only(options: argparse.Namespace, other: str, names: Sequence[str]) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name}: must go with {other}, got {getattr(options, name)!r}")
