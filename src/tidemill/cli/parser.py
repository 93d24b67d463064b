"""What can be called: every verb with its options, each with an example in its help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from tidemill.cli import bench, commands, keys, models, plan
from tidemill.core.errors import ConfigError, Unsupported

Command = Callable[[argparse.Namespace], int]

# A verb of two words: argparse knows words one by one.
SERVE_KEYS = "serve keys"


def _unbuilt(hint: str) -> Command:
    def command(options: argparse.Namespace) -> NoReturn:
        raise Unsupported(f"tidemill {options.verb} is not built in this version", hint=hint)

    return command


class _Parser(argparse.ArgumentParser):
    """Tells of a wrong call as of any other mistake."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, hint=f"{self.prog} --help shows what it takes")


class _Program(_Parser):
    """Takes the words of a call with a verb of two words as one."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        two = " ".join(words[:2])
        return super().parse_args([two, *words[2:]] if two == SERVE_KEYS else words, namespace)


def build_parser() -> argparse.ArgumentParser:
    from tidemill import __version__

    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON, nothing else")
    common.add_argument("--quiet", action="store_true", help="no progress")
    common.add_argument("--home", help="folder of artifacts, packages and the ledger (default: the nearest .tidemill)")
    common.add_argument("--ledger", metavar="URL", help="ledger of a team, postgresql://... (default: ledger.db in the home)")

    parser = _Program(
        prog="tidemill",
        description="From a table, or a model you have, to a served package that keeps its promises.",
        epilog="example: tidemill init data.csv --target late && tidemill run && tidemill serve data",
    )
    parser.add_argument("--version", action="version", version=f"tidemill {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", parser_class=_Parser)

    def add(into: Any, name: str, command: Command | None, help: str, example: str) -> argparse.ArgumentParser:  # noqa: A002 - argparse's word
        made: argparse.ArgumentParser = into.add_parser(name, parents=[common], help=help, description=help, epilog=f"example: {example}")
        made.set_defaults(command=command, parser=made)
        return made

    def configured(command: argparse.ArgumentParser, section: str) -> None:
        command.add_argument(
            "-f", "--file", action="append", help=f"project file for its [{section}] (default: tidemill.toml, where there is one)"
        )
        command.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override one key")

    init = add(
        verbs, "init", commands.init, "Write a commented project file from a look at the data.", "tidemill init flights.csv --target late"
    )
    init.add_argument("data", help="Parquet or CSV: file, glob or Hive folder")
    init.add_argument("--target", required=True, help="column to predict")
    init.add_argument("--name", help="name of the project (default: of the file)")
    init.add_argument("--out", default="tidemill.toml", help="project file to write")
    init.add_argument("--force", action="store_true", help="replace an older file")

    run = add(
        verbs,
        "run",
        commands.run,
        "Run a project from source to registered package.",
        "tidemill run -f tidemill.toml --set model.max_depth=6",
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
        commands.package,
        "Make a package from a model that you have: ONNX, XGBoost, scikit-learn (skops), Hugging Face folder.",
        "tidemill package model.onnx --data sample.parquet --target y --name mine",
    )
    package.add_argument("source", help="model file or folder")
    package.add_argument("--data", required=True, help="sample of raw rows: schema, parity, baseline")
    package.add_argument("--target", help="column of true values in the sample")
    package.add_argument("--name", help="name of the package (default: of the file)")
    package.add_argument("--task", choices=["binary", "multiclass", "regression"], help="told from the model and target when absent")
    package.add_argument("--image", metavar="IMAGE.json", help="what is done to an image before the ONNX file sees it")
    package.add_argument("--key", action="append", help="column that batch prediction copies through; repeatable")
    package.add_argument("--trust-pickle", action="store_true", help="load a joblib or pickle file, which runs its code here and now")
    package.add_argument("--out", help="write the package to this folder instead of registering it")

    predict = add(
        verbs,
        "predict",
        commands.predict,
        "Predict every row of a file, each exactly once.",
        "tidemill predict flights new.parquet out.parquet",
    )
    predict.add_argument("model", help="NAME[@alias], NAME/version or package folder")
    predict.add_argument("input", help="Parquet or CSV: file, glob or Hive folder")
    predict.add_argument("output", help="file that ends in .parquet, or folder")
    predict.add_argument("--keep", help="input columns to copy, comma-separated (default: the package's keys)")
    predict.add_argument("--batch-rows", type=int, default=16_384, help="rows read at once, in whole blocks of 4,096")
    predict.add_argument("--memory", default="2GiB", help="memory budget")
    predict.add_argument("--threads", type=int, default=0, help="threads; 0 takes every core")
    predict.add_argument("--runtime", default="onnxruntime", help="onnxruntime (default), openvino, cuda, tensorrt, or torch on ranks")
    predict.add_argument("--parallel", metavar="TABLE", help='ranks of torch, as [serve] parallel: "{ tensor = 2 }" (default: as promised)')

    serve = add(verbs, "serve", commands.serve, "Serve packages over HTTP.", "tidemill serve flights@champion --port 8000")
    serve.add_argument(
        "models",
        nargs="+",
        metavar="NAME[@alias]|FOLDER",
        help="packages to serve; the first answers /predict; NAME@3 is a version that stays",
    )
    serve.add_argument("--no-follow", action="store_true", help="stay with the versions of the start, wherever their aliases move")
    serve.add_argument("--replicas", type=_replicas, metavar="N|auto", help="processes that answer on the port (default 1)")
    serve.add_argument("--host", help="address (default 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port (default 8000)")
    serve.add_argument("--grpc-port", type=int, help="port for gRPC (default: none)")
    serve.add_argument("--threads", type=int, help="threads of the runtime")
    serve.add_argument("--runtime", help="auto (default), onnxruntime, openvino, cuda, tensorrt or torch")
    serve.add_argument(
        "--precision", choices=["auto", "fp32", "bf16"], help="how exactly to compute (default auto: as the contract allows)"
    )
    serve.add_argument("--log", metavar="FOLDER", help="write a prediction log into this folder")
    serve.add_argument("--accept-latency", action="store_true", help="start even where latency is above the promise on this machine")
    serve.add_argument("--allow-open", action="store_true", help="listen on a public address without access control")
    configured(serve, "serve")

    ring = add(verbs, SERVE_KEYS, None, "API keys of a server.", "tidemill serve keys add alice --scope predict:flights --expires 90d")
    inside = ring.add_subparsers(metavar="ACTION")
    new = add(
        inside, "add", keys.add, "Make a key; it is shown once.", "tidemill serve keys add alice --scope predict:flights --expires 90d"
    )
    new.add_argument("name", help="whose key it is")
    new.add_argument(
        "--scope",
        action="append",
        help="predict, read, metrics or admin, each also for one model, predict:NAME; repeatable (default: predict and read)",
    )
    new.add_argument("--expires", metavar="TIME", help="end it after 30m, 24h, 90d (default: never)")
    known = add(inside, "list", keys.listed, "Keys, without what is secret.", "tidemill serve keys list")
    renewed = add(
        inside, "rotate", keys.rotate, "Make a new key; the old one ends a while later.", "tidemill serve keys rotate alice --overlap 24h"
    )
    renewed.add_argument("name", help="whose key it is")
    renewed.add_argument("--overlap", metavar="TIME", default="24h", help="how long both are taken")
    ended = add(inside, "revoke", keys.revoke, "End a key now.", "tidemill serve keys revoke alice")
    ended.add_argument("which", help="name, or the id of one key")
    for command in (new, known, renewed, ended):
        command.add_argument("--file", help="file of keys (default: keys.json in the home)")

    versions = add(verbs, "models", None, "Versions, aliases and their history.", "tidemill models list")
    inner = versions.add_subparsers(metavar="ACTION")
    listing = add(inner, "list", models.listed, "Registered versions.", "tidemill models list flights")
    listing.add_argument("name", nargs="?")
    show = add(inner, "show", models.show, "One package: contract, evidence, inputs.", "tidemill models show flights@champion")
    show.add_argument("model")
    comparison = add(
        inner,
        "compare",
        models.compare,
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
    history = add(inner, "history", models.history, "What happened, in sentences.", "tidemill models history flights")
    history.add_argument("name", nargs="?")
    promote = add(
        inner, "promote", models.promote, "Point an alias at a version.", "tidemill models promote flights 2 --why 'newer season'"
    )
    promote.add_argument("name")
    promote.add_argument("version", type=int)
    promote.add_argument("--alias", default="champion")
    promote.add_argument("--expected", type=_expected, default="any", help="version that the alias must be at now, or none; else Conflict")
    promote.add_argument("--why", default="", help="reason, for the ledger")
    rollback = add(
        inner, "rollback", models.rollback, "Point an alias at its version before.", "tidemill models rollback flights --why 'complaints'"
    )
    rollback.add_argument("name")
    rollback.add_argument("--alias", default="champion")
    rollback.add_argument("--why", default="", help="reason, for the ledger")
    export = add(
        inner,
        "export",
        models.export,
        "Copy a package out of the ledger, or write it as another server reads it.",
        "tidemill models export flights@champion ./flights-package",
    )
    export.add_argument("model", help="NAME[@alias] or NAME/version; with a layout a package folder too")
    export.add_argument("output", help="folder to make")
    export.add_argument(
        "--layout",
        choices=["triton", "kserve", "transformers"],
        help="Triton's model repository, that with a KServe InferenceService, or a folder that transformers loads",
    )
    export.add_argument("--storage-uri", metavar="URI", help="where the repository will lie, for kserve: s3://bucket/folder")
    export.add_argument(
        "--max-batch", type=int, default=0, metavar="N", help="rows that Triton may put together (default: requests as they come)"
    )

    backup = add(inner, "backup", models.backup, "The ledger and every package in one archive.", "tidemill models backup ledger.tar")
    backup.add_argument("output")
    restore = add(inner, "restore", models.restore, "Bring a backup back, into an empty home.", "tidemill models restore ledger.tar")
    restore.add_argument("archive")
    sync = add(
        inner, "sync", models.sync, "Import aliases moved in a mirror, then show it the ledger's.", "tidemill models sync -f tidemill.toml"
    )
    sync.add_argument("-f", "--file", action="append", help="project file that names the mirrors (default: tidemill.toml)")
    sync.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override one key")

    monitor = add(verbs, "monitor", None, "Watch what is served.", "tidemill monitor report flights --data new.parquet")
    watching = monitor.add_subparsers(metavar="ACTION")
    report = add(
        watching,
        "report",
        commands.monitor_report,
        "Drift of new rows against the training data.",
        "tidemill monitor report flights --data log/",
    )
    report.add_argument("model")
    report.add_argument("--data", required=True, help="Parquet or CSV of raw rows, or a folder of prediction logs")
    report.add_argument("--labels", help="Parquet or CSV with the rows and their true target, for quality")
    report.add_argument("--output", help="HTML file to write")
    configured(report, "monitor")

    measure = add(
        verbs,
        "bench",
        bench.bench,
        "Measure how fast a package answers here, or a server anywhere: latency, throughput, and where more load stops to pay.",
        "tidemill bench flights",
    )
    measure.add_argument(
        "model", nargs="?", metavar="NAME[@alias]|FOLDER", help="package to measure in this process; goes into it as evidence"
    )
    measure.add_argument("--url", help="server to measure instead, http://127.0.0.1:8000")
    measure.add_argument(
        "--rows", metavar="FILE", help="rows to answer, Parquet or CSV (default: the package's test rows, else its example)"
    )
    measure.add_argument("--batch", metavar="N,N", help="rows at once, or a request (default: 1 up to 1024 in a process, 1 of a server)")
    measure.add_argument(
        "--runtime", metavar="NAME,NAME", help="runtimes, openvino:bf16 with a precision; all tries every one (default: onnxruntime)"
    )
    measure.add_argument("--sessions", metavar="N,N", help="sessions that answer at the same time (default: 1 up to one a core)")
    measure.add_argument("--threads", metavar="N,N", help="threads inside a session (default: 1 up to one a core)")
    measure.add_argument("--concurrency", metavar="N,N", help="connections to a server, a request under way on each (default: 1 up to 64)")
    measure.add_argument(
        "--rate", metavar="R,R", help="requests a second, sent whether answers come or not (default: as fast as they come)"
    )
    measure.add_argument("--seconds", type=float, metavar="S", help="length of a run (default: 0.4 in a process, 3 of a server)")
    measure.add_argument(
        "--repeats", type=int, metavar="N", help="rounds, of which the median run counts (default: 3 in a process, 1 of a server)"
    )
    measure.add_argument("--name", help="model of the server (default: the server's)")
    measure.add_argument("--version", help="version of it (default: the server's)")
    measure.add_argument("--key", help="API key (default: TIDEMILL_API_KEY of the environment)")
    measure.add_argument("--ca", metavar="FILE", help="certificates (PEM) that sign the server's")
    measure.add_argument("--output", metavar="FILE", help="HTML page to write (default: in reports/ of the home)")

    planner = add(
        verbs,
        "plan",
        plan.plan,
        "Plan the training of a network before it is started: memory, communication and time of every layout, and why layouts fall out.",
        "tidemill plan --parameters 7e9 --device h100 --count 64 --batch 512",
    )
    planner.add_argument("--parameters", type=float, metavar="N", help="size of a decoder, such as 7e9; its shape follows published ones")
    planner.add_argument("--hidden", type=int, metavar="N", help="its shape instead: width of the residual stream")
    planner.add_argument("--layers", type=int, metavar="N", help="layers")
    planner.add_argument("--heads", type=int, metavar="N", help="heads of attention")
    planner.add_argument("--kv-heads", type=int, metavar="N", help="heads of keys and values (default: as many)")
    planner.add_argument("--ffn", type=int, metavar="N", help="width of the feed-forward part (default: 4 x hidden)")
    planner.add_argument("-f", "--file", action="append", help="project file whose network, batch and precision to plan instead")
    planner.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override one key of it")
    planner.add_argument("--inputs", type=int, metavar="N", help="with -f, mlp: features of a row")
    planner.add_argument("--vocabulary", type=int, default=51_200, metavar="N", help="words (default 51200)")
    planner.add_argument("--sequence", type=int, default=2048, metavar="N", help="tokens of a row (default 2048)")
    planner.add_argument("--gated", action="store_true", help="as Llama: gated feed-forward part, rotary positions, no biases")
    planner.add_argument(
        "--device", default="cpu", help="a100-40, a100-80, h100, h100-96-500w, h200, b200, or cpu: this machine (default cpu)"
    )
    planner.add_argument("--count", type=int, default=1, metavar="N", help="ranks, one a device (default 1)")
    planner.add_argument("--batch", type=int, metavar="N", help="rows of one step over all ranks (default: the project's, else 64)")
    planner.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], help="what products are computed in (default: the project's, else bf16)"
    )
    planner.add_argument(
        "--bytes",
        metavar="W,G,O",
        help="bytes a parameter of weights, gradients and optimizer (default 4,4,8, as train.precision keeps them)",
    )
    planner.add_argument("--compile", action="store_true", help="with train.compile: element-wise work is fused")
    planner.add_argument("--collectives", metavar="FILE", help="what tidemill doctor --collectives measured (default: data sheet)")
    planner.add_argument("--top", type=int, default=10, metavar="N", help="layouts to show (default 10)")

    doctor = add(verbs, "doctor", commands.doctor, "What this machine can do.", "tidemill doctor")
    doctor.add_argument("--collectives", action="store_true", help="measure how fast ranks talk to each other here, for tidemill plan")
    doctor.add_argument("--ranks", type=int, metavar="N", help="with --collectives: processes (default: one a GPU, else 2)")
    doctor.add_argument("--output", metavar="FILE", help="with --collectives: write what was measured, for plan --collectives")
    doctor.set_defaults(command=commands.doctor)

    for name, hint in UNBUILT.items():
        add(verbs, name, _unbuilt(hint), f"Not built in this version: {hint}.", f"tidemill {name}").add_argument(
            "rest", nargs="*", help=argparse.SUPPRESS
        )
    return parser


UNBUILT = {
    "stream": "tidemill predict answers for files",
    "deploy": "tidemill serve runs a package here",
    "compress": "contract.size holds a package to a limit",
    "ui": "each run leaves runs/<name>/<run>/report.html",
}


def _replicas(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _expected(text: str) -> Any:
    """A version's number, None for "none", "any" as it is."""
    if text not in ("any", "none") and not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a version, none or any, got {text!r}")
    return {"any": "any", "none": None}.get(text) if not text.isdigit() else int(text)
