"""A model from scikit-learn, converted by skl2onnx. The independent path is the estimator's own predict on the raw data.

A .skops file is loaded where every type in it is trusted. A pickle runs code when it is loaded: only with
`trust_pickle`, only here, and the package holds graphs alone. What skl2onnx cannot convert is refused by name.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.errors import ConfigError, DataError, Unsupported
from tidemill.core.graph import session
from tidemill.core.load import load, need
from tidemill.core.schema import Column
from tidemill.packaging.imports import xgboost
from tidemill.packaging.imports.onnx import Feed
from tidemill.packaging.imports.source import Given, Imported, to_numpy
from tidemill.packaging.imports.wrap import Answer, wrap
from tidemill.packaging.merge import outputs
from tidemill.packaging.parity import FunctionPath

if TYPE_CHECKING:
    import onnx
    import pyarrow as pa

# Plain values that skops does not vouch for.
HARMLESS = ("numpy.dtype", "sklearn.compose._column_transformer._RemainderColsList")

_TRIED_ROWS = 2_000
_CLOSE = 1e-6


def read(source: Any, given: Given) -> Imported:
    """The estimator in a file, or given as an object.

    Raises:
        ConfigError: If it is a pickle and pickles are not trusted, or holds types that are not.
        DataError: If the data lacks its columns.
        Unsupported: If it is no fitted classifier or regressor, or cannot be converted.
    """
    estimator = _load(Path(source), given) if isinstance(source, (str, Path)) else source
    task = _task(estimator)
    if hasattr(estimator, "get_booster"):
        classes = [_plain(label) for label in estimator.classes_] if task != "regression" else None
        return xgboost.from_booster(estimator.get_booster(), given, classes=classes)
    classes = None if task == "regression" else [_plain(label) for label in estimator.classes_]
    columns, apart = _columns(estimator, given)

    def native(batch: pa.RecordBatch) -> np.ndarray:
        rows = _frame(batch, columns) if hasattr(estimator, "feature_names_in_") else to_numpy(batch, columns, np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = estimator.predict(rows) if classes is None else estimator.predict_proba(rows)
        return np.asarray(answer, np.float64).reshape(-1) if classes is None else np.asarray(answer, np.float64)

    model, wiring = _converted(estimator, columns, apart, native, classes, given)
    answer = Answer(tensor=_answer_name(model, classes), form="value" if classes is None else "probabilities", classes=classes)
    graphs, schema = wrap(model, wiring, answer)
    return Imported(
        model=f"scikit-learn {_describe(estimator)}",
        task=task,
        classes=classes,
        schema=schema,
        outputs=outputs(classes),
        graphs=graphs,
        graph="full.onnx",
        native=FunctionPath(native, "the scikit-learn estimator's own predict on the raw data"),
    )


def _load(path: Path, given: Given) -> Any:
    if path.suffix == ".skops":
        return _load_skops(path, given)
    if not given.trust_pickle:
        raise ConfigError(
            f"{path.name} holds pickled code, which runs when it is loaded",
            hint="--trust-pickle loads it if you trust whoever made it; a .skops file needs no trust",
        )
    joblib = need("joblib", "importing a scikit-learn model")
    with _told(given):
        try:
            return joblib.load(path)
        except Exception as error:  # unpickling runs the file's own code, which raises anything
            raise DataError(f"{path} must be a pickled estimator: {type(error).__name__}: {error}") from error


def _load_skops(path: Path, given: Given) -> Any:
    skops = need("skops.io", "importing a .skops file")
    try:
        untrusted = sorted(skops.get_untrusted_types(file=path))
    except Exception as error:  # a damaged archive raises what its zip or JSON reader raises
        raise DataError(f"{path} must be a skops file: {type(error).__name__}: {error}") from error
    strange = [name for name in untrusted if name not in HARMLESS]
    if strange and not given.trust_pickle:
        raise ConfigError(
            f"{path.name} holds types that are not trusted: {', '.join(strange)}",
            hint="--trust-pickle loads them if you trust whoever made it",
        )
    with _told(given):
        try:
            return skops.load(path, trusted=untrusted)
        except Exception as error:
            raise DataError(f"{path} must be a skops file of this scikit-learn: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _told(given: Given) -> Iterator[None]:
    """What a library warns of while a file is loaded, such as another version, becomes an event."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(str(one.message).splitlines()[0] for one in caught):
        given.events.warn("import.warning", text)


def _task(estimator: Any) -> str:
    """What an estimator predicts.

    Raises:
        Unsupported: If it does not tell classes apart with probabilities, and predicts no number.
    """
    base = need("sklearn.base", "importing a scikit-learn model")
    validation = need("sklearn.utils.validation", "importing a scikit-learn model")
    name = _describe(estimator)
    try:
        validation.check_is_fitted(estimator)
    except (TypeError, ValueError) as error:
        raise Unsupported(f"the model must be a fitted scikit-learn estimator, {name} is not: {error}") from error
    if base.is_regressor(estimator):
        return "regression"
    if not base.is_classifier(estimator):
        raise Unsupported(f"the model must be a classifier or a regressor, {name} is neither")
    if not hasattr(estimator, "predict_proba"):
        raise Unsupported(f"a classifier must have predict_proba, {name} has none", hint="wrap it in CalibratedClassifierCV")
    if not isinstance(estimator.classes_, np.ndarray):
        raise Unsupported(f"the model must predict one column, {name} predicts several")
    return "binary" if len(estimator.classes_) == 2 else "multiclass"


def _columns(estimator: Any, given: Given) -> tuple[list[Column], bool]:
    """The raw columns of an estimator, and whether the conversion needs each as an input of its own."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        return given.numbers(int(estimator.n_features_in_), _describe(estimator)), False
    columns = given.columns([str(name) for name in names], _describe(estimator))
    times = [column.name for column in columns if column.type == "timestamp"]
    if times:
        raise Unsupported(f"column {times[0]!r} is a time, which skl2onnx cannot convert", hint="train on its parts as numbers")
    # A ColumnTransformer picks its columns by name, which a matrix does not have.
    return columns, any(column.type == "string" for column in columns) or _picks_columns(estimator)


def _picks_columns(estimator: Any) -> bool:
    steps = [step for _, step in getattr(estimator, "steps", [])]
    inner = getattr(estimator, "best_estimator_", None)
    return type(estimator).__name__ == "ColumnTransformer" or any(
        _picks_columns(step) for step in [*steps, *([inner] if inner is not None else [])]
    )


def _converted(
    estimator: Any, columns: Sequence[Column], apart: bool, native: Any, classes: list[Any] | None, given: Given
) -> tuple[onnx.ModelProto, dict[str, list[Column]]]:
    """The converted model, of the first of a few input types with which it answers as the estimator does.

    Single precision is the quicker graph; an estimator that compares float64 numbers with thresholds needs double, and
    categories that are whole numbers need int64.

    Raises:
        Unsupported: If no conversion succeeds; names the estimator at fault and what skl2onnx says.
    """
    trial = given.table.slice(0, _TRIED_ROWS).combine_chunks().to_batches()[0]
    expected = native(trial)
    wiring = {column.name: [column] for column in columns} if apart else {"features": list(columns)}
    failures: list[str] = []
    best: tuple[float, onnx.ModelProto] | None = None
    for number, whole in (("float", "float"), ("double", "double"), ("float", "int64"), ("double", "int64")):
        if whole == "int64" and not (apart and any(column.type == "int64" for column in columns)):
            continue
        try:
            model = _convert(estimator, columns, apart, number, whole)
            runtime = session(bytes(model.SerializeToString()))
            types = {value.name: value.type for value in runtime.get_inputs()}
            feed = Feed(wiring, types, {value.name: value.shape for value in runtime.get_inputs()})
            found = np.asarray(runtime.run([_answer_name(model, classes)], feed(trial))[0], np.float64).reshape(expected.shape)
        except Exception as error:  # noqa: BLE001 - skl2onnx and ONNX Runtime raise families without a public root
            failures.append(_reason(error))
            continue
        apart_by = float(np.nan_to_num(np.abs(found - expected), nan=np.inf).max() / max(1.0, float(np.abs(expected).mean())))
        if best is None or apart_by < best[0]:
            best = (apart_by, model)
        if apart_by <= _CLOSE:
            break
    if best is None:
        raise Unsupported(
            f"skl2onnx must be able to convert {_describe(estimator)}, cannot: {failures[0]}",
            hint="replace that step, or export the model to ONNX yourself",
        )
    return best[1], wiring


def _convert(estimator: Any, columns: Sequence[Column], apart: bool, number: str, whole: str) -> onnx.ModelProto:
    elements = {"string": "string", "int64": whole}
    inputs = [(column.name, elements.get(column.type, number), 1) for column in columns]
    made: onnx.ModelProto = load("exporter", "sklearn")(estimator, inputs if apart else [("features", number, len(columns))])
    return made


def _answer_name(model: onnx.ModelProto, classes: list[Any] | None) -> str:
    """The output that answers: the last, which follows the label where there are classes."""
    names = [str(value.name) for value in model.graph.output]
    return names[0] if classes is None else names[1]


def _frame(batch: pa.RecordBatch, columns: Sequence[Column]) -> Any:
    """The raw rows as the estimator saw them in training: a pandas frame, or an Arrow table where pandas is absent."""
    import pyarrow as pa

    table = pa.Table.from_batches([batch]).select([column.name for column in columns])
    try:
        import pandas  # noqa: F401, ICN001 - only asked whether it is there
    except ModuleNotFoundError:
        return table
    return table.to_pandas()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}"


def _describe(estimator: Any) -> str:
    steps = [type(step).__name__ for _, step in getattr(estimator, "steps", [])]
    return type(estimator).__name__ + (f" ({', '.join(steps)})" if steps else "")


def _plain(label: Any) -> Any:
    value = label.item() if isinstance(label, np.generic) else label
    return int(value) if isinstance(value, float) and value.is_integer() else value
