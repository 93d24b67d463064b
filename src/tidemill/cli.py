"""The command line: one verb a stage, `--json` everywhere, no traceback for a user's mistake.

Exit codes: 0 done, 1 failed, 2 wrong call or config, 3 contract broken, 130 interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tidemill.core.artifact import disk_errors
from tidemill.core.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, ConfigError, TidemillError, Unsupported

if TYPE_CHECKING:
    from tidemill.core.events import Events
    from tidemill.core.ledger import Ledger
    from tidemill.core.package import Package
    from tidemill.core.project import Project

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = _parser()
    options = argparse.Namespace(home=None, json="--json" in (sys.argv if arguments is None else arguments))
    try:
        options = parser.parse_args(arguments)
        command: Command | None = getattr(options, "command", None)
        if command is None:
            (getattr(options, "parser", None) or parser).print_help()
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


def _run(options: argparse.Namespace) -> int:
    from tidemill import pipeline
    from tidemill.core.ledger import CHAMPION, Ledger
    from tidemill.ui.report import collect, write_report

    project = _project(options)
    if options.dry_run:
        return _say(options, project.to_json(), lambda: print(f"{project.name}: the project file is valid"))
    events = _events(options)
    home = Path(options.home) if options.home else project.folder / pipeline.HOME
    made = pipeline.run(
        project,
        home=home,
        from_stage=options.from_stage,
        to_stage=options.to_stage,
        sample=options.sample,
        profile=options.profile,
        events=events,
        ledger=Ledger(options.ledger, packages=home / "packages") if options.ledger else None,
    )
    report = made.folder / "report.html"
    write_report(collect(made.stages, run=made.to_json()), report)
    for mirror in _mirrors(project) if made.version is not None else []:
        mirror.publish(made.version, run=made.to_json(), stages=made.stages, report=report, events=events)
    if made.refused is not None:
        print(f"report: {report}", file=sys.stderr)
        raise made.refused
    result = {
        "run": made.id,
        "version": made.version.version if made.version else None,
        "identity": made.version.identity if made.version else None,
        "promoted": made.promoted,
        "champion": CHAMPION in made.version.aliases if made.version else False,
        "quality": made.version.evidence if made.version else None,
        "report": str(report),
        "stages": made.timings,
    }
    return _say(options, result, lambda: _print_run(result, project.name))


def _print_run(result: dict[str, Any], name: str) -> None:
    quality = result["quality"] or {}
    if quality:
        print(f"{quality['metric']} {quality['value']:.4f}  (95 % interval {quality['low']:.4f} to {quality['high']:.4f})")
    if result["version"] is not None:
        role = (
            "is champion" if result["champion"] else f"is registered; tidemill models promote {name} {result['version']} makes it champion"
        )
        print(f"{name} version {result['version']} {role}")
    print(f"report: {result['report']}")


def _mirrors(project: Project) -> list[Any]:
    from tidemill.core.load import load

    return [load("mirror", ref)(project.rollout, project.folder) for ref in project.rollout.mirrors]


def _package(options: argparse.Namespace) -> int:
    from tidemill.core.project import check_name
    from tidemill.packaging.imports import package_model

    ledger = _ledger(options)
    name = options.name or re.sub(r"[^a-z0-9_-]+", "-", Path(options.source).stem.lower()).strip("-") or "model"
    check_name(name)
    out = Path(options.out) if options.out else ledger.packages.parent / "imports" / name
    package = package_model(
        Path(options.source),
        data=Path(options.data),
        target=options.target,
        name=name,
        out=out,
        task=options.task,
        trust_pickle=options.trust_pickle,
        keys=tuple(options.key or ()),
        events=_events(options),
    )
    version = None if options.out else ledger.register(package, why=f"packaged from {Path(options.source).name}")
    result = {
        "name": name,
        "identity": package.identity,
        "path": str(version.path if version else out),
        "version": version.version if version else None,
    }
    parity = package.evidence().get("parity", {})

    def show() -> None:
        print(f"{name}{f' version {version.version}' if version else ''}: {result['path']}")
        if "max_difference" in parity:
            print(f"parity over {parity['rows']} rows: largest difference {parity['max_difference']:.2g}")
        print(f"tidemill serve {name if version else out}")

    return _say(options, result, show)


def _predict(options: argparse.Namespace) -> int:
    from tidemill.core.engine import EngineConfig
    from tidemill.core.project import build
    from tidemill.predict.batch import predict

    engine = build(EngineConfig, {"memory": options.memory, "threads": options.threads}, path="engine", where="command line")
    package = _resolve(options, options.model)
    done = predict(
        package,
        Path(options.input),
        Path(options.output),
        keep=options.keep.split(",") if options.keep else None,
        batch_rows=options.batch_rows,
        engine=engine,
        events=_events(options),
    )
    result = {
        "output": str(done.path),
        "rows": done.rows,
        "resumed_rows": done.resumed_rows,
        "model": package.name,
        "version": package.version,
    }
    return _say(options, result, lambda: print(f"{done.rows} rows: {done.path}"))


def _serve(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from tidemill.core.project import build
    from tidemill.serve.server import serve

    packages = [_resolve(options, ref) for ref in options.models]
    said = _section(options, "serve")
    logging = {"log": True, "log_folder": options.log} if options.log else {}
    given = {"host": options.host, "port": options.port, "threads": options.threads, **logging}
    given = {key: value for key, value in given.items() if value is not None}
    config = build(type(said), {**asdict(said), **given}, path="serve", where="command line")
    serve(packages, config=config, accept_latency=options.accept_latency, allow_open=options.allow_open, events=_events(options))
    return EXIT_DONE


def _models_list(options: argparse.Namespace) -> int:
    ledger = _ledger(options)
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

    return _say(options, rows, show)


def _models_show(options: argparse.Namespace) -> int:
    package = _resolve(options, options.model)
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

    return _say(options, facts, show)


def _models_compare(options: argparse.Namespace) -> int:
    from tidemill.core.errors import ContractViolation
    from tidemill.packaging.compare import compare, held_out, labelled
    from tidemill.packaging.rows import Rows, Target
    from tidemill.ui.compare import render_compare

    first, second = _resolve(options, options.first), _resolve(options, options.second)
    rows: Rows
    if options.data:
        column = options.target or second.manifest["signature"].get("target")
        if not column:
            raise ConfigError(f"--target must name the column of true values, {second.name} does not know it")
        rows, target = labelled(Path(options.data), (first, second), column), Target(column=column, classes=second.classes)
    else:
        rows, target = held_out(second, _home(options) / "store")
    found = compare(first, second, rows, target, metric=options.metric, max_drop=options.max_drop)
    if options.output:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        Path(options.output).write_text(render_compare(found), encoding="utf-8")
    _say(options, found, lambda: _print_comparison(found, options.output))
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


def _models_history(options: argparse.Namespace) -> int:
    entries = _ledger(options).history(options.name)
    return _say(options, [entry.__dict__ for entry in entries], lambda: print("\n".join(map(str, entries)) or "nothing has happened yet"))


def _models_promote(options: argparse.Namespace) -> int:
    from tidemill.rollout.promote import promote

    entry = promote(_ledger(options), options.name, options.version, alias=options.alias, expected=options.expected, why=options.why)
    return _say(options, entry.__dict__, lambda: print(entry))


def _models_rollback(options: argparse.Namespace) -> int:
    entry = _ledger(options).rollback(options.name, alias=options.alias, why=options.why)
    return _say(options, entry.__dict__, lambda: print(entry))


def _models_sync(options: argparse.Namespace) -> int:
    project = _project(options)
    mirrors, ledger = _mirrors(project), _ledger(options)
    if not mirrors:
        raise ConfigError("rollout.mirrors: must name a mirror to sync with, is empty", hint='[rollout] mirrors = ["mlflow"]')
    said = [line for mirror in mirrors for line in mirror.pull_aliases(ledger, project.name)]
    aliases = {alias: version.version for version in ledger.versions(project.name) for alias in version.aliases}
    for mirror in mirrors:
        mirror.push_aliases(project.name, aliases)
    return _say(options, {"events": said, "aliases": aliases}, lambda: print("\n".join(said) or "ledger and mirrors agree"))


def _models_backup(options: argparse.Namespace) -> int:
    from tidemill.core.backup import backup

    count = backup(_ledger(options), Path(options.output))
    return _say(options, {"path": options.output, "files": count}, lambda: print(f"{options.output}: {count} files"))


def _models_restore(options: argparse.Namespace) -> int:
    from tidemill.core.backup import restore

    home = Path(options.home) if options.home else Path.cwd() / ".tidemill"
    events = restore(Path(options.archive), home)
    return _say(options, {"home": str(home), "events": events}, lambda: print(f"{home}: {events} events, every package whole"))


def _models_export(options: argparse.Namespace) -> int:
    import shutil

    version = _ledger(options).resolve(options.model)
    out = Path(options.output)
    if out.exists():
        raise ConfigError(f"{out}: must not exist yet")
    version.open()
    shutil.copytree(version.path, out)
    _ledger(options).record("exported", version.name, version=version.version, why=f"to {out}")
    return _say(options, {"path": str(out)}, lambda: print(out))


def _monitor_report(options: argparse.Namespace) -> int:
    from tidemill.monitor.drift import report
    from tidemill.ui.drift import render_drift

    ledger = _ledger(options)
    package = _resolve(options, options.model)
    labels = Path(options.labels) if options.labels else None
    found = report(package, Path(options.data), labels=labels, config=_section(options, "monitor"))
    out = (
        Path(options.output)
        if options.output
        else ledger.packages.parent / "reports" / f"drift-{package.name}-{package.version or 'folder'}.html"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render_drift(found), encoding="utf-8")
    if package.version is not None and found["verdict"]["level"] != "stable":
        evidence = {
            "columns": [column["name"] for column in found["columns"] if column["level"] != "stable"],
            "rows": found["current"]["rows"],
        }
        ledger.record("drift", package.name, version=int(package.version), why=found["verdict"]["text"], evidence=evidence)
    return _say(options, {**found, "report": str(out)}, lambda: print(f"{found['verdict']['text']}\nreport: {out}"))


def _init(options: argparse.Namespace) -> int:
    from tidemill.data.init import write_project

    path = write_project(Path(options.data), target=options.target, name=options.name, out=Path(options.out), force=options.force)
    return _say(options, {"project": str(path)}, lambda: print(f"{path}\ntidemill run -f {path}"))


def _doctor(options: argparse.Namespace) -> int:
    from tidemill.doctor import examine

    findings = examine(_home(options))

    def show() -> None:
        from tidemill.ui.console import table

        table(
            ["", "what", "found", "to do"],
            [[{"ok": "ok", "missing": "--", "warning": "!"}[f.state], f.what, f.detail, f.hint] for f in findings],
        )

    return _say(options, [finding.__dict__ for finding in findings], show)


def _unbuilt(hint: str) -> Command:
    def command(options: argparse.Namespace) -> NoReturn:
        raise Unsupported(f"tidemill {options.verb} is not built in this version", hint=hint)

    return command


class _Parser(argparse.ArgumentParser):
    """Tells of a wrong call as of any other mistake."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, hint=f"{self.prog} --help shows what it takes")


def _parser() -> argparse.ArgumentParser:
    from tidemill import __version__

    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON, nothing else")
    common.add_argument("--quiet", action="store_true", help="no progress")
    common.add_argument("--home", help="folder of artifacts, packages and the ledger (default: the nearest .tidemill)")
    common.add_argument("--ledger", metavar="URL", help="ledger of a team, postgresql://... (default: ledger.db in the home)")

    parser = _Parser(
        prog="tidemill",
        description="From a table, or a model you have, to a served package that keeps its promises.",
        epilog="example: tidemill init data.csv --target late && tidemill run && tidemill serve data",
    )
    parser.add_argument("--version", action="version", version=f"tidemill {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND")

    def add(into: Any, name: str, command: Command | None, help: str, example: str) -> argparse.ArgumentParser:  # noqa: A002 - argparse's word
        made: argparse.ArgumentParser = into.add_parser(name, parents=[common], help=help, description=help, epilog=f"example: {example}")
        made.set_defaults(command=command, parser=made)
        return made

    def configured(command: argparse.ArgumentParser, section: str) -> None:
        command.add_argument(
            "-f", "--file", action="append", help=f"project file for its [{section}] (default: tidemill.toml, where there is one)"
        )
        command.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override one key")

    init = add(verbs, "init", _init, "Write a commented project file from a look at the data.", "tidemill init flights.csv --target late")
    init.add_argument("data", help="Parquet or CSV: file, glob or Hive folder")
    init.add_argument("--target", required=True, help="column to predict")
    init.add_argument("--name", help="name of the project (default: of the file)")
    init.add_argument("--out", default="tidemill.toml", help="project file to write")
    init.add_argument("--force", action="store_true", help="replace an older file")

    run = add(
        verbs, "run", _run, "Run a project from source to registered package.", "tidemill run -f tidemill.toml --set model.max_depth=6"
    )
    run.add_argument("-f", "--file", action="append", help="project file; later ones override (default: tidemill.toml)")
    run.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override one key")
    run.add_argument(
        "--from", dest="from_stage", metavar="STAGE", help="run this stage and later ones again: data features tune train package"
    )
    run.add_argument("--to", dest="to_stage", metavar="STAGE", help="last stage to run")
    run.add_argument("--sample", type=float, default=1.0, help="share of the rows, for a first pass")
    run.add_argument("--profile", action="store_true", help="CPU profile of each stage in the report")
    run.add_argument("--dry-run", action="store_true", help="check the project file and stop")

    package = add(
        verbs,
        "package",
        _package,
        "Make a package from a model that you have: ONNX, XGBoost, scikit-learn (skops), Hugging Face folder.",
        "tidemill package model.onnx --data sample.parquet --target y --name mine",
    )
    package.add_argument("source", help="model file or folder")
    package.add_argument("--data", required=True, help="sample of raw rows: schema, parity, baseline")
    package.add_argument("--target", help="column of true values in the sample")
    package.add_argument("--name", help="name of the package (default: of the file)")
    package.add_argument("--task", choices=["binary", "multiclass", "regression"], help="told from the model and target when absent")
    package.add_argument("--key", action="append", help="column that batch prediction copies through; repeatable")
    package.add_argument("--trust-pickle", action="store_true", help="load a joblib or pickle file, which runs its code here and now")
    package.add_argument("--out", help="write the package to this folder instead of registering it")

    predict = add(
        verbs, "predict", _predict, "Predict every row of a file, each exactly once.", "tidemill predict flights new.parquet out.parquet"
    )
    predict.add_argument("model", help="NAME[@alias], NAME/version or package folder")
    predict.add_argument("input", help="Parquet or CSV: file, glob or Hive folder")
    predict.add_argument("output", help="file that ends in .parquet, or folder")
    predict.add_argument("--keep", help="input columns to copy, comma-separated (default: the package's keys)")
    predict.add_argument("--batch-rows", type=int, default=16_384, help="rows read at once, in whole blocks of 4,096")
    predict.add_argument("--memory", default="2GiB", help="memory budget")
    predict.add_argument("--threads", type=int, default=0, help="threads; 0 takes every core")

    serve = add(verbs, "serve", _serve, "Serve packages over HTTP.", "tidemill serve flights@champion --port 8000")
    serve.add_argument("models", nargs="+", metavar="NAME[@alias]|FOLDER", help="packages to serve; the first answers /predict")
    serve.add_argument("--host", help="address (default 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port (default 8000)")
    serve.add_argument("--threads", type=int, help="threads of the runtime")
    serve.add_argument("--log", metavar="FOLDER", help="write a prediction log into this folder")
    serve.add_argument("--accept-latency", action="store_true", help="start even where latency is above the promise on this machine")
    serve.add_argument("--allow-open", action="store_true", help="listen on a public address without access control")
    configured(serve, "serve")

    models = add(verbs, "models", None, "Versions, aliases and their history.", "tidemill models list")
    inner = models.add_subparsers(metavar="ACTION")
    listing = add(inner, "list", _models_list, "Registered versions.", "tidemill models list flights")
    listing.add_argument("name", nargs="?")
    show = add(inner, "show", _models_show, "One package: contract, evidence, inputs.", "tidemill models show flights@champion")
    show.add_argument("model")
    comparison = add(
        inner,
        "compare",
        _models_compare,
        "Two packages side by side on the same rows, with paired intervals.",
        "tidemill models compare flights@champion flights/2 --gate",
    )
    comparison.add_argument("first", help="NAME[@alias], NAME/version or package folder: what is served")
    comparison.add_argument("second", help="the same: what would follow it")
    comparison.add_argument("--data", help="Parquet or CSV with raw rows and their true target (default: the second's own test rows)")
    comparison.add_argument("--target", help="column of true values in --data (default: the second's target)")
    comparison.add_argument("--metric", help="metric that decides (default: of the second's contract, else the task's)")
    comparison.add_argument("--max-drop", type=float, help="largest loss allowed (default: of the second's contract)")
    comparison.add_argument("--gate", action="store_true", help="exit with 3 where the second breaks its contract or loses")
    comparison.add_argument("--output", help="HTML page to write")
    history = add(inner, "history", _models_history, "What happened, in sentences.", "tidemill models history flights")
    history.add_argument("name", nargs="?")
    promote = add(
        inner, "promote", _models_promote, "Point an alias at a version.", "tidemill models promote flights 2 --why 'newer season'"
    )
    promote.add_argument("name")
    promote.add_argument("version", type=int)
    promote.add_argument("--alias", default="champion")
    promote.add_argument("--expected", type=_expected, default="any", help="version that the alias must be at now, or none; else Conflict")
    promote.add_argument("--why", default="", help="reason, for the ledger")
    rollback = add(
        inner, "rollback", _models_rollback, "Point an alias at its version before.", "tidemill models rollback flights --why 'complaints'"
    )
    rollback.add_argument("name")
    rollback.add_argument("--alias", default="champion")
    rollback.add_argument("--why", default="", help="reason, for the ledger")
    export = add(
        inner, "export", _models_export, "Copy a package out of the ledger.", "tidemill models export flights@champion ./flights-package"
    )
    export.add_argument("model")
    export.add_argument("output")

    backup = add(inner, "backup", _models_backup, "The ledger and every package in one archive.", "tidemill models backup ledger.tar")
    backup.add_argument("output")
    restore = add(inner, "restore", _models_restore, "Bring a backup back, into an empty home.", "tidemill models restore ledger.tar")
    restore.add_argument("archive")
    sync = add(
        inner, "sync", _models_sync, "Import aliases moved in a mirror, then show it the ledger's.", "tidemill models sync -f tidemill.toml"
    )
    sync.add_argument("-f", "--file", action="append", help="project file that names the mirrors (default: tidemill.toml)")
    sync.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override one key")

    monitor = add(verbs, "monitor", None, "Watch what is served.", "tidemill monitor report flights --data new.parquet")
    watching = monitor.add_subparsers(metavar="ACTION")
    report = add(
        watching, "report", _monitor_report, "Drift of new rows against the training data.", "tidemill monitor report flights --data log/"
    )
    report.add_argument("model")
    report.add_argument("--data", required=True, help="Parquet or CSV of raw rows, or a folder of prediction logs")
    report.add_argument("--labels", help="Parquet or CSV with the rows and their true target, for quality")
    report.add_argument("--output", help="HTML file to write")
    configured(report, "monitor")

    doctor = add(verbs, "doctor", _doctor, "What this machine can do.", "tidemill doctor")
    doctor.set_defaults(command=_doctor)

    for name, hint in _UNBUILT.items():
        add(verbs, name, _unbuilt(hint), f"Not built in this version: {hint}.", f"tidemill {name}").add_argument(
            "rest", nargs="*", help=argparse.SUPPRESS
        )
    return parser


_UNBUILT = {
    "stream": "tidemill predict answers for files",
    "deploy": "tidemill serve runs a package here",
    "compress": "contract.size holds a package to a limit",
    "bench": "evidence/latency.json in each package holds its measured latency",
    "plan": "tidemill run --sample 0.01 --profile shows time and memory",
    "ui": "each run leaves runs/<name>/<run>/report.html",
}


def _expected(text: str) -> Any:
    """A version's number, None for "none", "any" as it is."""
    if text not in ("any", "none") and not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a version, none or any, got {text!r}")
    return {"any": "any", "none": None}.get(text) if not text.isdigit() else int(text)


def _project(options: argparse.Namespace) -> Project:
    from tidemill.core.project import read

    return read(options.file or ["tidemill.toml"], options.set)


def _section(options: argparse.Namespace, name: str) -> Any:
    """One section of the project file that is named or lies here; its defaults where there is none."""
    from tidemill.core.project import read_section

    here = [Path("tidemill.toml")] if Path("tidemill.toml").is_file() else []
    return read_section(name, options.file or here, options.set)


def _home(options: argparse.Namespace) -> Path:
    """`--home`, else the nearest `.tidemill` from here upward, else one to be made here."""
    if options.home:
        return Path(options.home)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".tidemill").is_dir():
            return folder / ".tidemill"
    return here / ".tidemill"


def _ledger(options: argparse.Namespace) -> Ledger:
    from tidemill.core.ledger import Ledger

    home = _home(options)
    return Ledger(options.ledger or home / "ledger.db", packages=home / "packages")


def _resolve(options: argparse.Namespace, ref: str) -> Package:
    """The package that a name of the ledger or a folder stands for."""
    from tidemill.core.package import MANIFEST, Package

    if (Path(ref) / MANIFEST).is_file() or "/" in ref.removeprefix("models:/").partition("/")[2] or ref.startswith((".", "/")):
        return Package.open(ref)
    return _ledger(options).resolve(ref).open()


def _events(options: argparse.Namespace) -> Events:
    from tidemill.core.events import Events

    if options.quiet or options.json:
        return Events()
    from tidemill.ui.console import console

    return Events(console())


def _say(options: argparse.Namespace, result: Any, show: Callable[[], None]) -> int:
    if options.json:
        print(json.dumps(result, indent=1, ensure_ascii=False, default=str))
    else:
        show()
    return EXIT_DONE


def _fail(options: argparse.Namespace, message: str, *, kind: str, code: int, hint: str | None = None, field: str | None = None) -> int:
    if getattr(options, "json", False):
        problem = {"error": {"kind": kind, "message": message, "hint": hint, "field": field, "exit_code": code}}
        print(json.dumps(problem, ensure_ascii=False))
    print(f"tidemill: {message}" + (f"\n  {hint}" if hint else ""), file=sys.stderr)
    return code


def _record_crash(options: argparse.Namespace, error: Exception) -> str:
    try:
        home = _home(options)
        home.mkdir(parents=True, exist_ok=True)
        with (home / "crash.log").open("a", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)) + "\n")
        return str(home / "crash.log")
    except OSError:
        traceback.print_exc()
        return "the lines above"


def _quality(row: dict[str, Any]) -> str:
    return f"{row['metric']} {row['value']:.4f}" if "value" in row else ""


if __name__ == "__main__":
    program()
