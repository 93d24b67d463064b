"""Who may import whom, read from the source, also inside functions and in strings that name a module.

Below, "may import" lists are the design's lines read from left to right; a bar means not each other.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
MODULE = r"tidemill(\.\w+)+(:[\w.]+)?"

# From the top down; those in brackets must not import each other.
CHAIN = ("cli", ("doctor", "estimator"), "notebook", "ui", "rollout", "pipeline", ("tune", "compress"), "train", "models", "core")
# Over core alone, none of them imports another; and what stands above them all.
BESIDE = ("data", "features", "packaging", "predict", "serve", "stream", "monitor")
ABOVE_BESIDE = ("cli", "doctor", "estimator", "notebook", "ui", "rollout", "pipeline")
GROUND = ("engines", "testing", "client")  # over core alone
OUTSIDE = ("bench",)  # measures: a package through core, a server as a client does

# A library that is heavy or serves one purpose, and the only places that are about it.
PLACES: dict[str, tuple[str, ...]] = {
    "torch": ("models", "packaging", "train.torch", "train.planner.measuring"),
    "transformers": ("models", "packaging", "train.torch"),
    "pytorch_optimizer": ("train.torch",),
    "tensorboard": ("train.torch",),
    "tokenizers": ("core", "models", "packaging", "serve", "predict"),
    "xgboost": ("models", "packaging"),
    "sklearn": ("models", "packaging", "estimator"),
    "skl2onnx": ("models", "packaging"),
    "skops": ("models", "packaging"),
    "joblib": ("packaging",),
    "pickle": (),
    "optuna": ("tune",),
    "mlflow": ("rollout",),
    "duckdb": ("data", "engines.local"),
    "narwhals": ("data", "engines", "notebook", "testing"),
    "httptools": ("serve",),
    "uvloop": ("serve.process",),
    "grpc": ("serve.grpc",),
    "redis": ("serve",),
    "opentelemetry": ("serve.tracing",),
    "jwt": ("serve.access",),
    "pyspark": ("engines.spark",),
    "ray": ("engines.ray",),
    "openvino": ("core.runtimes.openvino",),
    "PIL": ("packaging",),
    "pandas": ("packaging",),
    "polars": (),
}


def test_imports_go_down_the_house() -> None:
    wrong = sorted(upward(house()))
    assert not wrong, "\n".join(wrong)


def test_no_import_goes_round() -> None:
    circle = round_trip(edges(sources(), types=False))
    assert circle is None, " imports ".join(circle)


def test_errors_are_the_ground_of_core() -> None:
    assert house()["tidemill.core.errors"] == set()


def test_libraries_are_imported_where_they_are_about() -> None:
    wrong = sorted(misplaced(sources()))
    assert not wrong, "\n".join(wrong)


# The guards see what they are for.


@pytest.mark.parametrize(
    "source",
    [
        "from tidemill.data.profile import profile",
        "import tidemill.data.profile",
        "from tidemill.data import profile",
        "def late():\n    from tidemill.data import profile",
        "def late():\n    return importlib.import_module('tidemill.data.profile')",
        "WHERE = 'tidemill.data.profile:profile'",
        "from ..data import profile",
    ],
)
def test_an_import_of_a_sibling_is_seen(source: str) -> None:
    found = edges({"tidemill.features.log": source, "tidemill.data.profile": "", "tidemill.data": ""})
    assert list(upward(found)) == ["tidemill.features.log imports tidemill.data.profile"]


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("core.graph", "models.base"),
        ("train.stage", "tune.stage"),
        ("tune.stage", "compress.stage"),
        ("pipeline", "ui.page"),
        ("models.linear", "data.stage"),
        ("engines.local.engine", "engines.spark.engine"),
        ("testing.engine", "engines.local.engine"),
        ("client", "serve.app"),
        ("core.schema", ""),
        ("surprise", "core.errors"),
    ],
)
def test_a_step_up_or_aside_is_refused(importer: str, imported: str) -> None:
    target = f"tidemill.{imported}".rstrip(".")
    assert len(list(upward({f"tidemill.{importer}": {target}}))) == 1


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("cli", "serve.app"),
        ("ui.page", "rollout.decide"),
        ("pipeline", "packaging.stage"),
        ("tune.stage", "models.base"),
        ("serve.app", "serve.v2"),
    ],
)
def test_a_step_down_is_allowed(importer: str, imported: str) -> None:
    assert list(upward({f"tidemill.{importer}": {f"tidemill.{imported}"}})) == []


def test_a_docstring_is_no_import() -> None:
    assert edges({"tidemill.core.a": '"""tidemill.core.b"""', "tidemill.core.b": ""})["tidemill.core.a"] == set()


def test_the_table_of_extensions_may_point_up() -> None:
    table = 'TABLE: dict[str, str] = {"engine": "tidemill.engines.local"}'
    found = {"tidemill.core.load": table, "tidemill.core.other": table, "tidemill.engines.local": ""}
    assert list(upward(edges(found))) == ["tidemill.core.other imports tidemill.engines.local"]


def test_a_circle_is_seen() -> None:
    assert round_trip({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert round_trip({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_a_type_makes_no_circle() -> None:
    found = {"tidemill.x.a": "from tidemill.x.b import B", "tidemill.x.b": "if TYPE_CHECKING:\n    from tidemill.x.a import A"}
    assert round_trip(edges(found)) == ["tidemill.x.a", "tidemill.x.b", "tidemill.x.a"]
    assert round_trip(edges(found, types=False)) is None


def test_a_misplaced_library_is_seen() -> None:
    typed = "if TYPE_CHECKING:\n    import torch"
    found = {"tidemill.serve.app": "def f():\n    import torch.nn", "tidemill.models.mlp": "import torch", "tidemill.core.engine": typed}
    assert list(misplaced(found)) == ["tidemill.serve.app imports torch"]


# Reading the house.


def sources() -> dict[str, str]:
    """Dotted name to source of every module."""
    found = {}
    for path in sorted((SRC / "tidemill").rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    assert len(found) > 10
    return found


def house() -> dict[str, set[str]]:
    return edges(sources())


def edges(found: Mapping[str, str], *, types: bool = True) -> dict[str, set[str]]:
    """Module to the modules that it imports or names in a string; `types=False` leaves out what is never run.

    Types may name each other across two files of one folder; what runs may not go round, and no type excuses a step up.
    """
    result: dict[str, set[str]] = {}
    for module, source in found.items():
        tree = ast.parse(source)
        statements = tree if types else run(tree)
        named = {nearest_module(name, found) for name in imported(module, statements)} | {
            name for name in quoted(module, tree) if name in found
        }
        result[module] = {name for name in named if name is not None and name != module}
    return result


def imported(module: str, tree: ast.AST) -> Iterator[str]:
    """Every dotted name that import statements anywhere in the module ask for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.rsplit(".", node.level)[0] if node.level else ""
            target = ".".join(part for part in (base, node.module) if part)
            yield from (f"{target}.{alias.name}" for alias in node.names)


def quoted(module: str, tree: ast.Module) -> Iterator[str]:
    """What may be a module of ours in a string, outside docstrings and the table of extensions."""
    skipped = table_of_extensions(tree) if module == "tidemill.core.load" else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            skipped.add(id(node.value))  # the walk meets a statement before its parts
        elif isinstance(node, ast.Constant) and id(node) not in skipped and re.fullmatch(MODULE, str(node.value)):
            yield str(node.value).partition(":")[0]


def run(tree: ast.Module) -> ast.Module:
    """The import statements of a module without those under `if TYPE_CHECKING:`."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for_types = {part for block in blocks for statement in block.body for part in ast.walk(statement)}
    return ast.Module([node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and node not in for_types], [])


def table_of_extensions(tree: ast.Module) -> set[int]:
    """The strings of `TABLE`, the one place that may name modules above its own."""
    tables = [node.value for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TABLE"]
    return {id(node) for table in tables if table is not None for node in ast.walk(table)}


def nearest_module(name: str, known: Mapping[str, object]) -> str | None:
    if not name.startswith("tidemill"):
        return None
    while name not in known and "." in name:
        name = name.rpartition(".")[0]
    return name if name in known else None


# The rules.


def upward(found: Mapping[str, set[str]]) -> Iterator[str]:
    """One sentence for every import that the design does not allow."""
    for importer, imported in found.items():
        for target in sorted(imported):
            if not allowed(part(importer), part(target)) or other_engine(importer, target):
                yield f"{importer} imports {target}"


def other_engine(importer: str, target: str) -> bool:
    """Whether one engine's folder imports another's."""
    first, second = importer.split(".")[1:3], target.split(".")[1:3]
    return first[:1] == second[:1] == ["engines"] and len(second) == 2 and first != second


def part(module: str) -> str:
    """The folder or file under `tidemill` that a module belongs to; empty for the package itself."""
    return [*module.split("."), ""][1]


def allowed(importer: str, target: str) -> bool:
    if importer == "":  # the package's own front door names what it offers
        return True
    if target == "":  # `--version` is the one thing that is asked of it from inside
        return importer == "cli"
    return target == importer or target in below(importer)


def below(importer: str) -> set[str]:
    flat = [(name,) if isinstance(name, str) else name for name in CHAIN]
    for step, siblings in enumerate(flat):
        if importer in siblings:
            lower = {name for group in flat[step + 1 :] for name in group}
            return lower | (set(BESIDE) if importer in ABOVE_BESIDE else set()) | (set(OUTSIDE) if importer == "cli" else set())
    if importer in OUTSIDE:
        return {"core", "client"}
    return {"core"} if importer in BESIDE + GROUND else set()


def round_trip(found: Mapping[str, set[str]]) -> list[str] | None:
    """The modules of one circle of imports, or None."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        for target in sorted(found.get(module, ())):
            if circle := walk(target, [*path, module]):
                return circle
        done.add(module)
        return None

    return next((circle for module in sorted(found) if (circle := walk(module, []))), None)


def misplaced(found: Mapping[str, str]) -> Iterator[str]:
    """One sentence for every library that is imported, other than for types, outside its places."""
    for module, source in found.items():
        inside = module.partition(".")[2]
        for library in sorted({name.partition(".")[0] for name in imported(module, run(ast.parse(source)))}):
            places = PLACES.get(library)
            if places is not None and not any(inside == place or inside.startswith(f"{place}.") for place in places):
                yield f"{module} imports {library}"
