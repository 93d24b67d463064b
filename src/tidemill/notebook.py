"""Tidemill in a notebook: `model = tm.fit(frame, target="late"); model.predict(frame)`.

The same pipeline as a project file runs underneath, so what comes back is a package with its measured quality.
"""

from __future__ import annotations

import html
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.core.artifact import hash_file
from tidemill.core.errors import DataError
from tidemill.core.events import Events
from tidemill.core.package import Package, Predictor
from tidemill.core.project import from_tree


class Model:
    """A fitted model: a package that answers for data frames. Made by `fit`, or from any package by `Model(package)`."""

    def __init__(self, package: Package, *, report: Path | None = None, threads: int = 1) -> None:
        self.package = package
        self.report = report
        self._predictor = Predictor(package, threads=threads)

    def predict(self, data: Any) -> np.ndarray:
        """Predictions of N rows, shape [N]: class labels, or numbers for a regression.

        Args:
            data: pandas, Polars or Arrow table with the columns that the model was fitted on; others are ignored.

        Raises:
            DataError: If a column is missing or of another type.
        """
        return self._predictor.arrow(to_arrow(data)).prediction

    def predict_proba(self, data: Any) -> np.ndarray:
        """Probabilities of N rows, shape [N, K], in the order of `classes`.

        Raises:
            DataError: If the model is a regression, or a column is missing or of another type.
        """
        if self.classes is None:
            raise DataError("predict_proba needs a model of classes, this one is a regression", hint="use predict")
        probability = self._predictor.arrow(to_arrow(data)).probability
        return np.empty((0, len(self.classes))) if probability is None else probability

    def predict_interval(self, data: Any) -> np.ndarray:
        """Low and high of N rows, shape [N, 2]: where the true value lies with the share that `model.interval` asked for.

        Raises:
            DataError: If the model was fitted without intervals, or a column is missing or of another type.
        """
        if self.package.interval is None:
            raise DataError("predict_interval needs a model with intervals", hint='fit it with model={"kind": "xgboost", "interval": 0.9}')
        interval = self._predictor.arrow(to_arrow(data)).interval
        return np.empty((0, 2)) if interval is None else interval

    @property
    def classes(self) -> list[Any] | None:
        return self.package.classes

    @property
    def quality(self) -> dict[str, Any]:
        """Metrics on the test split, each with its 95 % interval."""
        return dict(self.package.evidence().get("quality", {}).get("metrics", {}))

    def save(self, path: Path | str) -> Path:
        """Copy the package to a new folder, for `tidemill serve` or `Package.open`."""
        target = Path(path)
        shutil.copytree(self.package.path, target)
        return target

    def __repr__(self) -> str:
        columns = ", ".join(self.package.schema.names[:6]) + (", ..." if len(self.package.schema) > 6 else "")
        lines = [f"<tidemill.Model {self.package.name}: {self.package.task} of {self.package.manifest['signature'].get('target')!r}>"]
        lines.append(f"  columns  {columns}")
        lines += [f"  quality  {line}" for line in self._quality_lines()]
        lines.append(f"  identity {self.package.identity[:16]}")
        if self.report is not None:
            lines.append(f"  report   {self.report}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def _quality_lines(self) -> list[str]:
        quality = self.package.evidence().get("quality")
        if not quality:
            return []
        return [
            f"{quality['metric']} {quality['value']:.4f} ({quality['low']:.4f} to {quality['high']:.4f}) on {quality['rows']} test rows"
        ]


def fit(
    data: Any,
    *,
    target: str,
    task: str | None = None,
    model: str | Mapping[str, Any] = "xgboost",
    trials: int = 0,
    keys: tuple[str, ...] = (),
    weight: str | None = None,
    seed: int = 0,
    name: str = "model",
    home: Path | str | None = None,
    events: Events | None = None,
    **sections: Any,
) -> Model:
    """Train, test and package a model of one column of a data frame.

    Args:
        data: pandas, Polars or Arrow table.
        target: Column to predict; the others are features, except `keys` and `weight`.
        task: "binary", "multiclass" or "regression"; told from the target when absent.
        model: Kind of model, such as "xgboost" or "linear", or the section `[model]`, such as
            {"kind": "xgboost", "max_depth": 4, "interval": 0.9}.
        trials: Tuning trials; 0 means none.
        home: Folder for artifacts, ledger and report; a temporary one, gone with the model, when absent.
        sections: Further sections of the project file as mappings, such as `features={"age": ["bin"]}`.

    Raises:
        ContractViolation: If the model is not better than the trivial one, or breaks another promise.
        TidemillError: As `tidemill run` would.
    """
    tree: dict[str, Any] = {"name": name, "seed": seed, **sections}
    tree["data"] = {"target": target, "keys": list(keys), **({"weight": weight} if weight else {}), **sections.get("data", {})}
    tree["model"] = {"kind": model} if isinstance(model, str) else dict(model)
    if task is not None:
        tree["task"] = task
    if trials:
        tree["tune"] = {"trials": trials, **sections.get("tune", {})}
    if home is not None:
        return _fit(to_arrow(data), tree, Path(home), events)
    temporary = tempfile.mkdtemp(prefix="tidemill-")
    try:
        made = _fit(to_arrow(data), tree, Path(temporary), events)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    weakref.finalize(made, shutil.rmtree, temporary, ignore_errors=True)
    return made


def _fit(batch: pa.RecordBatch, tree: dict[str, Any], folder: Path, events: Events | None) -> Model:
    """Run the project that `tree` describes, on the batch, in `folder`."""
    from tidemill import pipeline
    from tidemill.ui.report import collect, write_report

    tree["data"]["source"] = str(_store(batch, folder / "frames"))
    project = from_tree(tree, folder=folder, where="fit")
    run = pipeline.run(project, home=folder, events=events)
    report = write_report(collect(run.stages, run=run.to_json()), run.folder / "report.html")
    if run.refused is not None:
        raise run.refused
    if run.package is None:
        raise DataError("the run ended without a package")
    return Model(run.package, report=report, threads=project.engine.threads or 1)


def to_arrow(data: Any) -> pa.RecordBatch:
    """A pandas, Polars or Arrow table as one Arrow batch; pandas' index is left out.

    Raises:
        DataError: If `data` is none of them, or a column's name occurs twice or its values are of several types.
    """
    if isinstance(data, pa.RecordBatch):
        return data
    if not isinstance(data, pa.Table):
        try:
            frame = nw.from_native(data)
        except TypeError as error:
            raise DataError(f"data must be a pandas, Polars or Arrow table, got {type(data).__name__}") from error
        except nw.exceptions.DuplicateError as error:
            raise DataError(f"data must have each column once: {' '.join(str(error).split())}", hint="rename one") from error
        if isinstance(frame, nw.LazyFrame):
            frame = frame.collect()
        try:
            data = frame.to_arrow()
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            said = ": ".join(str(part) for part in reversed(error.args))
            raise DataError(f"a column of data must hold one type: {said}", hint="make it text, or numbers") from error
    table = data.combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _store(batch: pa.RecordBatch, folder: Path) -> Path:
    """The batch as a Parquet file named by its content, so that the same frame is the same source."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / ".draft.parquet"
    pq.write_table(pa.Table.from_batches([batch]).replace_schema_metadata(None), draft)
    final = folder / f"{hash_file(draft)[:16]}.parquet"
    draft.replace(final)
    return final
