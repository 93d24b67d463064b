"""One function finds every extension."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tidemill.core import load as module
from tidemill.core.errors import ConfigError, MissingDependency, NotFound
from tidemill.core.load import EXTRAS, TABLE, load, names, need


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in TABLE.items() for name in table])
def test_every_name_of_the_table_loads(kind: str, name: str) -> None:
    if kind == "mirror":
        pytest.importorskip("mlflow")
    assert load(kind, name) is not None
    assert name in names(kind)


def test_what_is_no_text_is_the_extension_itself() -> None:
    made = object()
    assert load("model", made) is made


def test_an_unknown_name_gets_the_nearest_known() -> None:
    with pytest.raises(NotFound, match=r"operator 'onehot' is not known \(did you mean 'one_hot'"):
        load("operator", "onehot")
    with pytest.raises(NotFound, match="is not known"):
        load("nothing of the kind", "x")


def test_module_and_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models.py").write_text("class Ranker: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load("model", "own_models:Ranker").__name__ == "Ranker"
    with pytest.raises(ConfigError, match="'own_models' must define 'Rancor'"):
        load("model", "own_models:Rancor")
    with pytest.raises(ConfigError, match=r"module 'no_such_models' must be importable.*beside the project file"):
        load("model", "no_such_models:Ranker")
    monkeypatch.delitem(sys.modules, "own_models")


def test_installed_extensions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint(name="ranker", value="collections:OrderedDict", group="tidemill.model")
    monkeypatch.setattr(module, "entry_points", lambda group: [point] if group == "tidemill.model" else [])
    assert load("model", "ranker").__name__ == "OrderedDict"
    assert names("model") == [*TABLE["model"], "ranker"]
    with pytest.raises(NotFound, match="did you mean 'ranker'"):
        load("model", "rankr")


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(module, "importlib", SimpleNamespace(import_module=absent))
    for library, extra in EXTRAS.items():
        with pytest.raises(MissingDependency, match="testing needs") as caught:
            need(f"{library}.inner", "testing")
        assert caught.value.hint == f"pip install 'tidemill[{extra}]'"
    with pytest.raises(ModuleNotFoundError, match="somebodys_own"):
        need("somebodys_own", "testing")
