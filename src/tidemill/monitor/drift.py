"""The drift report: live rows against the distributions that the package was made from, and quality where the truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tidemill.core.baseline import distributions, from_json
from tidemill.core.coverage import coverage
from tidemill.core.drift import Drift, drift
from tidemill.core.errors import DataError
from tidemill.core.metrics import default_metric, interval
from tidemill.core.package import Package, Predictor
from tidemill.core.sketch import ColumnSketch
from tidemill.monitor.config import MonitorConfig
from tidemill.monitor.rows import LiveRows

LEVELS = ("stable", "moderate", "severe")
MIN_ROWS = 50


def report(
    package: Package,
    data: Path,
    *,
    labels: Path | None = None,
    config: MonitorConfig | None = None,
) -> dict[str, Any]:
    """What moved: by column and prediction a distance, a level and both histograms; a verdict in words.

    A column's level needs both a distance above its threshold and a p-value below one in a thousand, so that neither much
    data nor little raises an alarm by itself.

    Args:
        data: Parquet or CSV of raw rows, or the folder of a server's prediction log.
        labels: Parquet or CSV with raw columns and the target, for the quality now.

    Raises:
        DataError: If a column is missing, or there are too few rows to say anything.
    """
    config = config or MonitorConfig()
    if not package.baseline():
        raise DataError(f"{package.path} must hold reference distributions (baseline.json), has none")
    reference_rows, reference = from_json(package.baseline())
    predictor = Predictor(package)
    live = LiveRows(package, data)
    rows, current = distributions(predictor, live.batches())
    if rows < MIN_ROWS:
        raise DataError(f"a drift report needs at least {MIN_ROWS} rows of {package.name}, got {rows} in {data}")
    where = "lengths" if "lengths" in reference else "columns"
    columns = [_compare(name, sketch, current[where][name], config) for name, sketch in reference[where].items()]
    predictions = [_compare(name, sketch, current["predictions"][name], config) for name, sketch in reference["predictions"].items()]
    found: dict[str, Any] = {
        "name": package.name,
        "version": package.version,
        "identity": package.identity,
        "reference": {"rows": reference_rows},
        "current": {"rows": rows, "from": live.first, "to": live.last, "source": str(data)},
        "columns": sorted(columns, key=lambda column: -column["psi"]),
        "prediction": max(predictions, key=lambda column: column["psi"]),
        "quality": _quality(predictor, labels) if labels is not None else None,
    }
    found["verdict"] = _verdict(found)
    return found


def _compare(name: str, reference: ColumnSketch, current: ColumnSketch, config: MonitorConfig) -> dict[str, Any]:
    moved = drift(reference, current)
    bins = _bins(reference, current)
    return {
        "name": name,
        "type": reference.type,
        "psi": moved.psi,
        "js": moved.js,
        "ks": moved.ks,
        "p_value": moved.p_value,
        "unseen": moved.unseen,
        "null_share_reference": reference.nulls / reference.rows,
        "null_share_current": current.nulls / current.rows,
        "level": _level(moved, config),
        **bins,
    }


def _level(moved: Drift, config: MonitorConfig) -> str:
    if moved.exceeds(config.severe):
        return "severe"
    return "moderate" if moved.exceeds(config.moderate) else "stable"


def _bins(reference: ColumnSketch, current: ColumnSketch) -> dict[str, Any]:
    """Shares in the same bins on both sides, for a picture."""
    if reference.counts is not None and current.counts is not None:
        keys = [key for key, _ in reference.counts.top(20)]
        new = [key for key, _ in current.counts.top(5) if key not in keys]
        keys += new
        shares = [[side.counts.counts.get(key, 0) / side.rows for key in keys] for side in (reference, current) if side.counts]
        return {"reference": {"labels": [str(key) for key in keys], "shares": shares[0]}, "current": {"shares": shares[1]}}
    edges = _picture_edges(reference, current)
    sides = []
    for side in (reference, current):
        counts = side.quantiles.counts(edges) if side.quantiles is not None else np.zeros(len(edges) + 1)
        inner = counts[1:-1]
        inner[0] += counts[0]
        inner[-1] += counts[-1]
        sides.append((inner / max(side.rows, 1)).tolist())
    return {"reference": {"edges": edges.tolist(), "shares": sides[0]}, "current": {"shares": sides[1]}}


def _picture_edges(reference: ColumnSketch, current: ColumnSketch, bins: int = 24) -> np.ndarray:
    """Edges of equal width over the bulk of both sides; what lies outside is drawn in the first and last bin."""
    bulk = [side.quantiles.quantile([0.005, 0.995]) for side in (reference, current) if side.quantiles is not None and side.quantiles.count]
    low, high = (min(ends[0] for ends in bulk), max(ends[1] for ends in bulk)) if bulk else (0.0, 1.0)
    return np.linspace(low, high if high > low else low + 1.0, bins + 1)


def _quality(predictor: Predictor, labels: Path) -> dict[str, Any]:
    """The package's metric on labelled live rows, beside the one that it was registered with; its intervals' coverage too."""
    package = predictor.package
    target = package.manifest["signature"].get("target")
    if not target:
        raise DataError(f"{package.name} has no target to hold labels against", hint="package it with --target")
    truth, answers, ends = [], [], []
    for batch in LiveRows(package, labels, columns=(target,)).batches():
        known = batch.filter(batch.column(target).is_valid())
        result = predictor.arrow(known)
        values = known.column(target).to_pylist()
        truth.append(_indices(values, package.classes) if package.classes else np.array(values, np.float64))
        answers.append(result.prediction.ravel() if result.probability is None else result.probability)
        ends += [] if result.interval is None else [result.interval]
    y, p = np.concatenate(truth), np.concatenate(answers)
    expected = package.evidence().get("quality", {})
    metric = expected.get("metric") or default_metric(package.task)  # type: ignore[arg-type]
    if p.ndim == 2 and p.shape[1] == 2:
        p = p[:, 1]
    now = interval(metric, y, p, seed=0)
    found: dict[str, Any] = {
        "metric": metric, "value": now.point, "low": now.low, "high": now.high, "rows": len(y),
        "expected": {key: expected.get(key) for key in ("value", "low", "high", "rows")},
    }  # fmt: skip
    if package.interval is not None:
        registered = package.evidence().get("interval", {})
        found["interval"] = coverage(y, np.concatenate(ends), level=package.interval) | {"expected": registered.get("coverage")}
    return found


def _indices(values: list[Any], classes: list[Any]) -> np.ndarray:
    places = {label: place for place, label in enumerate(classes)}
    unknown = sorted({str(value) for value in values if value not in places})
    if unknown:
        raise DataError(f"labels must be among {classes}, got {', '.join(unknown[:5])}")
    return np.array([places[value] for value in values], np.int64)


def _verdict(found: dict[str, Any]) -> dict[str, str]:
    moved = [column for column in found["columns"] if column["level"] != "stable"]
    prediction = found["prediction"]
    level = max([prediction["level"], *(column["level"] for column in moved)], key=LEVELS.index)
    if level == "stable":
        text = f"{found['name']}: no drift in {found['current']['rows']} rows"
    else:
        named = ", ".join(f"{column['name']} ({column['psi']:.2f})" for column in moved[:5]) + (", ..." if len(moved) > 5 else "")
        said = f"{len(moved)} of {len(found['columns'])} columns moved" + (f": {named}" if named else "")
        text = f"{found['name']}: {level} drift in {found['current']['rows']} rows; {said}; predictions {prediction['level']} ({prediction['psi']:.2f})"
    quality = found["quality"]
    if quality is not None:
        text += f"; {quality['metric']} now {quality['value']:.4f}"
        if quality["expected"]["value"] is not None:
            text += f", was {quality['expected']['value']:.4f}"
        if "interval" in quality:
            text += f"; intervals hold {quality['interval']['coverage']:.1%}, made for {quality['interval']['level']:.0%}"
    return {"level": level, "text": text}
