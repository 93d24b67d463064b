"""The gate: measure a candidate, hold it against its contract, and only then make it a package."""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.core.allocator import trim
from tidemill.core.artifact import write_json
from tidemill.core.baseline import distributions, to_json
from tidemill.core.contract import TORCH, Verdict, hardware, judge, measure_latency
from tidemill.core.coverage import coverage
from tidemill.core.errors import ContractViolation
from tidemill.core.events import Events, now
from tidemill.core.package import Package, Predictor, seal
from tidemill.core.runtime import RanksConfig
from tidemill.packaging.card import card
from tidemill.packaging.evaluate import Trivial, drop, quality
from tidemill.packaging.merge import runtime_domains
from tidemill.packaging.parity import Compared, Known, Native, compare, why
from tidemill.packaging.rows import Rows, Target, every

LATENCY_ROWS = 256
LATENCY_S = 1.0
LATENCY_WINDOWS = 3
THROUGHPUT_ROWS = 1_000
REFERENCE_BATCH_ROWS = 16_384


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What would become a package: a folder that holds its graphs, and what its manifest will say."""

    folder: Path
    name: str
    task: str
    signature: Mapping[str, Any]
    promises: Sequence[Mapping[str, Any]]
    lineage: Mapping[str, Any]
    fitted: Any = None
    """Fitted statistics, for the identity."""
    graph: str = "full.onnx"
    threads: int = 1
    """Threads for the work of measuring; latency is always taken on one."""
    seed: int = 0
    build: str | None = None
    """The function of the project's own that builds its network."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the card says and no measurement knows: `source`, `model`, `rows`, `limits`."""

    def draft(self) -> Package:
        """The candidate as a package that can answer; it has no manifest on disk yet."""
        manifest = {"name": self.name, "task": self.task, "signature": dict(self.signature), "runtime": {"graph": self.graph}, "files": {}}
        return Package(self.folder, manifest)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The rows that a candidate is measured on, and what it is compared with."""

    rows: Rows
    """Rows that nothing before the gate has seen."""
    native: Native
    """The independent path of the parity gate."""
    reference: Rows
    """Rows whose distributions live traffic is held against."""
    target: Target | None = None
    """The truth, where it is known."""
    trivial: Trivial | None = None
    """Fitted on `reference`."""
    baseline: np.ndarray | None = None
    """A baseline's answers for `rows`."""
    champion: Package | None = None
    """What a promise of no loss is held against."""


def pass_gate(candidate: Candidate, trial: Trial, *, events: Events) -> dict[str, Any]:
    """Make the candidate's folder a package: evidence, contract, baseline, card, manifest; returns the main figures.

    Raises:
        ContractViolation: If a promise is broken; every broken one is named, and there is no manifest then.
        DataError: If the rows cannot be answered or judged.
    """
    draft = candidate.draft()
    evidence = _measured(candidate, draft, trial, events)
    verdicts = judge([dict(promise) for promise in candidate.promises], evidence)
    events.emit(
        "package.judged", "; ".join(str(verdict) for verdict in verdicts), evidence={name: _short(one) for name, one in evidence.items()}
    )
    for name, document in evidence.items():
        (candidate.folder / "evidence").mkdir(exist_ok=True)
        write_json(candidate.folder / "evidence" / f"{name}.json", document)
    _enforce(verdicts, evidence)
    events.emit("package.baseline", "reference distributions", level="progress")
    trim()
    reference = trial.reference.batches(draft.schema.names, batch_rows=REFERENCE_BATCH_ROWS)
    write_json(candidate.folder / "baseline.json", to_json(*distributions(Predictor(draft, threads=candidate.threads), reference)))
    write_json(candidate.folder / "contract.json", {"promises": list(candidate.promises)})
    signature = {**candidate.signature, "example": example(draft, trial.rows)}
    domains = runtime_domains(candidate.folder / candidate.graph)
    about = dict(candidate.about)
    if domains:
        about["limits"] = [
            *about.get("limits", []),
            f"Its graph needs ONNX Runtime, for operators of {', '.join(domains)}; other runtimes cannot run it.",
        ]
    text = card(candidate.name, candidate.task, signature, evidence, verdicts, lineage=candidate.lineage, about=about)
    (candidate.folder / "card.md").write_text(text, encoding="utf-8")
    seal(
        candidate.folder,
        name=candidate.name,
        task=candidate.task,
        signature=signature,
        lineage=candidate.lineage,
        fitted=candidate.fitted,
        graph=candidate.graph,
        domains=domains,
    )
    facts = {
        "identity": Package.open(candidate.folder).identity,
        "parity": evidence["parity"]["max_difference"],
        "p50_ms": evidence["latency"]["p50_ms"],
        "p99_ms": evidence["latency"]["p99_ms"],
        "mb": evidence["size"]["mb"],
    }
    if "quality" in evidence:
        facts |= {key: evidence["quality"][key] for key in ("metric", "value", "low", "high", "rows")}
    return facts


def example(package: Package, rows: Rows) -> dict[str, Any]:
    """One real record as a request would bring it, the one of the first hundred with the fewest nulls."""
    batch = next(iter(rows.batches(package.schema.names, batch_rows=100)))
    # Of images the smallest file: it stands in documentation, and whoever looks there waits for it.
    record = min(batch.to_pylist(), key=lambda r: len(str(r)) if package.kind == "image" else sum(value is None for value in r.values()))
    return {name: _sent(value) for name, value in record.items()}


def _measured(candidate: Candidate, draft: Package, trial: Trial, events: Events) -> dict[str, Any]:
    """Every measurement by name: parity, quality, interval, drop, latency, size."""
    limit = next((promise["limit"] for promise in candidate.promises if promise["measure"] == "parity.max_difference"), math.inf)
    predictor = Predictor(draft, threads=candidate.threads)
    events.emit("package.parity", f"parity over {trial.rows.num_rows} rows", level="progress")
    compared = compare(predictor, trial.rows, trial.native, limit=limit)
    evidence: dict[str, Any] = {"parity": compared.evidence}
    promised = next((promise for promise in candidate.promises if promise["measure"] == TORCH), None)
    if promised is not None:
        evidence["torch"] = _by_ranks(candidate, draft, trial.rows, compared, promised, events)
    if trial.target is not None:
        events.emit("package.quality", f"quality on {trial.rows.num_rows} rows", level="progress")
        y_N, weight_N = trial.target.read(trial.rows)
        metric = next((p["metric"] for p in candidate.promises if p.get("metric", "default") != "default"), None)
        common: dict[str, Any] = {"classes": trial.target.classes, "metric": metric, "weight_N": weight_N, "seed": candidate.seed}
        evidence["quality"] = quality(
            candidate.task,
            y_N,
            compared.answer,
            trivial=trial.trivial or Trivial.of(trial.target, trial.reference),
            baseline=trial.baseline,
            rows=trial.rows,
            columns=draft.schema.names if draft.kind == "row" else [],
            **common,
        )
        if compared.interval is not None and draft.interval is not None:
            found = coverage(y_N, compared.interval, level=draft.interval, weight_N=weight_N)
            evidence["interval"] = {**found, "at": now()}
        if trial.champion is not None:
            champion = trial.champion
            evidence["drop"] = drop(candidate.task, y_N, compared.answer, champion, trial.rows, threads=candidate.threads, **common)
    events.emit("package.latency", "latency of one row", level="progress")
    evidence["latency"] = _latency(draft, trial.rows, candidate.promises)
    evidence["size"] = _size(candidate.folder)
    return evidence


def _by_ranks(
    candidate: Candidate, draft: Package, rows: Rows, compared: Compared, promise: Mapping[str, Any], events: Events
) -> dict[str, Any]:
    """How far the network's answers on ranks are from the graph's, over all rows."""
    ranks = RanksConfig(tensor=promise["tensor"], pipeline=promise["pipeline"], build=candidate.build)
    events.emit("package.torch", f"parity on {ranks.said} over {rows.num_rows} rows", level="progress")
    predictor = Predictor(draft, threads=candidate.threads, runtime="torch", ranks=ranks, events=events)
    try:
        found = compare(predictor, rows, Known(compared), limit=promise["limit"])
        return {**found.evidence, "runtime": f"{predictor.runtime.name} {predictor.runtime.version}"}
    finally:
        predictor.close()


def _latency(draft: Package, rows: Rows, promises: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Time of one row, from the record to the answer, and rows a second of large batches, both on one thread.

    Where a promise would be broken it is measured again, up to `LATENCY_WINDOWS` times, and the quickest window counts: the
    promise is about the package on this hardware, not about what else runs on it.
    """
    predictor = Predictor(draft, threads=1)
    records = every(rows, draft.schema.names, LATENCY_ROWS).to_pylist()
    promised = [dict(promise) for promise in promises if promise["measure"].startswith("latency.")]
    windows: list[dict[str, Any]] = []
    while len(windows) < LATENCY_WINDOWS:
        windows.append(measure_latency(lambda row: predictor.records([records[row]]), rows=len(records), seconds=LATENCY_S))
        if all(verdict.kept for verdict in judge(promised, {"latency": windows[-1]})):
            break
    measured = min(windows, key=lambda window: window["p99_ms"])
    batch = next(iter(rows.batches(draft.schema.names, batch_rows=THROUGHPUT_ROWS if draft.kind == "row" else 32)))
    predictor.arrow(batch)
    calls, start = 0, time.perf_counter()
    while calls < 2 or time.perf_counter() - start < LATENCY_S / 4:
        predictor.arrow(batch)
        calls += 1
    rate = calls * batch.num_rows / (time.perf_counter() - start)
    return {**measured, "windows": len(windows), "route": "record to answer", "rows_per_s": round(rate), "batch_rows": batch.num_rows}


def _size(folder: Path) -> dict[str, Any]:
    graphs = {file.name: file.stat().st_size for file in sorted(folder.glob("*.onnx"))}
    return {"mb": sum(graphs.values()) / 1e6, "bytes": graphs, "hardware": hardware(), "at": now()}


def _enforce(verdicts: Sequence[Verdict], evidence: Mapping[str, Any]) -> None:
    """Let pass what keeps every promise; one whose measurement came out undefined is broken."""
    broken = [verdict for verdict in verdicts if verdict.kept is False or (verdict.kept is None and _file(verdict) in evidence)]
    if not broken:
        return
    parity = any(_file(verdict) == "parity" for verdict in broken)
    raise ContractViolation([str(verdict) for verdict in broken], hint=why(evidence["parity"]) if parity else None)


def _file(verdict: Verdict) -> str:
    return str(verdict.promise["measure"]).partition(".")[0]


def _short(document: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth a line of the event log."""
    return {key: value for key, value in document.items() if isinstance(value, (int, float, str, bool, type(None)))}


def _sent(value: Any) -> Any:
    """A value as JSON brings it."""
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    return None if isinstance(value, float) and not math.isfinite(value) else value
