"""How MLflow's `pyfunc.load_model` loads a package: as a package, no pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidemill.core.package import Package, Predictor


class PackageModel:
    """What MLflow calls: `predict` of a pandas frame, answered with `prediction`, and with classes `probability_<class>`, with an interval `prediction_low` and `prediction_high`."""

    def __init__(self, package: Package) -> None:
        self._predictor = Predictor(package)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        import pyarrow as pa

        table = pa.Table.from_pandas(model_input, preserve_index=False).combine_chunks()
        answers = self._predictor.arrow(table.to_batches()[0] if len(table) else pa.RecordBatch.from_pylist([], schema=table.schema))
        made = {"prediction": pa.array(answers.prediction.tolist())}
        if answers.probability is not None:
            for place, label in enumerate(self._predictor.package.classes or []):
                made[f"probability_{label}"] = pa.array(answers.probability[:, place])
        if answers.interval is not None:
            made |= {f"prediction_{end}": pa.array(answers.interval[:, i]) for i, end in enumerate(("low", "high"))}
        return pa.table(made).to_pandas()


def _load_pyfunc(path: str) -> PackageModel:
    return PackageModel(Package.open(Path(path)))
