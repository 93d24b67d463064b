"""One process of a search: `python -m tidemill.tune.worker`, its part as a line of JSON on stdin, events as lines on stdout."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tidemill.core.artifact import Artifact
from tidemill.core.errors import TidemillError
from tidemill.core.events import Event, Events
from tidemill.core.load import load
from tidemill.core.project import Project, build, to_plain
from tidemill.train.workload import Workload, prepare_model
from tidemill.tune.config import TuneConfig
from tidemill.tune.search import Plan, take_part
from tidemill.tune.store import Store

_SECTIONS = ("model", "train", "tune", "engine")


def order_of(
    project: Project,
    plan: Plan,
    data: Artifact,
    features: Artifact,
    *,
    folder: Path,
    study: str,
    share: float,
    studies: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What a worker has to be told."""
    return {
        "name": project.name,
        "seed": project.seed,
        "folder": str(project.folder.resolve()),
        "sections": {section: to_plain(getattr(project, section)) for section in _SECTIONS},
        "data": str(data.path.resolve()),
        "features": str(features.path.resolve()),
        "work": str(folder.resolve()),
        "study": study,
        "share": share,
        "metric": plan.metric,
        "starts": [dict(start) for start in plan.starts],
        "studies": list(studies),
    }


def serve(order: Mapping[str, Any], out: TextIO) -> None:
    """Do what the order says, and write an event a line."""

    def tell(event: Event) -> None:
        line = {"kind": event.kind, "message": event.message, "level": event.level, "fields": event.fields}
        out.write(json.dumps(line) + "\n")
        out.flush()

    sections = {section: build(load("section", section), order["sections"][section], path=section) for section in _SECTIONS}
    unread: dict[str, Any] = {key: {} for key in ("data", "features", "contract", "serve", "monitor", "rollout")}
    project = Project(name=order["name"], seed=order["seed"], folder=Path(order["folder"]), **unread, **sections)
    config: TuneConfig = project.tune
    prepare_model(project)
    plan = Plan.of(project, metric=order["metric"], starts=order["starts"], studies=order["studies"])
    data, features = Artifact.open(Path(order["data"])), Artifact.open(Path(order["features"]))
    workload = Workload.of(project, data, features, whole=True).sampled(order["share"])
    store = Store(Path(order["work"]), study=order["study"], url=config.storage)
    try:
        take_part(project, plan, workload, store, events=Events(tell))
    finally:
        store.close()


def main() -> int:
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # What a user's module prints must not come between the events.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        try:
            serve(order, out)
        except TidemillError as error:
            out.write(json.dumps({"error": {"type": type(error).__name__, "message": error.message, "hint": error.hint}}) + "\n")
    return 0


def _end_with_parent() -> None:
    """The other end of stdin is closed when the process that started this one ends."""
    while os.read(sys.stdin.fileno(), 1):
        continue
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
