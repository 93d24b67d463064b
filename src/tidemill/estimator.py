"""Tidemill as scikit-learn estimators: the same features and models, without splits, gate or package.

For a model with measured promises use `tidemill.fit`; these are for pipelines, searches and cross-validation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_feature_names, _check_n_features, _check_sample_weight, check_is_fitted, column_or_1d

from tidemill.core.errors import Unsupported
from tidemill.core.graph import BulkGraph
from tidemill.core.load import load
from tidemill.core.project import build
from tidemill.core.schema import Schema
from tidemill.features.stage import fit_table
from tidemill.features.training import features_to_train_on
from tidemill.models.base import MemoryMatrix
from tidemill.notebook import to_arrow
from tidemill.packaging.merge import merge

# The column that holds the target while features are fitted.
_TARGET = "__target"


class _Estimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Features and a model as one ONNX graph. Pickles as bytes of graphs and plain values."""

    def __init__(
        self,
        model: Any = "xgboost",
        *,
        parameters: dict[str, Any] | None = None,
        features: dict[str, Any] | None = None,
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.parameters = parameters
        self.features = features
        self.random_state = random_state

    def _fit(self, x: Any, y_N: np.ndarray, weight: Any, *, task: str, classes: list[Any] | None) -> None:
        batch = self._batch(x, reset=True)
        if batch.num_rows != len(y_N):
            raise ValueError(f"X and y must have the same number of rows, got {batch.num_rows} and {len(y_N)}")
        if batch.num_rows < 2:
            raise ValueError(f"fitting needs at least 2 samples, got n_samples = {batch.num_rows}")
        weight_N = None if weight is None else _check_sample_weight(weight, np.empty((len(y_N), 1)), ensure_non_negative=True)
        if weight_N is not None:
            counts = weight_N > 0
            batch, y_N, weight_N = batch.filter(pa.array(counts)), y_N[counts], weight_N[counts]
        import onnx

        table = pa.Table.from_batches([batch])
        known = y_N if classes is None else np.asarray([str(label) for label in classes])[y_N.astype(np.int64)]
        target = {"target": _TARGET, "classes": None if classes is None else [str(label) for label in classes], "task": task}
        config = build(load("section", "model"), {"kind": self.model, **(self.parameters or {})}, path="model")
        described, features = fit_table(table.append_column(_TARGET, pa.array(known)), self.features, target=target, embeds=config.embeds)
        schema = Schema.from_json(described["inputs"])
        x_NF = features_to_train_on(described, features, batch)
        if config.interval is not None:
            raise Unsupported("interval: needs validation rows, which an estimator does not hold back", hint="use tidemill.fit")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        fitted = config.model().fit(
            MemoryMatrix(x_NF, y_N, weight_N, names=described["names"], tables=described.get("embedding")),
            None,
            task=task,
            num_classes=len(classes) if classes else None,
            params=config.parameters(),
            seed=seed,
            threads=1,
        )
        whole = merge(onnx.load_from_string(features), fitted.to_onnx(), classes=classes)
        self.graph_ = whole.SerializeToString(deterministic=True)
        self.schema_ = schema.to_json()
        self.n_iter_ = (fitted.best_round or 0) + 1
        self._open()

    def _open(self) -> None:
        self._session = BulkGraph(self.graph_, Schema.from_json(self.schema_))

    def _run(self, x: Any, output: str) -> np.ndarray:
        check_is_fitted(self, "graph_")
        return self._session.run(self._batch(x, reset=False), [output])[output]

    def _batch(self, x: Any, *, reset: bool) -> pa.RecordBatch:
        """X as an Arrow batch; arrays get the columns x0, x1, ..."""
        if isinstance(x, (pa.Table, pa.RecordBatch)) or (hasattr(x, "columns") and not hasattr(x, "toarray")):
            _check_feature_names(self, x, reset=reset)
            _check_n_features(self, x, reset=reset)
            return to_arrow(x)
        x_NF = check_array(x, dtype="numeric", ensure_all_finite="allow-nan", estimator=self, input_name="X")
        _check_feature_names(self, x, reset=reset)
        _check_n_features(self, x_NF, reset=reset)
        return pa.RecordBatch.from_arrays(
            [pa.array(column.astype(np.float64)) for column in x_NF.T], [f"x{i}" for i in range(x_NF.shape[1])]
        )

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_session", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "graph_" in state:
            self._open()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = False
        return tags


class TidemillClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]  # scikit-learn has no types
    """Classes from a table of numbers, text, booleans and times.

    Args:
        model: Kind of model, such as "xgboost" or "linear".
        parameters: Parameters of the kind, such as {"max_depth": 4}.
        features: Operators by column, as in the project file's `[features]`.
        random_state: Seed, as in scikit-learn.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TidemillClassifier:
        """Fit on N rows.

        Raises:
            ValueError: If y has fewer than two classes, or X and y do not fit together.
        """
        y = column_or_1d(_given(y), warn=True)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Classifier can't train when only one class is present: y holds {self.classes_}")
        self._fit(
            X,
            codes.astype(np.float64),
            sample_weight,
            task="binary" if len(self.classes_) == 2 else "multiclass",
            classes=_plain(self.classes_),
        )
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities, shape [N, K], in the order of `classes_`."""
        return self._run(X, "probability").astype(np.float64)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, shape [N]."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: np.ndarray = self.classes_[best]
        return labels


class TidemillRegressor(RegressorMixin, _Estimator):  # type: ignore[misc]  # scikit-learn has no types
    """Numbers from a table of numbers, text, booleans and times; arguments as for `TidemillClassifier`."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TidemillRegressor:
        """Fit on N rows.

        Raises:
            ValueError: If y holds NaN or infinity, or X and y do not fit together.
        """
        y = check_array(column_or_1d(_given(y), warn=True), ensure_2d=False, dtype=np.float64, input_name="y", estimator=self)
        self._fit(X, y, sample_weight, task="regression", classes=None)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The predicted number of each row, shape [N]."""
        return self._run(X, "prediction").astype(np.float64).ravel()


def _given(y: Any) -> Any:
    if y is None:
        raise ValueError("this estimator requires y to be passed, but the target y is None")
    return y


def _plain(classes: np.ndarray) -> list[Any]:
    """Labels that a graph can hold: their places, where they are neither booleans, whole numbers nor text."""
    labels: list[Any] = classes.tolist()
    kinds = {type(label) for label in labels}
    if kinds <= {bool} or kinds <= {int} or kinds <= {str}:
        return labels
    return list(range(len(labels)))
