"""The package stage: the only one that reads the test split."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
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
from tidemill.packaging.network import write_network
from tidemill.packaging.parity import FunctionPath, Native, ReferencePath
from tidemill.packaging.row_reference import row_reference
from tidemill.packaging.rows import Rows, Sample, Split, Target, answers, every

# Training texts, or images, that live ones are held against: each goes through the whole network.
MAX_TEXTS = 2_000

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
    test: Rows = Split(data.path, "test")
    reference: Rows = Split(data.path, "train")
    # What the model reads where that is no features: its rows go through a tokenizer or a decoder, not through a graph.
    reads = layout.get("preprocess")
    report = train.read_json("train.json")
    interval = report.get("interval")
    if reads is None:
        _write_graphs(features.path, train.path, out, classes)
        native: Native = ReferencePath(features.path, train.path, threads=threads)
    else:
        _write_graph(features.path, train.path, out, layout["files"], classes)
        native = FunctionPath(row_reference(layout, features.path, train.path / "native"), f"the {reads} network run by torch")
        reference = Sample(every(reference, [*schema.names, *target.columns], MAX_TEXTS))
    if project.contract.torch is not None:
        write_network(train.path / "native", out)
    signature: dict[str, Any] = {
        "kind": reads or "row",
        "inputs": schema.to_json(),
        "outputs": merge.outputs(classes, interval=interval is not None),
        "target": facts["target"],
        "keys": list(facts["keys"]),
    }
    if classes is not None:
        signature["classes"] = list(classes)
    if interval is not None:
        signature["interval"] = interval["level"]
    if reads is not None:
        signature |= {key: layout[key] for key in ("preprocess", "preprocess_config")}
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
        graph="full.onnx" if reads is None else "model.onnx",
        threads=threads,
        seed=project.seed,
        build=report["kind"] if ":" in report["kind"] else None,
        about={
            "model": f"{report['kind']}, with a linear baseline beside it" if reads is None else report["kind"],
            "rows": facts["rows"],
            "source": f"project {project.name}",
            "generalization": (report.get("generalization") or {}).get("said"),
            "limits": [f"It knows `{facts['target']}` as the data of the project wrote it; what was wrong there is wrong here."],
        },
    )
    trial = Trial(
        rows=test,
        native=native,
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


def _write_graph(features: Path, train: Path, out: Path, files: Sequence[str], classes: list[Any] | None) -> None:
    """The model's graph, with what is done to rows before it."""
    graph = need("onnx", "packaging a model").load(str(train / "model.onnx"))
    (out / "model.onnx").write_bytes(merge.to_bytes(merge.with_labels(graph, classes) if classes is not None else merge.checked(graph)))
    for name in files:
        shutil.copyfile(features / name, out / name)


def _baseline(features: Path, folder: Path, schema: Schema, test: Rows, classes: list[Any] | None, threads: int) -> np.ndarray | None:
    """The baseline's answers for the test rows, through its own merged graph."""
    if not (folder / "model.onnx").exists():
        return None
    onnx = need("onnx", "packaging a model")
    merged = merge.merge(onnx.load(str(features / "features.onnx")), onnx.load(str(folder / "model.onnx")), classes=classes)
    graph = BulkGraph(merge.to_bytes(merged), schema, threads=threads)
    return answers(graph, test, merge.PREDICTION if classes is None else merge.PROBABILITY)
