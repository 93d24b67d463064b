"""Writes docs/reference from the code: what a page says, the code says. `make docs` runs it, a test compares.

Descriptions come from docstrings, from the line under each field of a config struct, from the command line's own help
and from the routes of a running application. What the code cannot say (the meaning of protocol addresses) is below, and a name that
is missing there stops the script.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import sys
import tempfile
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate.py from the code: change the code, then `make docs`. -->"


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for old in FOLDER.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"{len(made)} pages in {FOLDER}")
    return 0


def pages() -> dict[str, str]:
    """Every page of the reference by file name."""
    contents = {
        "project-file.md": project_file(),
        "command-line.md": command_line(),
        "operators.md": operators(),
        "models.md": models(),
        "metrics.md": metrics(),
        "http.md": http(),
        "python.md": python(),
        "errors.md": errors(),
    }
    contents["README.md"] = index(contents)
    return {name: f"{NOTE}\n\n{text.strip()}\n" for name, text in contents.items()}


def index(contents: Mapping[str, str]) -> str:
    lines = ["# Reference", "", "Generated from the code.", ""]
    for name, text in contents.items():
        title, about = text.split("\n\n")[:2]
        lines.append(f"- [{title.removeprefix('# ')}]({name}): {one_line(about)}")
    return "\n".join(lines)


# ---- the project file ----


def project_file() -> str:
    from tidemill.core.load import TABLE, load
    from tidemill.core.project import Project

    parts = [
        "# Project file",
        "Every key of `tidemill.toml`: its type, its default, its range and what it controls.",
        (
            "A file with `name`, `[data] source` and `[data] target` is complete. The file is checked whole before anything runs: an unknown key"
            " is an error that names the nearest known one, a key that is known and not built yet says what to do instead. Several files may"
            " be given (`-f base.toml -f production.toml`), later ones override; `--set path=value` overrides one key."
        ),
        "## Top level",
        keys_table(Project, but=("folder", *TABLE["section"])),
    ]
    for section in TABLE["section"]:
        parts += section_part(section, load("section", section))
    return "\n\n".join(parts)


def section_part(section: str, struct: type) -> Iterator[str]:
    yield f"## [{section}]"
    yield prose(struct)
    unbuilt = getattr(struct, "unbuilt", {})
    if not dataclasses.fields(struct):
        yield "Not built in this version: a project file with this section is refused."
    elif section == "features":
        yield keys_table(struct, but=("columns", "derived"))
        yield (
            "Every other key is a column: a raw one with a list of steps, each an operator's name or a table of `op` and its parameters; or a"
            ' new one made of several, `route = { of = ["origin", "dest"], steps = ["cross", "target"] }`. See [operators](operators.md).'
        )
    elif section == "model":
        yield keys_table(struct, but=("params",))
        yield "Every further key is a parameter of that kind. See [models](models.md)."
    else:
        yield keys_table(struct)
    for name, inner in inner_structs(struct):
        yield f"### `{section}.{name}`"
        yield prose(inner)
        yield keys_table(inner)
    if unbuilt and dataclasses.fields(struct):
        yield "Known and not built in this version:"
        yield table(["key", "instead"], [[f"`{key}`", hint] for key, hint in unbuilt.items()])


def inner_structs(struct: type) -> Iterator[tuple[str, type]]:
    """Structs that the fields of a struct are made of, by the key they stand under."""
    for field, hint in hints_of(struct).items():
        for inner in structs_in(hint):
            yield (f"{field}.<column>" if get_origin(hint) in (dict, Mapping) else field), inner
    if struct.__name__ == "DataConfig":
        yield "source.<name>", importlib.import_module("tidemill.data.config").SourceConfig
        yield "sample", importlib.import_module("tidemill.data.config").Sampling


def structs_in(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint):
        yield hint  # type: ignore[misc]
    for arg in get_args(hint):
        yield from structs_in(arg)


def keys_table(struct: type, *, but: Iterable[str] = ()) -> str:
    """The fields of a config struct: key, type, default, range, meaning."""
    texts, hints = field_texts(struct), hints_of(struct)
    rows = []
    for field in dataclasses.fields(struct):
        if field.name in but:
            continue
        name = "in" if (struct.__name__, field.name) == ("CheckConfig", "allowed") else field.name
        low, high = field.metadata.get("min"), field.metadata.get("max")
        bounds = (
            "" if low is None and high is None else f"{number(low)} to {number(high)}" if high is not None else f"at least {number(low)}"
        )
        rows.append([f"`{name}`", type_name(hints[field.name]), default(field), bounds, texts[field.name]])
    return table(["key", "type", "default", "range", "meaning"], rows)


def hints_of(struct: type) -> dict[str, Any]:
    return {field.name: get_type_hints(struct)[field.name] for field in dataclasses.fields(struct)}


def field_texts(struct: type) -> dict[str, str]:
    """What the line under each field says, of the struct and what it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(struct.__mro__):
        if base is object or not dataclasses.is_dataclass(base):
            continue
        node = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(node, ast.ClassDef)
        for field, below in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[ast.unparse(field.target)] = one_line(str(below.value.value))
    return found


def type_name(hint: Any) -> str:
    plain = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", Any: "any", type(None): "absent"}
    if hint in plain:
        return plain[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " \\| ".join(f"`{arg}`" if isinstance(arg, str) else str(arg).lower() for arg in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(arg) for arg in args if arg is not type(None))
    if origin in (tuple, list):
        return f"list of {type_name(args[0])}" if args and args[0] is not Any else "list"
    if origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return "table"
    return "table" if dataclasses.is_dataclass(hint) else getattr(hint, "__name__", str(hint))


def default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        if field.default_factory is dataclasses.MISSING:
            return "**required**"
        return "none" if field.default_factory is dict else "see below"
    value = field.default
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(toml(item) for item in value)}]`"
    return f"`{toml(value)}`"


def toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, (str, Path)) else number(value)


def number(value: Any) -> str:
    return (
        f"{value:,}".replace(",", "_")
        if isinstance(value, int) and value >= 100_000
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


# ---- the command line ----


def command_line() -> str:
    from tidemill import cli
    from tidemill.cli.parser import UNBUILT

    parser = cli.build_parser()
    exits = (cli.__doc__ or "").partition("Exit codes:")[2].strip()
    parts = [
        "# Command line",
        "Every command of `tidemill`, its arguments and an example.",
        f"Exit codes: {one_line(exits)} See [errors](errors.md).",
        "Every command takes these:",
        options_table(action for action in commands(parser)["init"]._actions if action.dest in COMMON),
    ]
    for name, command in commands(parser).items():
        if name in UNBUILT:
            continue
        parts += command_part(f"tidemill {name}", command)
    parts += [
        "## Not built in this version",
        table(["command", "instead"], [[f"`tidemill {name}`", hint] for name, hint in UNBUILT.items()]),
    ]
    return "\n\n".join(parts)


COMMON = ("json", "quiet", "home", "ledger")


def command_part(name: str, command: argparse.ArgumentParser, level: str = "##") -> Iterator[str]:
    yield f"{level} {name}"
    yield f"{command.description}"
    inner = commands(command)
    if not inner:
        own = [action for action in command._actions if action.dest not in (*COMMON, "help")]
        if own:
            yield options_table(own)
        yield f"```console\n$ {(command.epilog or '').removeprefix('example: ')}\n```"
    for action, parser in inner.items():
        yield from command_part(f"{name} {action}", parser, "###")


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def options_table(actions: Iterable[argparse.Action]) -> str:
    rows = []
    for action in actions:
        value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
        if action.choices:
            value = "\\|".join(map(str, action.choices))
        takes = "" if action.nargs == 0 else f" {value}"
        name = (
            f"`{', '.join(action.option_strings)}`{takes}"
            if action.option_strings
            else f"`{value}`" + (", optional" if action.nargs == "?" else "")
        )
        name += " (required)" if action.option_strings and action.required else ""
        name += " (repeatable)" if isinstance(action, argparse._AppendAction) else ""
        text = action.help or ""
        if action.default not in (None, False, "", []) and "default" not in text:
            text += f" (default: {action.default})" if text else f"default: {action.default}"
        rows.append([name, text])
    return table(["argument", "meaning"], rows)


# ---- operators and models ----


def operators() -> str:
    from tidemill.core.load import TABLE, load

    parts = [
        "# Operators",
        "The steps that a column goes through on its way to the model, and what each does with nulls, NaN, infinities and unseen values.",
        (
            'In `[features]` a column is given a list of steps, in order: `distance = ["impute", { op = "clip", max = 3000 }]`. Each operator is'
            " fitted on the training rows and applied by ONNX nodes; the same nodes answer for one row, for a batch and in bulk. A step takes a"
            " *number* (float), *integer* (whole number or boolean), *string* or *time*; whole numbers and booleans are also taken where"
            ' numbers are. An operator of your own is a class named as `"my_module:MyOperator"`; `tidemill.testing.operator` holds the conformance'
            " suite that it has to pass."
        ),
        "## Columns of several",
        (
            'A column may be made of several raw ones, such as `route = { of = ["origin", "dest"], steps = ["cross", "target"] }` or'
            ' `size = { of = ["width", "height"], steps = ["impute", "standardize", { op = "pca", components = 1 }] }`. Exactly one of its steps'
            " joins the columns: the steps before it go over each of them, those after it over what it makes. Steps for one of them alone stand"
            ' beside its name: `of = { carrier = [], distance = ["bin"] }`. The raw columns keep the features that they have anyway; those named in'
            " `drop` have none of their own."
        ),
        "## What is learnt from the target",
        (
            "Operators that learn from the target, such as `target`, part the training rows into `folds`. A training row is encoded by what the"
            " other folds teach, or a model would be given the answer of the very rows that it learns from; validation and test rows, and all that"
            " a package answers, by what all training rows teach. Rows of equal keys are in one fold; without keys, rows that are equal in all"
            " columns, unless most rows have equals."
        ),
        "## Columns without steps",
        prose(load("section", "features")),
    ]
    for name, ref in TABLE["operator"].items():
        struct = load("operator", name)
        module = importlib.import_module(ref.partition(":")[0])
        parts += [f"## {name}", upper_first(one_line((module.__doc__ or "").partition(":")[2]))]
        several = "several columns, each " if getattr(struct, "joins", False) else ""
        parts += [f"Takes: {several}{', '.join(struct.accepts)}.", inspect.cleandoc(struct.__doc__ or "")]
        if dataclasses.fields(struct):
            parts.append(keys_table(struct))
    parts += [
        "# Selection",
        (
            'With `[features] select = ["variance", { op = "correlation", max = 0.95 }, { op = "mutual_information", keep = 50 }]` features are'
            " left out once all are fitted: each step looks at those that the steps before it left in, on the training rows alone. What left and why"
            " stands in `features.json` and in the report; what only a feature that is left out needs is not in the graph. A selector of your own is a"
            ' class named as `"my_module:MySelector"`, after `tidemill.features.select.selector.Selector`.'
        ),
    ]
    for name, ref in TABLE["selector"].items():
        struct = load("selector", name)
        module = importlib.import_module(ref.partition(":")[0])
        parts += [f"## {name}", upper_first(one_line((module.__doc__ or "").partition(":")[2])), inspect.cleandoc(struct.__doc__ or "")]
        parts.append(keys_table(struct))
    return "\n\n".join(parts)


def models() -> str:
    from tidemill.core.load import TABLE, load
    from tidemill.models.config import UNBUILT

    parts = [
        "# Models",
        "The kinds of model that `[model] kind` names, their parameters and what tuning searches.",
        (
            "A linear model is always trained beside one over features, as the baseline of the report. A kind of your own is named as"
            ' `"my_module:name"`: a class or function that gives an object with the methods of `tidemill.models.base.Model`, or a function whose'
            " first argument is `shape` and that gives a `torch.nn.Module` ([networks](../networks.md)). Its module stands beside the project file."
        ),
    ]
    for name, ref in TABLE["model"].items():
        module, kind = importlib.import_module(ref.partition(":")[0]), load("model", name)
        parts += [f"## {name}", inspect.cleandoc(module.__doc__ or ""), "### Parameters", keys_table(kind.Params)]
        space = [
            [f"`{key}`", f"`{next(iter(range_))}`", (", " if "choice" in range_ else " to ").join(map(number, next(iter(range_.values()))))]
            for key, range_ in kind.space.items()
        ]
        parts += ["Searched by `[tune]` where it names no space of its own:", table(["parameter", "kind", "range"], space)]
    parts += ["## Not built in this version", f"{', '.join(f'`{kind}`' for kind in UNBUILT)}. A project file that names one is refused."]
    return "\n\n".join(parts)


def metrics() -> str:
    from tidemill.core import metrics as module

    rows = []
    for name, metric in module.METRICS.items():
        better = "more" if metric.greater_is_better else "less"
        rows.append([f"`{name}`", metric.title, ", ".join(metric.tasks), better, metric.default_for or "", definition(name, metric)])
    table_doc = next(text for name, text in assignment_texts(module).items() if name == "METRICS")
    return "\n\n".join([
        "# Metrics",
        "How predictions are judged: in `contract.quality`, in `tune.metric`, in the report.",
        table(["name", "title", "tasks", "better is", "default for", "definition"], rows),
        table_doc.removeprefix("By name. "),
        ("Each value is reported with a 95 % interval: the percentile bootstrap over the rows of the test split, seeded by the project's"
        " seed. `contract.quality.max_drop` is held against the one-sided 95 % bound of the paired difference to the champion on the same rows."
        " Rows with weights count by them."),
    ])  # fmt: skip


# Metrics whose scorers are made of a function each, which leaves no docstring to take.
DEFINITIONS = {
    "log_loss": "Minus the logarithm of the true class's probability, clipped to the resolution of its type.",
    "brier": "Squared distance of the probability from the truth; summed over the classes for multiclass.",
    "accuracy": "Share of rows whose most probable class is the true one; class 1 of two needs more than 0.5.",
    "balanced_accuracy": "Mean over the classes of the share of its rows that are found.",
    "precision": "Of the rows called class 1, the share that is; 0 where none is called.",
    "recall": "Of the rows of class 1, the share that is called so; undefined without such rows.",
    "f1": "Harmonic mean of precision and recall.",
    "ece": "Distance of observed from predicted frequency over 15 bins of equal width, weighted by their rows.",
    "mae": "Mean absolute error.",
    "r2": "Share of the target's variance that is explained; undefined where it is constant.",
    "mape": "Mean of the absolute error divided by the true value; rows whose true value is 0 are left out.",
}


def definition(name: str, metric: Any) -> str:
    if name in DEFINITIONS:
        return DEFINITIONS[name]
    if not inspect.isfunction(metric.prepare) or "<locals>" in metric.prepare.__qualname__:
        raise SystemExit(f"DEFINITIONS in docs/generate.py must hold {name}")
    return prose(metric.prepare).partition("\n")[0]


def assignment_texts(module: types.ModuleType) -> dict[str, str]:
    """Texts under a module's assignments."""
    body = ast.parse(inspect.getsource(module)).body
    return {
        ast.unparse(one.target): one_line(str(below.value.value))
        for one, below in itertools.pairwise(body)
        if isinstance(one, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


# ---- HTTP ----

# What the addresses mean that no OpenAPI description covers.
ADDRESSES = {
    "/": "Leads a browser to /docs; says to others that the server lives",
    "/docs": "A page with each model's fields and an example that can be tried",
    "/openapi.json": "The OpenAPI 3.1 description of this server",
    "/v1/models": "KServe v1: names of the models",
    "/v1/models/{model}": "KServe v1: whether the model is ready",
    "/v1/models/{model}:predict": 'KServe v1: `{"instances": [...]}` of records',
    "/v2/repository/index": "Open Inference Protocol: what is deployed, and what could not be",
    "/v2/models/{model}": "Open Inference Protocol: the model's versions, inputs and outputs",
    "/v2/models/{model}/ready": "Open Inference Protocol: whether the model is ready",
    "/v2/models/{model}/infer": "Open Inference Protocol: one named tensor for each raw column; JSON or the binary tensor extension",
}

CAUSES = {
    "malformed": "the body is no JSON, no Arrow, or cut short",
    "field": "a field is missing, of another type, or out of range; `field` names it",
    "unknown_route": "no such address",
    "unknown_model": "no such model or version",
    "method": "the address takes another method",
    "too_large": "the body or the number of rows is above the limit",
    "media_type": "the media type is not taken",
    "timeout": "the body did not arrive in time",
    "unauthorized": "no valid credential came",
    "forbidden": "the credential does not reach so far, or the page's origin may not ask",
    "limit": "too many requests of this key or address; `Retry-After` says when to come again",
    "unavailable": "the server stops, or cannot answer now",
    "overload": "more is waiting than can be answered in time; `Retry-After` says when to come again",
    "deadline": "the time that the request had is over",
    "gone": "the caller left before its request was run",
    "not_loaded": "a model could not be loaded or unloaded by name",
    "internal": "the server failed; its log says why",
}


def http() -> str:
    from tidemill.serve import answers, docs, kserve, oip
    from tidemill.serve.app import App
    from tidemill.serve.http import Cause
    from tidemill.serve.metrics import Family, Metrics
    from tidemill.serve.model import Model
    from tidemill.testing.packages import tiny_package

    with tempfile.TemporaryDirectory() as folder:
        model = Model(tiny_package(Path(folder) / "tiny", version="1"))
        app = App([model])
        summaries = {path: one.get("get", one.get("post"))["summary"] for path, one in docs.openapi([model])["paths"].items()}
        routes = [route for known in app._table.routes.values() for route in known.values()]
    summaries = {re.sub(r"/models/tiny(/versions/1)?", "/models/{model}", path): text for path, text in summaries.items()} | ADDRESSES
    labels = dict.fromkeys((route.label, route.method) for route in routes)
    if set(get_args(Cause)) != set(CAUSES):
        raise SystemExit(f"CAUSES in docs/generate.py must be {sorted(get_args(Cause))}")
    families = [family for family in vars(Metrics()).values() if isinstance(family, Family)]
    statuses = [[f"`{status}`", one["description"]] for status, one in docs._ERRORS.items()]
    return "\n\n".join([
        "# HTTP",
        "The addresses of `tidemill serve`, its answers, refusals and metrics.",
        ("The first package that is named on the command line is the default one: it answers `/predict`. Every package answers under"
        " `/models/{model}` and `/models/{model}/versions/{version}`, under the protocols' prefixes too. A package that came from no ledger"
        " has the first twelve digits of its identity for a version. The body of a POST is JSON in UTF-8; fields that the model does not"
        " know are ignored."),
        "## Addresses",
        table(["method", "address", "what it does"], [[method, f"`{label}`", summaries[label]] for label, method in labels]),
        "## Answers",
        paragraphs(answers.AnswerForm)[1],
        "Example, for a model with two classes:",
        '```json\n{"prediction": true, "probability": 0.71, "model": "flights", "version": "1"}\n```',
        ("`/predict_batch` takes `{\"records\": [...]}` and answers `{\"predictions\": [...], \"model\": ..., \"version\": ...}`; text packages take"
        " `{\"text\": ...}` and `{\"texts\": [...]}` too. It also takes and gives Arrow (`application/vnd.apache.arrow.stream` and `.file`) by"
        " `Content-Type` and `Accept`; that needs pyarrow beside the server."),
        f"**Open Inference Protocol v2.** {paragraphs(oip)[1]}",
        f"**KServe v1.** {paragraphs(kserve)[0]}",
        "## Refusals",
        ('A refusal is `{"error": {"field": ..., "reason": ..., "hint": ...}}`; under `/v1` and `/v2` it is `{"error": "..."}`, as those protocols'
        " have it."),
        table(["status", "meaning"], statuses),
        ("Further: 404 for an unknown address or model, 405 for another method, 408 for a body that does not arrive, 503 while the server"
        " stops. Every response carries `x-request-id`, the caller's or one of the server's own."),
        "Refusals are counted by reason in `tidemill_errors_total`:",
        table(["reason", "meaning"], [[f"`{cause}`", CAUSES[cause]] for cause in get_args(Cause)]),
        "## Metrics",
        "`/metrics` is in the Prometheus text format.",
        table(
            ["name", "type", "labels", "meaning"],
            [[f"`{one.name}`", one._kind, ", ".join(f"`{label}`" for label in one._labels), one._text] for one in families],
        ),
    ])  # fmt: skip


# ---- Python ----


def python() -> str:
    import tidemill

    parts = [
        "# Python",
        "What `import tidemill as tm` offers; names are imported when they are first used.",
        '```python\nimport tidemill as tm\n\nmodel = tm.fit(frame, target="late")\nmodel.predict(frame)\n```',
    ]
    for name in tidemill.__all__:
        thing = getattr(tidemill, name)
        if inspect.isfunction(thing):
            parts += [f"## tm.{name}", signature(f"tm.{name}", thing), docstring(thing)]
        elif inspect.isclass(thing) and not issubclass(thing, Exception):
            parts += class_part(f"tm.{name}", thing)
    parts.append("## tm.TidemillError\n\nThe root of every error that is raised on purpose; see [errors](errors.md).")
    from tidemill.core.package import Predictor

    parts += class_part("tidemill.core.package.Predictor", Predictor)
    return "\n\n".join(parts)


def class_part(name: str, kind: type) -> Iterator[str]:
    """A class: how it is made, its attributes in a table, its methods one after the other."""
    yield f"## {name}"
    own = [base for base in reversed(kind.__mro__) if base.__module__.startswith("tidemill")]
    everything = {member: value for base in own for member, value in vars(base).items()}
    init = everything.get("__init__")
    if init is not None and not dataclasses.is_dataclass(kind):
        yield signature(name, init, drop_self=True)
    yield docstring(kind)
    if init is not None and init.__doc__ and not dataclasses.is_dataclass(kind):
        yield docstring(init)
    members = {member: value for member, value in everything.items() if not member.startswith("_")}
    attributes = [
        [f"`{member}`", f"`{value.fget.__annotations__.get('return')}`".replace("'", ""), one_line(value.__doc__ or "")]
        for member, value in members.items()
        if isinstance(value, property) and value.fget
    ]
    if attributes:
        yield table(["attribute", "type", "meaning"], attributes)
    for member, value in members.items():
        function = value.__func__ if isinstance(value, classmethod) else value
        if inspect.isfunction(function):
            yield f"### {member}\n\n{signature(member, function, drop_self=True)}\n\n{docstring(function)}".rstrip()


def signature(name: str, function: Callable[..., Any], *, drop_self: bool = False) -> str:
    """The signature as the source has it, on one line or one argument a line."""
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    name = f"await {name}" if isinstance(node, ast.AsyncFunctionDef) else name
    if drop_self:
        node.args.args.pop(0)
    gives = f" -> {ast.unparse(node.returns)}" if node.returns is not None and node.name != "__init__" else ""
    given = spaced(ast.unparse(node.args)).replace("'", '"')
    line = f"{name}({given}){gives}"
    if len(line) > 100:
        arguments = "".join(f"    {argument},\n" for argument in split_arguments(given))
        line = f"{name}(\n{arguments}){gives}"
    return f"```python\n{line}\n```"


def spaced(arguments: str) -> str:
    """Arguments with spaces about the `=` of a default, as people write them."""
    return re.sub(r"(?<=[\w\]])=(?=[\w\"'(\[-])", " = ", arguments)


def split_arguments(text: str) -> list[str]:
    """Arguments between commas that are in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


SECTIONS = ("Args:", "Raises:", "Returns:", "Example:")


def docstring(thing: Any) -> str:
    """A Google docstring as Markdown."""
    text = inspect.cleandoc(thing.__doc__ or "")
    blocks: list[str] = []
    section, lines = "", []
    for line in [*text.splitlines(), "Args:"]:
        if line.strip() in SECTIONS and not line.startswith(" "):
            blocks.append(rendered(section, lines))
            section, lines = line.strip(), []
        else:
            lines.append(line)
    return "\n\n".join(block for block in blocks if block)


def rendered(section: str, lines: list[str]) -> str:
    body = textwrap.dedent("\n".join(lines)).strip()
    if not body:
        return ""
    if section == "Example:":
        return f"```pycon\n{body}\n```"
    if section in ("Args:", "Raises:"):
        items = re.split(r"\n(?=\S)", body)
        listed = []
        for item in items:
            name, _, what = one_line(item).partition(": ")
            listed.append(f"- {' , '.join(f'`{one}`' for one in name.split(', '))}: {what}".replace(" , ", ", "))
        return f"{'Arguments' if section == 'Args:' else 'Raises'}:\n\n" + "\n".join(listed)
    return body


# ---- errors ----


def errors() -> str:
    from tidemill.core import errors as module

    codes = {value: name.removeprefix("EXIT_").lower() for name, value in vars(module).items() if name.startswith("EXIT_")}
    meanings = {
        "done": "done", "failed": "failed: the message says what and where", "usage": "wrong call or configuration: mend it and call again",
        "contract": "a promise of the contract is broken; nothing that depends on it was written", "interrupted": "interrupted; the same command goes on where it stopped",
    }  # fmt: skip
    kinds = [thing for thing in vars(module).values() if inspect.isclass(thing) and issubclass(thing, module.TidemillError)]
    rows = [[f"`{kind.__name__}`", str(kind.exit_code), one_line(kind.__doc__ or "")] for kind in kinds]
    return "\n\n".join([
        "# Errors and exit codes",
        "What goes wrong on purpose, as exit codes of the command line and as exceptions in Python.",
        table(["exit code", "meaning"], [[str(code), meanings[name]] for code, name in sorted(codes.items())]),
        ("A message says what must hold, what was got and where, and below it what to do. With `--json` the same is printed as"
        ' `{"error": {"kind", "message", "hint", "field", "exit_code"}}`. A failure that was not foreseen is one line too; its traceback is in'
        " `crash.log` in the home folder."),
        "All exceptions are in `tidemill.core.errors`; the root is `TidemillError`.",
        table(["exception", "exit code", "meaning"], rows),
    ])  # fmt: skip


# ---- text ----


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table without the columns that are empty in every row."""
    rows = list(rows)
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [[head[i] for i in kept], ["---"] * len(kept), *[[cell(row[i]) for i in kept] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Text for a cell: bars escaped, and what would be read as HTML outside of code."""
    parts = re.split(r"(`[^`]*`)", re.sub(r"(?<!\\)\|", r"\\|", one_line(text)))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def prose(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__ or "")


def paragraphs(thing: Any) -> list[str]:
    return [one_line(part) for part in prose(thing).split("\n\n")]


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
