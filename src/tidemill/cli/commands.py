"""What the verbs do: each reads its options, calls one part of the house and says what came of it."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from tidemill.cli import options as given
from tidemill.core.errors import EXIT_DONE, ConfigError


def run(options: argparse.Namespace) -> int:
    from tidemill import pipeline
    from tidemill.core.ledger import CHAMPION, Ledger
    from tidemill.ui.report import collect, write_report

    project = given.project(options)
    if options.dry_run:
        return given.say(options, project.to_json(), lambda: print(f"{project.name}: the project file is valid"))
    events = given.events(options)
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
    for mirror in given.mirrors(project) if made.version is not None else []:
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
    return given.say(options, result, lambda: _print_run(result, project.name))


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


def package(options: argparse.Namespace) -> int:
    from tidemill.core.project import check_name
    from tidemill.packaging.imports import package_model

    ledger = given.ledger(options)
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
        image=options.image,
        events=given.events(options),
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

    return given.say(options, result, show)


def predict(options: argparse.Namespace) -> int:
    import tomllib

    from tidemill.core.engine import EngineConfig
    from tidemill.core.project import build
    from tidemill.core.runtime import RanksConfig
    from tidemill.predict.batch import predict

    try:
        table = tomllib.loads(f"parallel = {options.parallel}")["parallel"] if options.parallel else None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--parallel: must be a table such as {{ tensor = 2 }}, got {options.parallel!r}: {error}") from error
    ranks = None if table is None else build(RanksConfig, table, path="parallel", where="command line")
    engine = build(EngineConfig, {"memory": options.memory, "threads": options.threads}, path="engine", where="command line")
    package = given.resolve(options, options.model)
    done = predict(
        package,
        Path(options.input),
        Path(options.output),
        keep=options.keep.split(",") if options.keep else None,
        batch_rows=options.batch_rows,
        runtime=options.runtime,
        ranks=ranks,
        engine=engine,
        events=given.events(options),
    )
    result = {
        "output": str(done.path),
        "rows": done.rows,
        "resumed_rows": done.resumed_rows,
        "model": package.name,
        "version": package.version,
    }
    return given.say(options, result, lambda: print(f"{done.rows} rows: {done.path}"))


def serve(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from tidemill.core.project import build
    from tidemill.serve.server import serve

    follow = not options.no_follow
    targets = [given.served(options, ref, follow=follow) for ref in options.models]
    said = given.section(options, "serve")
    logging = {"log": True, "log_folder": options.log} if options.log else {}
    overrides = {
        "host": options.host, "port": options.port, "grpc_port": options.grpc_port, "threads": options.threads, "replicas": options.replicas, "runtime": options.runtime, "precision": options.precision, **logging,
    }  # fmt: skip
    overrides = {key: value for key, value in overrides.items() if value is not None}
    config = build(type(said), {**asdict(said), **overrides}, path="serve", where="command line")
    serve(
        targets,
        config=config,
        ledger=given.ledger(options),
        follow=follow,
        accept_latency=options.accept_latency,
        allow_open=options.allow_open,
        events=given.events(options),
    )
    return EXIT_DONE


def monitor_report(options: argparse.Namespace) -> int:
    from tidemill.monitor.drift import report
    from tidemill.ui.drift import render_drift

    ledger = given.ledger(options)
    package = given.resolve(options, options.model)
    labels = Path(options.labels) if options.labels else None
    found = report(package, Path(options.data), labels=labels, config=given.section(options, "monitor"))
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
    return given.say(options, {**found, "report": str(out)}, lambda: print(f"{found['verdict']['text']}\nreport: {out}"))


def init(options: argparse.Namespace) -> int:
    from tidemill.data.init import write_project

    path = write_project(Path(options.data), target=options.target, name=options.name, out=Path(options.out), force=options.force)
    return given.say(options, {"project": str(path)}, lambda: print(f"{path}\ntidemill run -f {path}"))


def doctor(options: argparse.Namespace) -> int:
    from tidemill.cli.plan import collectives
    from tidemill.doctor import examine

    if options.collectives:
        return collectives(options)
    for name in ("ranks", "output"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name}: must go with --collectives, got {getattr(options, name)!r}")
    findings = examine(given.home(options))

    def show() -> None:
        from tidemill.ui.console import table

        table(
            ["", "what", "found", "to do"],
            [[{"ok": "ok", "missing": "--", "warning": "!"}[f.state], f.what, f.detail, f.hint] for f in findings],
        )

    return given.say(options, [finding.__dict__ for finding in findings], show)
