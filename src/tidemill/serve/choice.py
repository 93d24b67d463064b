"""Which runtime answers for a package here, in which precision, and what says that it keeps the contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from tidemill.core.allocator import trim
from tidemill.core.contract import Verdict, hardware
from tidemill.core.errors import ConfigError, ContractViolation, TidemillError
from tidemill.core.events import Events
from tidemill.core.package import Package, Predictor, add_evidence
from tidemill.core.precision import PRECISION, keeps, measure_precision
from tidemill.core.runtime import DEFAULT, Precision, RanksConfig

TRIED_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A predictor and, where it is not ONNX Runtime in single precision, how far it is from that."""

    package: Package
    predictor: Predictor
    evidence: dict[str, Any] | None = None


def choose(
    package: Package,
    *,
    runtime: str = "auto",
    precision: str = "auto",
    threads: int = 1,
    parallel: int = 1,
    ranks: RanksConfig | None = None,
    events: Events | None = None,
) -> Choice:
    """The predictor that serves a package.

    `auto` is OpenVINO in bf16 where the contract promises how far rounded answers may be, OpenVINO is installed, the processor computes in
    bf16 and the promise holds on it; else ONNX Runtime (with `runtime = "openvino"`, OpenVINO) in fp32.

    Args:
        ranks: What the runtime torch divides the network over; by default as the package promises.

    Raises:
        ContractViolation: If answers of what was asked for are farther from ONNX Runtime's than the contract allows.
        ConfigError: If the precision is not known.
        Unsupported: If the runtime cannot run the package here.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"serve.precision: must be auto, fp32 or bf16, got {precision!r}")
    events = events or Events()
    options: dict[str, Any] = {"threads": threads, "parallel": parallel}
    if ranks is not None:
        options |= {"ranks": ranks}
    if precision == "auto" and runtime in ("auto", "openvino") and _may_round(package):
        try:
            return _held(package, "openvino", "bf16", options, events)
        except ContractViolation as error:
            events.warn("serve.precision_broken", f"{package.name} is served in fp32: {error}", model=package.name)
        except TidemillError as error:
            events.emit("serve.precision_absent", f"{package.name} is served in fp32: {error}", model=package.name)
    if runtime == "auto":
        runtime = "openvino" if precision == "bf16" else DEFAULT
    return _held(package, runtime, "bf16" if precision == "bf16" else "fp32", options, events)


def _may_round(package: Package) -> bool:
    """Whether the contract says how far rounded answers may be, and there is a library that rounds."""
    promised = any(promise["measure"].startswith(f"{PRECISION}.") for promise in package.contract())
    return promised and find_spec("openvino") is not None


def _held(package: Package, runtime: str, precision: Precision, options: dict[str, Any], events: Events) -> Choice:
    """The predictor, held to the contract.

    Raises:
        ContractViolation: If it is too far from ONNX Runtime in single precision.
    """
    opened = partial(Predictor, package, runtime=runtime, precision=precision, events=events, **options)
    predictor = opened()
    if (predictor.runtime.name, predictor.runtime.precision) == (DEFAULT, "fp32"):
        return Choice(package=package, predictor=predictor)
    try:
        known = package.evidence().get(PRECISION)
        if known is not None and _is_of(known, predictor):
            _enforce(keeps(package, known))
            return Choice(package=package, predictor=predictor, evidence=known)
        reference = Predictor(package, threads=options["threads"])
        evidence = measure_precision(predictor, reference, predictor.variants(package.example, TRIED_ROWS))
        reference.close()
        told = f"{package.name}: {evidence['precision']} in {evidence['runtime']} is {evidence['max_difference']:.2g} from fp32"
        events.emit("serve.precision_measured", told, model=package.name, evidence=evidence)
        _enforce(keeps(package, evidence))
    except BaseException:
        predictor.close()
        raise
    if predictor.runtime.compiles_shapes and predictor.runtime.device == "cpu":  # what was compiled for the rows tried would stay in memory
        predictor.close()
        predictor = opened()
    trim()
    return Choice(package=_entered(package, evidence, events), predictor=predictor, evidence=evidence)


def _is_of(evidence: dict[str, Any], predictor: Predictor) -> bool:
    """Whether a measurement was taken of this runtime, in this precision, on such hardware."""
    runtime = predictor.runtime
    taken = evidence.get("runtime"), evidence.get("precision"), evidence.get("hardware", {}).get("fingerprint")
    return taken == (f"{runtime.name} {runtime.version}", runtime.precision, hardware()["fingerprint"])


def _enforce(verdicts: Sequence[Verdict]) -> None:
    """Refuse a broken promise, or one that came out undefined.

    Raises:
        ContractViolation: Says each promise and its measurement.
    """
    broken = [str(verdict) for verdict in verdicts if verdict.kept is not True]
    if broken:
        raise ContractViolation(broken, hint='[serve] precision = "fp32" does not round; contract.precision says how far one may')


def _entered(package: Package, evidence: dict[str, Any], events: Events) -> Package:
    """The package with the measurement in it, where its folder may be written."""
    try:
        return add_evidence(package, PRECISION, evidence)
    except OSError as error:
        events.warn("serve.evidence_not_written", f"{package.path}: the new precision stays out of the package: {error.strerror}")
        return package
