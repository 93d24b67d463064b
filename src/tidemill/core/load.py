"""One function finds every extension: a literal table, then entry points, then `module:attribute`."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

from tidemill.core.errors import ConfigError, MissingDependency, NotFound

# kind -> name -> "module:attribute". Third parties add the entry-point group `tidemill.<kind>`.
TABLE: dict[str, dict[str, str]] = {
    "section": {
        "data": "tidemill.data.config:DataConfig",
        "features": "tidemill.features.config:FeaturesConfig",
        "model": "tidemill.models.config:ModelConfig",
        "train": "tidemill.train.config:TrainConfig",
        "tune": "tidemill.tune.config:TuneConfig",
        "compress": "tidemill.compress.config:CompressConfig",
        "contract": "tidemill.core.contract:ContractConfig",
        "serve": "tidemill.serve.config:ServeConfig",
        "stream": "tidemill.stream.config:StreamConfig",
        "monitor": "tidemill.monitor.config:MonitorConfig",
        "rollout": "tidemill.rollout.config:RolloutConfig",
        "engine": "tidemill.core.engine:EngineConfig",
    },
    "engine": {"local": "tidemill.engines.local.engine:LocalEngine"},
    "model": {
        "dcn": "tidemill.models.networks.dcn:Dcn",
        "decoder": "tidemill.models.networks.decoder:Decoder",
        "ensemble": "tidemill.models.ensemble:Ensemble",
        "image": "tidemill.models.networks.image:Image",
        "linear": "tidemill.models.linear:Linear",
        "mlp": "tidemill.models.networks.mlp:Mlp",
        "random_forest": "tidemill.models.random_forest:RandomForest",
        "sklearn": "tidemill.models.sklearn:Estimator",
        "text": "tidemill.models.networks.text:Text",
        "xgboost": "tidemill.models.xgboost:XGBoost",
    },
    "operator": {
        "impute": "tidemill.features.impute:Impute",
        "standardize": "tidemill.features.standardize:Standardize",
        "log": "tidemill.features.log:Log",
        "min_max": "tidemill.features.min_max:MinMax",
        "robust": "tidemill.features.robust:Robust",
        "clip": "tidemill.features.clip:Clip",
        "winsorize": "tidemill.features.winsorize:Winsorize",
        "bin": "tidemill.features.bin:Bin",
        "one_hot": "tidemill.features.one_hot:OneHot",
        "target": "tidemill.features.target:Target",
        "cross": "tidemill.features.cross:Cross",
        "pca": "tidemill.features.pca:Pca",
        "vocabulary": "tidemill.features.vocabulary:Vocabulary",
        "frequency": "tidemill.features.frequency:Frequency",
        "hash": "tidemill.features.hash:Hash",
        "embedding": "tidemill.features.embedding:Embedding",
        "text_stats": "tidemill.features.text_stats:TextStats",
        "hash_ngrams": "tidemill.features.hash_ngrams:HashNgrams",
        "ngram_target": "tidemill.features.ngram_target:NgramTarget",
        "date_parts": "tidemill.features.date_parts:DateParts",
        "cyclical": "tidemill.features.cyclical:Cyclical",
    },
    # Steps of features.select.
    "selector": {
        "variance": "tidemill.features.select.variance:Variance",
        "correlation": "tidemill.features.select.correlation:Correlation",
        "mutual_information": "tidemill.features.select.mutual_information:MutualInformation",
        "l1": "tidemill.features.select.l1:L1",
        "importance": "tidemill.features.select.importance:Importance",
        "drop_column": "tidemill.features.select.drop_column:DropColumn",
    },
    # What runs a package's graph.
    "runtime": {
        "onnxruntime": "tidemill.core.runtimes.onnx_runtime:OnnxRuntime",
        "openvino": "tidemill.core.runtimes.openvino:OpenVino",
        "cuda": "tidemill.core.runtimes.onnx_runtime:Cuda",
        "tensorrt": "tidemill.core.runtimes.onnx_runtime:TensorRT",
        "torch": "tidemill.core.runtimes.torch_ranks:TorchRanks",
    },
    # Where ranks run.
    "launcher": {"local": "tidemill.engines.local.launcher:LocalLauncher", "ray": "tidemill.engines.ray.launcher:RayLauncher"},
    # What a rank does.
    "rank": {"network": "tidemill.train.torch.answer:run"},
    # A package's declared preprocessing: from row inputs to the graph's.
    "preprocess": {"text": "tidemill.packaging.text:Tokenize", "image": "tidemill.packaging.image:Decode"},
    # From a table in memory to what a stage writes, for conformance suites.
    "fit": {"features": "tidemill.features.stage:fit_table", "network": "tidemill.train.torch.fit:fit"},
    # From what a stage wrote to its graph.
    "graph": {"features": "tidemill.features.graph:build_graph"},
    # The independent path of the parity gate: operators in NumPy, the model in its own library.
    "reference": {"features": "tidemill.features.reference:features", "model": "tidemill.models.native:load"},
    # From a model of a library to a graph, for models that were not fitted here.
    "exporter": {"sklearn": "tidemill.models.conversion:convert", "xgboost": "tidemill.models.xgboost:FittedTrees"},
    "mirror": {"mlflow": "tidemill.rollout.mlflow:MLflowMirror"},
}

# The extra that brings a library, for the message of a failed import.
EXTRAS = {
    "adbc_driver_manager": "database", "adbc_driver_postgresql": "database", "adbc_driver_sqlite": "database",
    "duckdb": "train", "narwhals": "train", "onnx": "train", "optuna": "train",
    "pyarrow": "train", "sklearn": "train", "skl2onnx": "train", "skops": "train", "xgboost": "train",
    "openvino": "openvino", "PIL": "image", "httptools": "serve", "msgspec": "serve", "jwt": "auth", "cryptography": "auth", "redis": "redis", "grpc": "grpc", "google": "grpc", "opentelemetry": "otel",
    "pytorch_optimizer": "torch", "safetensors": "torch", "tensorboard": "tensorboard",
    "tokenizers": "torch", "torch": "torch", "transformers": "torch", "mlflow": "mlflow", "psycopg": "postgres",
    "ray": "ray",
}  # fmt: skip


def load(kind: str, ref: Any) -> Any:
    """The extension that `ref` names; anything that is not a string is taken as the extension itself.

    Args:
        kind: A key of `TABLE`, such as "operator" or "model".
        ref: A name from the table or the entry-point group `tidemill.<kind>`, or "module:attribute".

    Raises:
        NotFound: If no extension has that name.
        ConfigError: If the module or attribute of "module:attribute" does not exist.
        MissingDependency: If importing it lacks a library of one of Tidemill's extras.
    """
    if not isinstance(ref, str):
        return ref
    table = TABLE.get(kind, {})
    if ref in table:
        return _attribute(table[ref])
    if ":" in ref:
        return _attribute(ref)
    offered = {point.name: point for point in entry_points(group=f"tidemill.{kind}")}
    if ref in offered:
        return offered[ref].load()
    raise NotFound(kind, ref, [*table, *offered])


def names(kind: str) -> list[str]:
    """Every name that `load(kind, name)` knows, built in and installed."""
    return [*TABLE.get(kind, {}), *(point.name for point in entry_points(group=f"tidemill.{kind}"))]


def need(module: str, purpose: str) -> Any:
    """The imported module `module`.

    Raises:
        MissingDependency: If it is not installed, naming the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = (error.name or module).partition(".")[0]
        if library not in EXTRAS:
            raise
        raise MissingDependency(library, EXTRAS[library], purpose) from error


def _attribute(ref: str) -> Any:
    module_name, _, attribute = ref.partition(":")
    try:
        module = need(module_name, ref)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"module {error.name!r} must be importable, for {ref!r}", hint="is its folder beside the project file?"
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ConfigError(f"{module_name!r} must define {attribute!r}, for {ref!r}") from None
