"""What commands share: the project, the home and its ledger, what a name stands for, and how a result is said."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidemill.core.errors import EXIT_DONE

if TYPE_CHECKING:
    from tidemill.core.events import Events
    from tidemill.core.ledger import Ledger
    from tidemill.core.package import Package
    from tidemill.core.project import Project
    from tidemill.serve.deployment.slot import Slot


def project(options: argparse.Namespace) -> Project:
    from tidemill.core.project import read

    return read(options.file or ["tidemill.toml"], options.set)


def section(options: argparse.Namespace, name: str) -> Any:
    """One section of the project file that is named or lies here; its defaults where there is none."""
    from tidemill.core.project import read_section

    here = [Path("tidemill.toml")] if Path("tidemill.toml").is_file() else []
    return read_section(name, options.file or here, options.set)


def home(options: argparse.Namespace) -> Path:
    """`--home`, else the nearest `.tidemill` from here upward, else one to be made here."""
    if options.home:
        return Path(options.home)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".tidemill").is_dir():
            return folder / ".tidemill"
    return here / ".tidemill"


def ledger(options: argparse.Namespace) -> Ledger:
    from tidemill.core.ledger import Ledger

    folder = home(options)
    return Ledger(options.ledger or folder / "ledger.db", packages=folder / "packages")


def resolve(options: argparse.Namespace, ref: str) -> Package:
    """The package that a name of the ledger or a folder stands for."""
    from tidemill.core.package import Package

    return Package.open(ref) if _is_folder(ref) else ledger(options).resolve(ref).open()


def served(options: argparse.Namespace, ref: str, *, follow: bool) -> Package | Slot:
    """What a server answers for: a folder's package, or a name of the ledger, whose alias it follows unless told not to."""
    from tidemill.core.package import Package
    from tidemill.serve.deployment.slot import resolved

    return Package.open(ref) if _is_folder(ref) else resolved(ref, ledger(options), follow=follow)


def _is_folder(ref: str) -> bool:
    from tidemill.core.package import MANIFEST

    return (Path(ref) / MANIFEST).is_file() or "/" in ref.removeprefix("models:/").partition("/")[2] or ref.startswith((".", "/"))


def events(options: argparse.Namespace) -> Events:
    from tidemill.core.events import Events

    if options.quiet or options.json:
        return Events()
    from tidemill.ui.console import console

    return Events(console())


def say(options: argparse.Namespace, result: Any, show: Callable[[], None]) -> int:
    if options.json:
        print(json.dumps(result, indent=1, ensure_ascii=False, default=str))
    else:
        show()
    return EXIT_DONE


def mirrors(project: Project) -> list[Any]:
    from tidemill.core.load import load

    return [load("mirror", ref)(project.rollout, project.folder) for ref in project.rollout.mirrors]
