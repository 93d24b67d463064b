"""A model from an XGBoost file, as one tree ensemble. The independent path is the booster's own predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.errors import DataError, Unsupported
from tidemill.core.load import load, need
from tidemill.core.schema import Column
from tidemill.packaging.imports.source import Given, Imported, to_numpy
from tidemill.packaging.imports.wrap import Answer, wrap
from tidemill.packaging.merge import outputs
from tidemill.packaging.parity import FunctionPath

if TYPE_CHECKING:
    import pyarrow as pa

TASKS = {
    "binary:logistic": "binary", "multi:softprob": "multiclass", "multi:softmax": "multiclass", "reg:squarederror": "regression",
    "reg:absoluteerror": "regression", "reg:pseudohubererror": "regression", "reg:linear": "regression",
    "count:poisson": "regression", "reg:gamma": "regression", "reg:tweedie": "regression",
}  # fmt: skip

# XGBoost takes no infinity; a number beyond this is beyond every threshold too.
_LARGEST = np.float32(1e38)


def read(path: Path, given: Given) -> Imported:
    """The model in a .json or .ubj file.

    Raises:
        DataError: If it is no XGBoost model, or the data lacks its columns.
        Unsupported: If it has categorical splits, is no tree booster, or has an objective that cannot be written as a graph.
    """
    xgb = need("xgboost", "importing an XGBoost model")
    try:
        booster = xgb.Booster(model_file=str(path))
    except (xgb.core.XGBoostError, ValueError, OSError) as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DataError(f"{path} must be an XGBoost model: {said[0] if said else type(error).__name__}") from error
    return from_booster(booster, given)


def from_booster(booster: Any, given: Given, *, classes: list[Any] | None = None) -> Imported:
    """The model in a booster that is loaded already.

    Args:
        classes: Labels in the order of the booster's classes; told from the target when absent.
    """
    import json

    xgb = need("xgboost", "importing an XGBoost model")
    config = json.loads(booster.save_config())["learner"]
    objective = config["objective"]["name"]
    kind = config["gradient_booster"]["name"]
    if kind != "gbtree":
        raise Unsupported(f"an XGBoost model must be of gbtree to be packaged, is of {kind}", hint="train it with booster='gbtree'")
    if objective not in TASKS:
        raise Unsupported(f"an XGBoost model must have one of the objectives {', '.join(TASKS)} to be packaged, has {objective}")
    if "c" in (booster.feature_types or []):
        names = [name for name, kind in zip(booster.feature_names or [], booster.feature_types, strict=False) if kind == "c"]
        raise Unsupported(
            f"XGBoost's categorical splits cannot be written as a graph, the model has them on {', '.join(names[:5]) or 'some features'}",
            hint="train without enable_categorical on encoded columns, or in a project with one_hot or vocabulary",
        )
    rounds = booster.num_boosted_rounds()
    best = booster.attr("best_iteration")
    if best is not None and int(best) + 1 < rounds:
        rounds = int(best) + 1
        given.events.emit(
            "import.best_iteration", f"the first {rounds} of {booster.num_boosted_rounds()} rounds, where early stopping found the best"
        )
    kept = booster[:rounds] if rounds < booster.num_boosted_rounds() else booster
    columns = _columns(booster, given)
    task = TASKS[objective]
    num_classes = int(config["learner_model_param"]["num_class"]) or None
    labels = None if task == "regression" else _labels(given, num_classes or 2, classes)
    fitted = load("exporter", "xgboost")(kept, task=task, num_classes=num_classes, names=[column.name for column in columns])
    name = {"regression": "prediction"}.get(task, "probability")
    form = Answer(tensor=name, form="value" if labels is None else "probabilities", classes=labels)
    graphs, schema = wrap(fitted.to_onnx(), {"features": columns}, form)

    def native(batch: pa.RecordBatch) -> np.ndarray:
        x_NF = np.clip(to_numpy(batch, columns, np.float32), -_LARGEST, _LARGEST)
        if fitted.answers_logarithms:  # its own sum in float32, base included, may be off by more than the gate allows
            return np.asarray(fitted.predict(x_NF))
        matrix = xgb.DMatrix(x_NF, nthread=1)
        matrix.feature_names, matrix.feature_types = booster.feature_names, booster.feature_types
        # softmax answers with the class alone; its margins are those of softprob.
        margin = np.asarray(booster.predict(matrix, output_margin=objective == "multi:softmax", iteration_range=(0, rounds)), np.float64)
        if objective == "multi:softmax":
            power = np.exp(margin - margin.max(axis=1, keepdims=True))
            return np.asarray(power / power.sum(axis=1, keepdims=True))
        return np.stack([1 - margin, margin], axis=1) if task == "binary" else margin

    return Imported(
        model=f"XGBoost, {objective}, {rounds} rounds",
        task=task,
        classes=labels,
        schema=schema,
        outputs=outputs(labels),
        graphs=graphs,
        graph="full.onnx",
        native=FunctionPath(native, "XGBoost's own predict"),
    )


def _columns(booster: Any, given: Given) -> list[Column]:
    """The columns of the model's features, by their names where it has them."""
    names = booster.feature_names
    # A model of an array calls its features f0, f1, ... where it calls them anything.
    unnamed = names is None or (names == [f"f{i}" for i in range(len(names))] and any(name not in given.features for name in names))
    columns = given.numbers(booster.num_features(), "the XGBoost model") if unnamed else given.columns(names, "the XGBoost model")
    for column in columns:
        if not column.is_number and column.type != "boolean":
            raise DataError(
                f"column {column.name!r} must be a number for the XGBoost model, is {column.type}",
                field=column.name,
                hint="give the data as the model was trained on it",
            )
    return columns


def _labels(given: Given, count: int, classes: list[Any] | None) -> list[Any]:
    """The model's classes: stated, else 0 to K - 1, else the target's values in order where those are others."""
    if classes is not None:
        return classes
    numbers = list(range(count))
    found = given.labels()
    if found is None or all(label in numbers for label in found):
        return [False, True] if count == 2 and found == [False, True] and isinstance(found[0], bool) else numbers
    if len(found) != count:
        raise DataError(f"target {given.target!r} must have the model's {count} classes, has {len(found)}", field=given.target)
    given.events.warn("import.labels", f"the model's classes are taken to be {found[:5]} in this order, as a label encoder gives them")
    return found
