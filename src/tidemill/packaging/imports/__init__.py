"""A package from a model that exists already, and a sample of the rows that it takes."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidemill.core.artifact import PARTIAL, hash_file, hash_json, replace_folder, sync
from tidemill.core.contract import ContractConfig
from tidemill.core.errors import ConfigError, Conflict, Unsupported
from tidemill.core.events import Events
from tidemill.core.package import MANIFEST, Package
from tidemill.packaging.gate import Candidate, Trial, pass_gate
from tidemill.packaging.imports.source import Given, Imported, known_truth, read_sample
from tidemill.packaging.rows import Sample, Target, every
from tidemill.packaging.stage import versions

if TYPE_CHECKING:
    import pyarrow as pa

# Texts, or images, that a model is run on, in its graph and on the independent path.
MAX_TEXTS = 2_000

Importer = Callable[[Any, Given], Imported]


def package_model(
    source: Any,
    *,
    data: Any,
    target: str | None,
    name: str,
    out: Path,
    task: str | None = None,
    trust_pickle: bool = False,
    contract: ContractConfig | None = None,
    keys: Iterable[str] = (),
    image: Mapping[str, Any] | Path | str | None = None,
    champion: Package | None = None,
    events: Events | None = None,
) -> Package:
    """A whole package at `out`, made from a model and a sample of raw rows; an older package there is replaced.

    Args:
        source: An ONNX file, an XGBoost model (.json, .ubj), a scikit-learn estimator (.skops; .joblib or .pkl with
            `trust_pickle`; or the object itself), or a Hugging Face folder.
        data: The sample: a Parquet or CSV file, or a frame. It gives the schema, the rows on which parity and quality
            are measured, the reference distributions and the example.
        target: Column of true values; without one there is no evidence of quality.
        task: binary, multiclass or regression; told from the model and the target when absent.
        trust_pickle: Load files that run code when they are loaded. What is in them is never shipped.
        contract: Promises to hold it to; parity and better than trivial are always promised.
        keys: Columns that batch prediction copies through; the model does not see them.
        image: What is done to an image before the ONNX file sees it: a mapping, or a JSON file, as `image_config` describes it. The
            sample's column of images then holds their bytes, or paths relative to the sample's folder.
        champion: What a promise of no loss of quality is held against.

    Raises:
        DataError: If the model or the data cannot be read, or do not fit together.
        Unsupported: If the model is of a kind that no package can hold; names it and says what can be done.
        ContractViolation: If a promise is broken, the parity of the conversion above all; nothing is written then.
    """
    # Checked here as for a project, before any work.
    if not name or not all(c.islower() or c.isdigit() or c in "-_" for c in name) or not name.isascii():
        raise ConfigError(f"name: must be lower-case letters, digits, - and _, got {name!r}", hint="--name gives another")
    events = events or Events()
    out = Path(out)
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise Conflict(f"{out} must be a new folder, an empty one or a package, holds something else", hint="--out names another")
    importer = _importer(source)
    sample = read_sample(data, binary=image is not None)
    if image is not None:
        sample, importer = _of_images(source, image, sample, data)
    given = known_truth(Given(table=sample, target=target, task=task, keys=tuple(keys), trust_pickle=trust_pickle, events=events))
    events.emit("import.started", f"reading {_called(source)}", level="progress")
    imported = importer(source, given)
    if imported.kind != "row" and given.table.num_rows > MAX_TEXTS:
        events.warn("import.thinned", f"{MAX_TEXTS:,} of {given.table.num_rows:,} {imported.kind}s are looked at, evenly spread over all")
        given = replace(given, table=every(Sample(given.table), given.table.schema.names, MAX_TEXTS))
    if task is not None and imported.task != task and imported.kind == "row":
        raise ConfigError(f"task: must be {imported.task} for this model, got {task}")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f"{PARTIAL}{out.name}-{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        _fill(partial, imported, given, name, contract or ContractConfig(), champion, source, data, events)
        sync(partial)
        replace_folder(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Package.open(out)


def _importer(source: Any) -> Importer:
    """What reads a source, told from its suffix.

    Raises:
        ConfigError: If it is missing.
        Unsupported: If it is nothing that can be read.
    """
    from tidemill.packaging.imports import huggingface, onnx, sklearn, xgboost

    if not isinstance(source, (str, Path)):
        if hasattr(source, "predict"):
            return sklearn.read
        raise Unsupported(f"a model must be a file, a folder or a scikit-learn estimator, got {type(source).__name__}")
    path = Path(source)
    if not path.exists():
        raise ConfigError(f"the model must exist, got nothing at {path}")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise Unsupported(f"{path} must be a Hugging Face folder with config.json, has none", hint="or name a model file")
        return huggingface.read
    by_suffix: dict[str, Importer] = {
        ".onnx": onnx.read, ".json": xgboost.read, ".ubj": xgboost.read, ".model": xgboost.read,
        ".skops": sklearn.read, ".joblib": sklearn.read, ".pkl": sklearn.read, ".pickle": sklearn.read,
    }  # fmt: skip
    found = by_suffix.get(path.suffix.lower())
    if found is None:
        known = ", ".join(by_suffix)
        raise Unsupported(f"a model file must be one of {known}, got {path.name}", hint="export it to ONNX, or save it with skops")
    return found


def _of_images(source: Any, image: Any, sample: pa.Table, data: Any) -> tuple[pa.Table, Importer]:
    """The sample with its images in it, and what reads the model behind their preprocessing.

    Raises:
        Unsupported: If the source is no ONNX file.
    """
    from tidemill.packaging.imports import image as images

    if not isinstance(source, (str, Path)) or Path(source).suffix.lower() != ".onnx":
        raise Unsupported(f"a model of images must be an ONNX file, got {_called(source)}", hint="export it to ONNX")
    config, column = images.declared(image), images.image_column(sample)
    folder = Path(data).parent if isinstance(data, (str, Path)) else Path()
    return images.with_images(sample, column, folder), lambda path, given: images.read(Path(path), given, config, column)


def _fill(
    folder: Path,
    imported: Imported,
    given: Given,
    name: str,
    contract: ContractConfig,
    champion: Package | None,
    source: Any,
    data: Any,
    events: Events,
) -> None:
    """The package's files in `folder`."""
    for file, content in imported.graphs.items():
        (folder / file).write_bytes(content)
    for file, given_as in imported.files.items():
        (folder / file).write_bytes(given_as if isinstance(given_as, bytes) else given_as.read_bytes())
    judged = given.target is not None and imported.task in ("binary", "multiclass", "regression")
    signature: dict[str, Any] = {
        "kind": imported.kind,
        "inputs": imported.schema.to_json(),
        "outputs": imported.outputs,
        "keys": list(given.keys),
    }
    optional = {"classes": imported.classes, "preprocess": imported.preprocess, "preprocess_config": imported.preprocess_config}
    signature |= {key: value for key, value in optional.items() if value is not None}
    if judged:
        signature["target"] = given.target
    rows = Sample(given.table)
    promises = contract.promises()
    if not judged:
        promises = [promise for promise in promises if not promise["measure"].startswith(("quality.", "drop."))]
    candidate = Candidate(
        folder=folder,
        name=name,
        task=imported.task,
        signature=signature,
        promises=promises,
        lineage={"source": _called(source), "source_sha256": _hash(source), "data_sha256": _hash(data), "versions": versions()},
        graph=imported.graph,
        about={
            "model": imported.model,
            "source": f"the model {_called(source)}, packaged as it was given",
            "rows": {"sample": given.table.num_rows},
            "limits": [
                "Parity, quality and reference distributions come from the sample alone; the model may have been trained on it.",
                *imported.limits,
            ],
        },
    )
    target = Target(column=given.target, classes=imported.classes) if judged and given.target else None
    pass_gate(candidate, Trial(rows=rows, native=imported.native, reference=rows, target=target, champion=champion), events=events)


def _called(source: Any) -> str:
    return Path(source).name if isinstance(source, (str, Path)) else type(source).__name__


def _hash(source: Any) -> str | None:
    """A file's hash, or a folder's; None for an object."""
    if not isinstance(source, (str, Path)):
        return None
    path = Path(source)
    if path.is_file():
        return hash_file(path)
    if not path.is_dir():
        return None
    return hash_json({str(file.relative_to(path)): hash_file(file) for file in sorted(path.rglob("*")) if file.is_file()})
