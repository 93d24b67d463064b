"""Estimators of scikit-learn as graphs, by skl2onnx: what a kind of model and an imported estimator share."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.graph import OPSETS
from tidemill.core.load import need

if TYPE_CHECKING:
    import onnx


# Whether the estimator that is being converted was fitted on singles.
_SINGLES: contextvars.ContextVar[bool] = contextvars.ContextVar("singles", default=False)


def convert(estimator: Any, inputs: Sequence[tuple[str, str, int]], *, singles: bool = False) -> onnx.ModelProto:
    """The fitted estimator as a graph; a classifier's last output is its probabilities, a tensor.

    Args:
        inputs: Name, element (float, double, int64 or string) and width of each input.
        singles: Whether the numbers that it was fitted on are single precision exactly. Thresholds of histogram trees are then
            rounded down, so that every single goes to the side that scikit-learn sends it to. Where numbers are rounded to
            singles on their way into the graph, thresholds are rounded as they are: a number on a threshold stays on it.

    Raises:
        Exception: What skl2onnx raises where it cannot, of no common kind.
    """
    skl2onnx = need("skl2onnx", "converting a scikit-learn model")
    types = need("skl2onnx.common.data_types", "converting a scikit-learn model")
    elements = {
        "float": types.FloatTensorType, "double": types.DoubleTensorType,
        "int64": types.Int64TensorType, "string": types.StringTensorType,
    }  # fmt: skip
    initial = [(name, elements[element]([None, width])) for name, element, width in inputs]
    options = {id(estimator): {"zipmap": False}} if hasattr(estimator, "predict_proba") else None
    _mend_histogram_trees()
    token = _SINGLES.set(singles)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            made: onnx.ModelProto = skl2onnx.convert_sklearn(estimator, initial_types=initial, options=options, target_opset=OPSETS)
    finally:
        _SINGLES.reset(token)
    return made


@functools.cache
def _mend_histogram_trees() -> None:
    """Lets skl2onnx convert histogram boosting as it is.

    It hands onnx booleans where whole numbers are asked, which newer ones refuse, and rounds thresholds to the nearest single:
    a single between a threshold and its rounding would go to the other side.
    """
    skl2onnx = need("skl2onnx", "converting a scikit-learn model")
    registry = need("skl2onnx.common._registration", "converting a scikit-learn model")
    ensemble = need("sklearn.ensemble", "converting a scikit-learn model")

    class Container:
        """A conversion's container that takes booleans for 0 and 1."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def add_node(self, *arguments: Any, **attributes: Any) -> Any:
            plain = {name: _whole(value) for name, value in attributes.items()}
            return self._inner.add_node(*arguments, **plain)

    def mended(convert: Any) -> Any:
        def converted(scope: Any, operator: Any, container: Any) -> None:
            with _rounded_down(operator.raw_operator) if _SINGLES.get() else contextlib.nullcontext():
                convert(scope, operator, Container(container))

        return converted

    for kind in (ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor):
        alias = f"Sklearn{kind.__name__}"
        converter = registry.get_converter(alias)
        skl2onnx.update_registered_converter(
            kind, alias, registry.get_shape_calculator(alias), mended(converter), overwrite=True, options=converter.get_allowed_options()
        )


def _whole(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(item, (bool, np.bool_)) for item in value):
        return [int(item) for item in value]
    return value


@contextlib.contextmanager
def _rounded_down(estimator: Any) -> Iterator[None]:
    """While it lasts, thresholds are the largest singles not above their own: x <= threshold holds for the same singles x."""
    trees = [tree for stage in estimator._predictors for tree in stage]
    kept = [tree.nodes["num_threshold"].copy() for tree in trees]
    try:
        for tree, value_N in zip(trees, kept, strict=True):
            with np.errstate(over="ignore"):
                single_N = value_N.astype(np.float32)
            tree.nodes["num_threshold"] = np.where(single_N > value_N, np.nextafter(single_N, np.float32(-np.inf)), single_N)
        yield
    finally:
        for tree, value_N in zip(trees, kept, strict=True):
            tree.nodes["num_threshold"] = value_N
