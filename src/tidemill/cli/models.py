"""`tidemill models`: versions, aliases, their history, and two of them side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tidemill.cli import options as given
from tidemill.core.errors import EXIT_DONE, ConfigError


def listed(options: argparse.Namespace) -> int:
    ledger = given.ledger(options)
    names = [options.name] if options.name else ledger.names()
    versions = [version for name in names for version in ledger.versions(name)]
    if options.name and not versions:
        ledger.resolve(options.name)
    rows = [
        {"name": v.name, "version": v.version, "aliases": list(v.aliases), "registered": v.at, "identity": v.identity, **v.evidence}
        for v in versions
    ]

    def show() -> None:
        from tidemill.ui.console import table

        shown = [
            [r["name"], str(r["version"]), ", ".join(r["aliases"]), _quality(r), r["registered"][:16].replace("T", " "), r["identity"][:12]]
            for r in rows
        ]
        table(["name", "version", "aliases", "quality", "registered", "identity"], shown)

    return given.say(options, rows, show)


def show(options: argparse.Namespace) -> int:
    package = given.resolve(options, options.model)
    facts = {
        "name": package.name, "version": package.version, "path": str(package.path), "task": package.task, "identity": package.identity,
        "inputs": package.schema.to_json(), "outputs": package.outputs, "classes": package.classes, "contract": package.contract(),
        "evidence": package.evidence(), "lineage": package.manifest["lineage"],
    }  # fmt: skip

    def show() -> None:
        from tidemill.core.contract import judge
        from tidemill.ui.console import table

        print(f"{package.name} version {package.version or '-'}  {package.task}  {package.identity[:16]}\n{package.path}\n")
        marks = {True: "kept", False: "BROKEN", None: "not measured here"}
        verdicts = judge(package.contract(), package.evidence())
        table(["promise", "verdict"], [[str(verdict), marks[verdict.kept]] for verdict in verdicts])
        table(["input", "type"], [[column.name, column.type] for column in package.schema])

    return given.say(options, facts, show)


def compare(options: argparse.Namespace) -> int:
    from tidemill.core.errors import ContractViolation
    from tidemill.packaging.compare import compare, held_out, labelled
    from tidemill.packaging.rows import Rows, Target
    from tidemill.ui.compare import render_compare

    first, second = given.resolve(options, options.first), given.resolve(options, options.second)
    rows: Rows
    if options.data:
        column = options.target or second.manifest["signature"].get("target")
        if not column:
            raise ConfigError(f"--target must name the column of true values, {second.name} does not know it")
        rows, target = labelled(Path(options.data), (first, second), column), Target(column=column, classes=second.classes)
    else:
        rows, target = held_out(second, given.home(options) / "store")
    found = compare(first, second, rows, target, metric=options.metric, max_drop=options.max_drop)
    if options.output:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        Path(options.output).write_text(render_compare(found), encoding="utf-8")
    given.say(options, found, lambda: _print_comparison(found, options.output))
    if options.gate and not found["passed"]:
        raise ContractViolation(found["breaches"])
    return EXIT_DONE


def _print_comparison(found: dict[str, Any], output: str | None) -> None:
    from tidemill.ui.compare import better, named
    from tidemill.ui.console import table
    from tidemill.ui.format import interval, milliseconds, score, size, words

    sides = (found["first"], found["second"])
    lines = []
    for name, measured in sorted(found["metrics"].items(), key=lambda item: item[0] != found["metric"]):
        difference = measured["difference"]
        said = {"second": "better", "first": "worse", "neither": "no difference"}[better(difference)]
        points = (score(measured[side]["point"]) for side in ("first", "second"))
        lines.append([words(name), *points, score(difference["estimate"]), interval(difference["low"], difference["high"]), said])
    table(["", *(named(side) for side in sides), "better by", "95 % interval", "second is"], lines)
    table(["", *(named(side) for side in sides)], [
        ["median of a row", *(milliseconds(side["p50_ms"]) for side in sides)],
        ["graphs", *(size(side["mb"] * 1e6) for side in sides)],
    ])  # fmt: skip
    print(f"{found['rows']:,} rows: {found['text']}")
    if found["caution"]:
        print(f"beware: {found['caution']}")
    for breach in found["breaches"]:
        print(f"  {breach}")
    if output:
        print(f"page: {output}")


def history(options: argparse.Namespace) -> int:
    entries = given.ledger(options).history(options.name)
    return given.say(
        options, [entry.__dict__ for entry in entries], lambda: print("\n".join(map(str, entries)) or "nothing has happened yet")
    )


def promote(options: argparse.Namespace) -> int:
    from tidemill.rollout.promote import promote

    entry = promote(given.ledger(options), options.name, options.version, alias=options.alias, expected=options.expected, why=options.why)
    return given.say(options, entry.__dict__, lambda: print(entry))


def rollback(options: argparse.Namespace) -> int:
    entry = given.ledger(options).rollback(options.name, alias=options.alias, why=options.why)
    return given.say(options, entry.__dict__, lambda: print(entry))


def sync(options: argparse.Namespace) -> int:
    project = given.project(options)
    mirrors, ledger = given.mirrors(project), given.ledger(options)
    if not mirrors:
        raise ConfigError("rollout.mirrors: must name a mirror to sync with, is empty", hint='[rollout] mirrors = ["mlflow"]')
    said = [line for mirror in mirrors for line in mirror.pull_aliases(ledger, project.name)]
    aliases = {alias: version.version for version in ledger.versions(project.name) for alias in version.aliases}
    for mirror in mirrors:
        mirror.push_aliases(project.name, aliases)
    return given.say(options, {"events": said, "aliases": aliases}, lambda: print("\n".join(said) or "ledger and mirrors agree"))


def backup(options: argparse.Namespace) -> int:
    from tidemill.core.backup import backup

    count = backup(given.ledger(options), Path(options.output))
    return given.say(options, {"path": options.output, "files": count}, lambda: print(f"{options.output}: {count} files"))


def restore(options: argparse.Namespace) -> int:
    from tidemill.core.backup import restore

    home = Path(options.home) if options.home else Path.cwd() / ".tidemill"
    events = restore(Path(options.archive), home)
    return given.say(options, {"home": str(home), "events": events}, lambda: print(f"{home}: {events} events, every package whole"))


def export(options: argparse.Namespace) -> int:
    out, layout = Path(options.output), options.layout
    if layout is None:
        return _copy(options, out)
    from tidemill.packaging.layouts import export

    package = given.resolve(options, options.model)
    notes = export(package, out, layout=layout, storage_uri=options.storage_uri, max_batch=options.max_batch)
    if package.version is not None:
        given.ledger(options).record("exported", package.name, version=int(package.version), why=f"to {out}, as {layout}")
    return given.say(
        options, {"path": str(out), "layout": layout, "notes": notes}, lambda: print("\n".join([str(out), *(f"- {n}" for n in notes)]))
    )


def _copy(options: argparse.Namespace, out: Path) -> int:
    import shutil

    if options.storage_uri is not None or options.max_batch:
        raise ConfigError("--layout: must be given with --storage-uri and --max-batch, got none")
    version = given.ledger(options).resolve(options.model)
    if out.exists():
        raise ConfigError(f"{out}: must not exist yet")
    version.open()
    shutil.copytree(version.path, out)
    given.ledger(options).record("exported", version.name, version=version.version, why=f"to {out}")
    return given.say(options, {"path": str(out)}, lambda: print(out))


def _quality(row: dict[str, Any]) -> str:
    return f"{row['metric']} {row['value']:.4f}" if "value" in row else ""
