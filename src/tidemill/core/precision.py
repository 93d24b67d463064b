"""How far the answers of another runtime, or of another precision, are from those of ONNX Runtime in single precision."""

from __future__ import annotations

from typing import Any

import numpy as np

from tidemill.core.contract import Verdict, hardware, judge
from tidemill.core.events import now
from tidemill.core.package import Answers, Package, Predictor

PRECISION = "precision"


def measure_precision(predictor: Predictor, reference: Predictor, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Evidence of the distance of two predictors of one package on the same rows.

    `max_difference` is absolute in probability and in an embedding's numbers; in regression it is relative to the larger of the
    reference's answer and the mean size of all. `min_cosine` is there for embeddings, `changed_labels` (a share) for classes.

    Args:
        reference: The same package in ONNX Runtime.
    """
    found, exact = predictor.run(inputs), reference.run(inputs)
    evidence: dict[str, Any] = {
        "runtime": f"{predictor.runtime.name} {predictor.runtime.version}",
        "precision": predictor.runtime.precision,
        "against": f"{reference.runtime.name} {reference.runtime.version} {reference.runtime.precision}",
        "rows": len(exact.prediction),
        "max_difference": _difference(found, exact, relative=predictor.package.task == "regression"),
        "hardware": hardware(),
        "at": now(),
    }
    if exact.probability is not None:
        evidence["changed_labels"] = float(np.mean(found.prediction != exact.prediction))
    elif exact.prediction.ndim == 2:
        evidence["min_cosine"] = _cosine(found.prediction, exact.prediction)
    return evidence


def keeps(package: Package, evidence: dict[str, Any]) -> list[Verdict]:
    """What the contract says of a runtime's distance: its promises of precision where it rounds, else its parity."""
    promises = package.contract()
    rounding = [promise for promise in promises if promise["measure"].startswith(f"{PRECISION}.")]
    if evidence["precision"] == "fp32" or not rounding:
        said = f"{evidence['precision']} in {evidence['runtime']}"
        rounding = [
            {**promise, "name": f"parity of {said}", "measure": f"{PRECISION}.max_difference"}
            for promise in promises
            if promise["measure"] == "parity.max_difference"
        ]
    return judge(rounding, {PRECISION: evidence}, hardware=hardware()["fingerprint"])


def _difference(found: Answers, exact: Answers, *, relative: bool) -> float:
    gaps = []
    for one, other in ((found.values, exact.values), (found.interval, exact.interval)):
        if one is None or other is None:
            continue
        gap = np.abs(one.astype(np.float64) - other)
        if relative:
            size = np.abs(other.astype(np.float64))
            gap = gap / np.fmax(np.fmax(size, size.mean()), np.finfo(np.float64).tiny)
        # Undefined in one and not in the other is as far apart as can be.
        gaps.append(np.where(np.isnan(one) & np.isnan(other), 0.0, np.where(np.isnan(gap), np.inf, gap)).max(initial=0.0))
    return float(max(gaps))


def _cosine(found_ND: np.ndarray, exact_ND: np.ndarray) -> float:
    found_ND, exact_ND = found_ND.astype(np.float64), exact_ND.astype(np.float64)
    norms_N = np.linalg.norm(found_ND, axis=1) * np.linalg.norm(exact_ND, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine_N = (found_ND * exact_ND).sum(axis=1) / norms_N
    both_zero_N = (np.abs(found_ND).max(axis=1, initial=0.0) == 0) & (np.abs(exact_ND).max(axis=1, initial=0.0) == 0)
    return float(np.where(both_zero_N, 1.0, np.nan_to_num(cosine_N, nan=-1.0)).min(initial=1.0))
