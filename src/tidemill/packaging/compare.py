"""Two packages side by side on the same rows: what each promises, reaches and costs, and whether the second may follow the first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.core.artifact import Artifact
from tidemill.core.contract import judge, measure_latency
from tidemill.core.engine import EngineConfig, Source, open_engine
from tidemill.core.errors import ConfigError, DataError, NotFound
from tidemill.core.events import now
from tidemill.core.metrics import default_metric, evaluate, interval, metric_of, metrics_of, paired_difference
from tidemill.core.package import Package, Predictor
from tidemill.packaging.evaluate import Trivial, answered, resamples
from tidemill.packaging.rows import Rows, Sample, Split, Target, every

LATENCY_ROWS = 256
LATENCY_S = 0.5


def compare(
    first: Package,
    second: Package,
    rows: Rows,
    target: Target,
    *,
    metric: str | None = None,
    max_drop: float | None = None,
    seed: int = 0,
    threads: int = 1,
) -> dict[str, Any]:
    """What both reach on `rows`, the paired difference of every metric with its 95 % interval, and a verdict on the second.

    The second loses where its promised `max_drop` (or the one given here) may be passed: the one-sided 95 % bound of the paired
    difference, as in the gate. Without such a promise it loses where the whole interval says that it is worse. Its contract is judged
    on these rows and on this machine, latency included.

    Args:
        metric: What decides; the one that the second's quality promise names, else the task's, when absent.
        max_drop: Largest loss allowed, in the metric's unit, >= 0.

    Raises:
        ConfigError: If the two answer different questions.
        DataError: If a column is missing or the rows cannot be judged.
    """
    _same_question(first, second)
    task: Any = second.task
    promises = second.contract()
    metric = metric or next((p["metric"] for p in promises if p.get("metric", "default") != "default"), None) or default_metric(task)
    metric_of(metric, task)
    y_N, weight_N = target.read(rows)
    answers = [answered(package, rows, threads=threads) for package in (first, second)]
    measured = {name: _measured(name, metric, task, y_N, answers, weight_N, seed) for name in metrics_of(task)}
    allowed = max_drop if max_drop is not None else next((p["limit"] for p in promises if p["measure"] == "drop.bound"), None)
    latency = [_latency(package, rows) for package in (first, second)]
    value = measured[metric]["second"]
    trivial = evaluate(task, y_N, Trivial.of(target, rows).answer(metric, len(y_N)), weight=weight_N, metrics=[metric])[metric]
    better = 1.0 if metric_of(metric, task).greater_is_better else -1.0
    evidence = {
        **second.evidence(),
        "quality": {
            "value": value["point"],
            "gain_over_trivial": better * (value["point"] - trivial) if value["point"] is not None else 0.0,
        },
        "drop": {"bound": measured[metric]["difference"]["drop"]},
        "latency": latency[1],
    }
    verdicts = judge(promises, evidence)
    broken = [str(verdict) for verdict in verdicts if verdict.kept is False and verdict.promise["measure"] != "drop.bound"]
    lost = _loss(metric, measured[metric]["difference"], allowed)
    return {
        "first": _about(first, latency[0]),
        "second": _about(second, latency[1]),
        "task": task,
        "rows": len(y_N),
        "metric": metric,
        "metrics": measured,
        "max_drop": allowed,
        "promises": [{"promise": str(verdict), "kept": verdict.kept} for verdict in verdicts],
        "caution": _caution(first, second),
        "columns": {"only_first": _without(first, second), "only_second": _without(second, first)},
        "breaches": broken + ([lost] if lost else []),
        "passed": not broken and lost is None,
        "text": _said(metric, measured[metric]["difference"], broken, lost),
        "at": now(),
    }


def labelled(data: Path, packages: Sequence[Package], target: str) -> Sample:
    """The rows of a file whose target is known, with the columns that the packages read.

    Raises:
        NotFound: If a column is missing.
        DataError: If no row has a target.
    """
    columns = {column.name: column.type for package in packages for column in package.schema}
    with open_engine(EngineConfig()) as engine:
        rows = engine.scan(Source(path=str(data), types=columns), None)
        for name in (*columns, target):
            if name not in rows.schema.names:
                raise NotFound("column", name, rows.schema.names, hint=f"in {data}")
        import pyarrow as pa

        wanted = list(dict.fromkeys([*columns, target]))
        table = pa.Table.from_batches(
            [batch.select(wanted) for batch in rows.batches()], schema=pa.schema([rows.schema.field(n) for n in wanted])
        )
    known = table.filter(table[target].is_valid())
    if not known.num_rows:
        raise DataError(f"{data} must hold rows whose {target!r} is known, holds none", field=target)
    return Sample(known)


def held_out(package: Package, store: Path) -> tuple[Split, Target]:
    """The test split that a package was made with, from the artifacts in `store`.

    Raises:
        DataError: If it is no longer there, or the package came without one.
    """
    wanted = package.manifest["lineage"].get("data")
    for folder in store.glob("*/data-*"):
        try:
            artifact = Artifact.open(folder)
        except DataError:
            continue
        if artifact.id == wanted:
            facts = artifact.read_json("schema.json")
            return Split(folder, "test"), Target(column=facts["target"], classes=facts["classes"], weight=facts["weight"])
    raise DataError(
        f"the test rows of {package.name} version {package.version or '-'} must be in {store}, are not",
        hint="name labelled rows with --data",
    )


def _same_question(first: Package, second: Package) -> None:
    for what, one, other in (("task", first.task, second.task), ("classes", first.classes, second.classes)):
        if repr(one) != repr(other):  # as text: [False, True] is no [0, 1]
            raise ConfigError(f"two packages must have the same {what} to be compared, got {one} and {other}")
    if first.task not in ("binary", "multiclass", "regression"):
        raise ConfigError(f"two packages must predict classes or numbers to be compared, {first.name} is for {first.task}")


def _measured(
    name: str, deciding: str, task: Any, y_N: np.ndarray, answers: Sequence[np.ndarray], weight_N: np.ndarray | None, seed: int
) -> dict[str, Any]:
    """One metric of both, with intervals, and by how much the second is better, two-sided at 95 %."""
    draws = resamples(len(y_N), decides=name == deciding)
    common: dict[str, Any] = {"seed": seed, "resamples": draws, "weight": weight_N, "task": task}
    sides = [interval(name, y_N, answer, **common) for answer in answers]
    both = paired_difference(name, y_N, *answers, level=0.975, **common)
    one_sided = paired_difference(name, y_N, *answers, level=0.95, **common) if name == deciding else None
    made: dict[str, Any] = {
        side: {key: _finite(getattr(found, key)) for key in ("point", "low", "high")}
        for side, found in zip(("first", "second"), sides, strict=True)
    }
    made["difference"] = {"estimate": _finite(both.estimate), "low": _finite(both.lower), "high": _finite(both.upper)}
    if one_sided is not None:
        made["difference"]["drop"] = _finite(one_sided.drop)
    return made


def _loss(metric: str, difference: Mapping[str, Any], allowed: float | None) -> str | None:
    """Why the second loses, None where it does not."""
    if difference["estimate"] is None:
        return f"{metric}: is undefined on these rows, so that nothing can be said of a loss"
    if allowed is not None:
        if difference["drop"] <= allowed:
            return None
        return f"{metric}: may lose at most {allowed:g}, the 95 % bound of its loss is {difference['drop']:.4g}"
    if difference["high"] >= 0:
        return None
    return f"{metric}: is worse by {-difference['estimate']:.4g} (95 % interval {-difference['high']:.4g} to {-difference['low']:.4g})"


def _said(metric: str, difference: Mapping[str, Any], broken: Iterable[str], lost: str | None) -> str:
    if any(broken):
        return "the second breaks its contract"
    if lost:
        return "the second loses"
    if difference["low"] > 0:
        return f"the second is better in {metric}"
    return (
        f"no difference in {metric} beyond what the rows' number explains"
        if difference["high"] >= 0
        else f"the second is worse in {metric}, within what is allowed"
    )


def _caution(first: Package, second: Package) -> str | None:
    """What to bear in mind where the rows may not be new to both."""
    one, other = (package.manifest["lineage"].get("data") for package in (first, second))
    if one == other and one is not None:
        return None
    return "they were made from different data: rows that one of them was trained on flatter it"


def _latency(package: Package, rows: Rows) -> dict[str, Any]:
    """Time of one row here and now, as the gate measures it."""
    predictor = Predictor(package, threads=1)
    records = every(rows, package.schema.names, LATENCY_ROWS).to_pylist()
    return measure_latency(lambda row: predictor.records([records[row]]), rows=len(records), seconds=LATENCY_S)


def _about(package: Package, latency: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": package.name,
        "version": package.version,
        "identity": package.identity,
        "data": package.manifest["lineage"].get("data"),
        "created": package.manifest.get("created"),
        "p50_ms": latency["p50_ms"],
        "p99_ms": latency["p99_ms"],
        "mb": sum(file.stat().st_size for file in package.path.glob("*.onnx")) / 1e6,
        "inputs": len(package.schema),
    }


def _without(package: Package, other: Package) -> list[str]:
    return [name for name in package.schema.names if name not in other.schema]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
