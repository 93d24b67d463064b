"""A project run from source to registered package, stage by stage; what is unchanged is not run again.

Each stage is a function that fills a folder. Its fingerprint says what its output depends on; a finished folder with
that fingerprint is taken as it is, so that a stopped run goes on where it stopped and an unchanged one does nothing.
"""

from __future__ import annotations

import cProfile
import os
import platform
import pstats
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tidemill.core.artifact import Artifact, disk_errors, lock, sweep, write_json, writing
from tidemill.core.contract import hardware
from tidemill.core.errors import ConfigError, ContractViolation, DataError, NotFound, TidemillError
from tidemill.core.events import Events, now, to_file
from tidemill.core.ledger import CHAMPION, Ledger, Version
from tidemill.core.package import Package
from tidemill.core.project import Project, fingerprint, to_plain

STAGES = ("data", "features", "tune", "train", "package")
HOME = ".tidemill"

# Raised when a stage's output changes for the same input.
_STAGE_VERSIONS = {"data": 2, "features": 2, "tune": 2, "train": 2, "package": 1}


@dataclass(kw_only=True)
class Run:
    """What a run did. `version` is None where it ended before the package or the package was refused."""

    id: str
    project: Project
    folder: Path
    stages: dict[str, Artifact] = field(default_factory=dict)
    timings: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: Version | None = None
    promoted: bool = False
    refused: ContractViolation | None = None
    started: str = field(default_factory=now)

    @property
    def package(self) -> Package | None:
        """The registered package, else the one just made."""
        if self.version is not None:
            return self.version.open()
        return Package.open(self.stages["package"].path) if "package" in self.stages else None

    def to_json(self) -> dict[str, Any]:
        """The run as `run.json` holds it."""
        return {
            "run": self.id,
            "name": self.project.name,
            "started": self.started,
            "ended": now(),
            "stages": {
                name: {"id": a.id, "path": str(a.path), "inputs": a.manifest["inputs"], **self.timings[name]}
                for name, a in self.stages.items()
            },
            "version": self.version.version if self.version else None,
            "promoted": self.promoted,
            "refused": self.refused.breaches if self.refused else None,
            "contract": self.project.contract.promises(),
            "evidence": str(self.folder / "evidence") if self.refused else None,
            "config": self.project.to_json(),
            "environment": environment(),
        }


def run(
    project: Project,
    *,
    home: Path | None = None,
    from_stage: str | None = None,
    to_stage: str | None = None,
    sample: float = 1.0,
    profile: bool = False,
    events: Events | None = None,
    register: bool = True,
    ledger: Ledger | None = None,
) -> Run:
    """Run a project; a broken contract comes back in `Run.refused`, recorded in the ledger.

    Args:
        home: Where artifacts, packages and the ledger live; `.tidemill` beside the project file by default.
        from_stage: Stages from this one on are run again even where they are unchanged.
        to_stage: Last stage to run.
        sample: Share of the rows to work on, in (0, 1].
        profile: Also take a CPU profile of each stage.
        register: Enter the package into the ledger.

    Raises:
        Conflict: If another run works in the same home.
        TidemillError: What a stage raises; finished stages are kept.
    """
    import tidemill.data.stage as data_stage

    first, last = _span(from_stage, to_stage)
    if not 0 < sample <= 1:
        raise ConfigError(f"sample: must be in (0, 1], got {sample}")
    home = (home or project.folder / HOME).resolve()
    store = home / "store" / project.name
    made = Run(id=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}", project=project, folder=Path())
    made.folder = home / "runs" / project.name / made.id
    with disk_errors(home), lock(home / "lock"):
        made.folder.mkdir(parents=True)
        store.mkdir(parents=True, exist_ok=True)
        for folder in (home, store, *made.folder.parent.iterdir()):
            sweep(folder)
        events = events or Events()
        events.listen(to_file(made.folder / "events.jsonl"))
        ledger = ledger or Ledger(home / "ledger.db")
        champion = _champion(ledger, project, events)
        steps = _steps(project, made, store, sample=sample, champion=champion, profile=profile, events=events)
        events.emit("run.started", project.name, run=made.id)
        try:
            for name, parts, fill in steps:
                place = STAGES.index(name)
                if place > last:
                    break
                made.stages[name], made.timings[name] = _stage(
                    name, parts(), fill, store, again=place >= first, profile=profile, events=events
                )
        except ContractViolation as error:
            made.refused = error
            ledger.record("refused", project.name, why=error.message, evidence={"run": made.id})
            events.emit("package.refused", str(error), level="error")
        except TidemillError as error:
            events.emit("run.failed", str(error), level="error")
            raise
        finally:
            data_stage.forget(home)
        if register and "package" in made.stages:
            before = ledger.alias(project.name)
            made.version = ledger.register(Package.open(made.stages["package"].path), why=f"run {made.id}")
            made.promoted = before is None
            events.emit("package.registered", f"{project.name} version {made.version.version}", version=made.version.version)
        write_json(made.folder / "run.json", made.to_json())
    return made


Fill = Callable[[Path], dict[str, Any]]


def _steps(
    project: Project, made: Run, store: Path, *, sample: float, champion: Package | None, profile: bool, events: Events
) -> list[tuple[str, Callable[[], dict[str, Any]], Fill]]:
    """Name, what the fingerprint depends on, and what fills the folder, of each stage in order."""
    import tidemill.data.stage as data_stage
    import tidemill.features.stage as features_stage
    import tidemill.packaging.stage as packaging_stage
    import tidemill.train.stage as train_stage
    import tidemill.tune.stage as tune_stage

    stages = made.stages
    common = {"task": project.task, "seed": project.seed}
    threads = {"threads": project.engine.threads or os.cpu_count()}
    sampling = project.data.sampling()
    # Samples that grow are taken in training, of data that is the same for all of them.
    samples = {"sample": sampling} if sampling.by == "progressive" else {}

    studies = store.parents[1] / "studies"

    def tuned() -> dict[str, Any] | None:
        return stages["tune"].read_json("best.json") if "tune" in stages else None

    def work(name: str) -> Path:
        folder = store / f"work-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def warm_start() -> Any:
        return tune_stage.warm_start(project, stages["data"], stages["features"], studies=studies)

    def fill_tune(out: Path) -> dict[str, Any]:
        made_from = (stages["data"], stages["features"])
        facts: dict[str, Any] = tune_stage.run(
            project, *made_from, out, work=work("tune"), events=events, warm=warm_start(), studies=studies
        )
        return facts

    def fill_train(out: Path) -> dict[str, Any]:
        made_from = (stages["data"], stages["features"])
        trace = made.folder / "train-trace.json" if profile else None
        facts: dict[str, Any] = train_stage.run(
            project, *made_from, out, tuned=tuned(), work=store / "work-train", profile=trace, events=events
        )
        return facts

    def data_parts() -> dict[str, Any]:
        depends = data_stage.inputs(project, cache=store.parents[1])
        images = {"images": True} if project.model.reads == "image" else {}
        return {**common, "config": project.data, "sample": sample, "engine": project.engine.data, "inputs": depends, **images}

    def features_parts() -> dict[str, Any]:
        read = {} if project.model.reads == "features" else {"model": project.model, "files": project.model.content(project.folder)}
        return {**common, "config": project.features, "model": project.model.kind, "data": stages["data"].id, **read}

    def tune_parts() -> dict[str, Any]:
        made_from = {"data": stages["data"].id, "features": stages["features"].id}
        config = {"config": project.tune, "model": project.model, "train": project.train, "warm": warm_start().parts()}
        return {**common, **threads, **made_from, **samples, **config}

    def train_parts() -> dict[str, Any]:
        made_from = {"data": stages["data"].id, "features": stages["features"].id}
        return {**common, **threads, **made_from, **samples, "config": project.train, "model": project.model, "tuned": tuned()}

    def package_parts() -> dict[str, Any]:
        made_from = {name: stages[name].id for name in ("data", "features", "train")}
        against = champion.identity if champion else None
        if champion and made_from.items() <= champion.manifest["lineage"].items():
            # The champion came of these very parts: the package is still held against what that was held against.
            against = champion.manifest["lineage"]["champion"]
        return {
            **common,
            **made_from,
            "name": project.name,
            "config": project.contract,
            "champion": against,
            "machine": hardware()["fingerprint"],
        }

    def fill_package(out: Path) -> dict[str, Any]:
        """What was measured of a refused package is kept with the run, since its folder goes."""
        made_from = (stages["data"], stages["features"], stages["train"])
        try:
            facts: dict[str, Any] = packaging_stage.run(project, *made_from, out, tune=stages.get("tune"), champion=champion, events=events)
        except ContractViolation:
            if (out / "evidence").is_dir():
                shutil.copytree(out / "evidence", made.folder / "evidence")
            raise
        return facts

    steps: list[tuple[str, Callable[[], dict[str, Any]], Fill]] = [
        ("data", data_parts, lambda out: data_stage.run(project, out, events=events, sample=sample, cache=store.parents[1])),
        ("features", features_parts, lambda out: features_stage.run(project, stages["data"], out, events=events)),
    ]
    if project.tune is not None:
        steps.append(("tune", tune_parts, fill_tune))
    steps.append(("train", train_parts, fill_train))
    steps.append(("package", package_parts, fill_package))
    return steps


def _stage(
    name: str, parts: dict[str, Any], fill: Fill, store: Path, *, again: bool, profile: bool, events: Events
) -> tuple[Artifact, dict[str, Any]]:
    """The finished artifact of one stage, from the store or made now, and what it took."""
    key = fingerprint(stage=name, version=_STAGE_VERSIONS[name], tidemill=_version("tidemill"), **parts)
    folder = store / f"{name}-{key[:16]}"
    if not again and folder.is_dir():
        try:
            artifact = Artifact.open(folder)
            artifact.verify()
        except DataError as error:
            events.warn("stage.damaged", f"{name}: {error}; it is made again", stage=name)
        else:
            events.emit("stage.cached", name, stage=name, path=str(folder))
            return artifact, {"cached": True, "seconds": 0.0, "facts": artifact.facts}
    events.emit("stage.started", name, stage=name)
    inputs = {part: value for part, value in parts.items() if part in STAGES and isinstance(value, str)}
    facts: dict[str, Any] = {}
    start = time.perf_counter()
    with _watched(profile) as seen, writing(folder, stage=name, fingerprint=key, inputs=inputs, config=to_plain(parts), facts=facts) as out:
        facts.update(fill(out))
    seconds = round(time.perf_counter() - start, 3)
    if name in ("tune", "train"):
        for leftover in store.glob("work-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    events.emit("stage.done", name, stage=name, seconds=seconds, facts=facts, path=str(folder))
    return Artifact.open(folder), {"cached": False, "seconds": seconds, "facts": facts, **seen}


@contextmanager
def _watched(profile: bool) -> Iterator[dict[str, Any]]:
    """Peak resident memory of this process while the block runs, in MB, and its CPU profile where asked."""
    seen: dict[str, Any] = {}
    stop = threading.Event()
    peak = [_resident_mb()]

    def sample() -> None:
        while not stop.wait(0.05):
            peak[0] = max(peak[0], _resident_mb())

    thread = threading.Thread(target=sample, daemon=True, name="memory-sampler")
    thread.start()
    profiler = cProfile.Profile() if profile else None
    try:
        if profiler:
            profiler.enable()
        yield seen
    finally:
        if profiler:
            profiler.disable()
        stop.set()
        thread.join()
        seen["peak_mb"] = round(max(peak[0], _resident_mb()), 1)
        if profiler:
            seen["cpu"] = _hottest(profiler)


def _hottest(profiler: cProfile.Profile, most: int = 15) -> list[dict[str, Any]]:
    """The functions that took most time of their own."""
    stats: Mapping[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    rows = []
    for (file, line, function), (_, calls, own, total, _) in sorted(stats.items(), key=lambda item: -item[1][2])[:most]:
        place = f"{Path(file).parent.name}/{Path(file).name}:{line}" if line else ""
        rows.append({"function": function, "place": place, "calls": calls, "own_s": round(own, 3), "total_s": round(total, 3)})
    return rows


def _resident_mb() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _champion(ledger: Ledger, project: Project, events: Events) -> Package | None:
    """The package that a promise of no loss is held against; None where nothing is promised or there is none."""
    quality = project.contract.quality
    if quality is None or quality.max_drop is None:
        return None
    number = ledger.alias(project.name, CHAMPION)
    if number is None:
        return None
    try:
        return ledger.version(project.name, number).open()
    except (DataError, NotFound) as error:
        events.warn("champion.unreadable", f"the champion cannot be compared with: {error}")
        return None


def _span(from_stage: str | None, to_stage: str | None) -> tuple[int, int]:
    for stage in (from_stage, to_stage):
        if stage is not None and stage not in STAGES:
            raise NotFound("stage", stage, STAGES)
    return (
        STAGES.index(from_stage) if from_stage else len(STAGES),
        STAGES.index(to_stage) if to_stage else len(STAGES),
    )


def environment() -> dict[str, Any]:
    """Versions and hardware that a result was made with."""
    libraries = (
        "tidemill",
        "numpy",
        "onnxruntime",
        "onnx",
        "pyarrow",
        "duckdb",
        "narwhals",
        "xgboost-cpu",
        "xgboost",
        "scikit-learn",
        "optuna",
    )
    found = {library: _version(library) for library in libraries}
    return {
        "python": platform.python_version(),
        "libraries": {library: release for library, release in found.items() if release},
        "hardware": hardware(),
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
