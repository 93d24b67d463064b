"""The package stage: the only one that reads the test split."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.core.allocator import lean
from tidemill.core.artifact import Artifact
from tidemill.core.engine import memory_bytes
from tidemill.core.events import Events
from tidemill.core.graph import BulkGraph
from tidemill.core.load import need
from tidemill.core.package import Package
from tidemill.core.project import Project
from tidemill.core.schema import Schema
from tidemill.packaging import merge
from tidemill.packaging.evaluate import Trivial
from tidemill.packaging.gate import Candidate, Trial, pass_gate
from tidemill.packaging.parity import ReferencePath
from tidemill.packaging.rows import Rows, Split, Target, answers

LIBRARIES = ("tidemill", "numpy", "onnx", "onnxruntime", "xgboost-cpu", "xgboost", "scikit-learn", "torch", "transformers", "skl2onnx")


def run(
    project: Project,
    data: Artifact,
    features: Artifact,
    train: Artifact,
    out: Path,
    *,
    tune: Artifact | None = None,
    champion: Package | None = None,
    events: Events,
) -> dict[str, Any]:
    """Fill `out` with a whole package, measured on the test split and held to its contract; returns its main figures.

    Args:
        champion: What a promise of no loss of quality is held against.

    Raises:
        ContractViolation: If a promise is broken; `out` is no package then.
        DataError: If the test split is empty, or the parts do not fit together.
    """
    lean(memory_bytes(project.engine.memory))
    facts = data.read_json("schema.json")
    layout = features.read_json("features.json")
    schema, classes = Schema.from_json(layout["inputs"]), facts["classes"]
    threads = project.engine.threads or os.cpu_count() or 1
    target = Target(column=facts["target"], classes=classes, weight=facts["weight"])
    test, reference = Split(data.path, "test"), Split(data.path, "train")

    report = train.read_json("train.json")
    interval = report.get("interval")
    _write_graphs(features.path, train.path, out, classes)
    signature: dict[str, Any] = {
        "kind": "row",
        "inputs": schema.to_json(),
        "outputs": merge.outputs(classes, interval=interval is not None),
        "target": facts["target"],
        "keys": list(facts["keys"]),
    }
    if classes is not None:
        signature["classes"] = list(classes)
    if interval is not None:
        signature["interval"] = interval["level"]
    made_from = {"data": data, "features": features, "tune": tune, "train": train}
    candidate = Candidate(
        folder=out,
        name=project.name,
        task=facts["task"],
        signature=signature,
        promises=project.contract.promises(),
        lineage={
            "project": project.name,
            **{stage: artifact.id for stage, artifact in made_from.items() if artifact is not None},
            "champion": champion.identity if champion else None,
            "versions": versions(),
        },
        fitted=layout,
        threads=threads,
        seed=project.seed,
        about={
            "model": f"{report['kind']}, with a linear baseline beside it",
            "rows": facts["rows"],
            "source": f"project {project.name}",
            "generalization": (report.get("generalization") or {}).get("said"),
            "limits": [f"It knows `{facts['target']}` as the data of the project wrote it; what was wrong there is wrong here."],
        },
    )
    trial = Trial(
        rows=test,
        native=ReferencePath(features.path, train.path, threads=threads),
        reference=reference,
        target=target,
        trivial=Trivial.of(target, reference),
        baseline=_baseline(features.path, train.path / "baseline", schema, test, classes, threads),
        champion=champion,
    )
    return pass_gate(candidate, trial, events=events)


def versions() -> dict[str, str]:
    """The libraries that a package was made with."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _write_graphs(features: Path, train: Path, out: Path, classes: list[Any] | None) -> None:
    onnx = need("onnx", "packaging a model")
    first, second = onnx.load(str(features / "features.onnx")), onnx.load(str(train / "model.onnx"))
    for name, graph in (("features", first), ("model", second), ("full", merge.merge(first, second, classes=classes))):
        (out / f"{name}.onnx").write_bytes(merge.to_bytes(graph))


def _baseline(features: Path, folder: Path, schema: Schema, test: Rows, classes: list[Any] | None, threads: int) -> np.ndarray | None:
    """The baseline's answers for the test rows, through its own merged graph."""
    if not (folder / "model.onnx").exists():
        return None
    onnx = need("onnx", "packaging a model")
    merged = merge.merge(onnx.load(str(features / "features.onnx")), onnx.load(str(folder / "model.onnx")), classes=classes)
    graph = BulkGraph(merge.to_bytes(merged), schema, threads=threads)
    return answers(graph, test, merge.PREDICTION if classes is None else merge.PROBABILITY)
