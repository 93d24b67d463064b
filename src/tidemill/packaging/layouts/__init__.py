"""Packages in the folders that other servers and libraries read."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from tidemill.core.artifact import PARTIAL
from tidemill.core.errors import ConfigError
from tidemill.core.package import Package
from tidemill.packaging.layouts import hugging_face, kserve, triton

LAYOUTS = ("triton", "kserve", "transformers")


def export(package: Package, out: Path, *, layout: str, storage_uri: str | None = None, max_batch: int = 0) -> list[str]:
    """Write a package in another server's layout, whole or not at all; what its users must know, a sentence each.

    Args:
        layout: One of `LAYOUTS`.
        out: A folder that is not there yet.
        storage_uri: Where the repository will lie, for kserve.
        max_batch: Rows that Triton may put together out of several requests; 0 leaves requests as they come.

    Raises:
        Unsupported: If that server cannot run the package; names what can.
        ConfigError: If an argument is missing or wrong.
    """
    if out.exists():
        raise ConfigError(f"{out}: must not exist yet")
    if layout == "kserve" and storage_uri is None:
        raise ConfigError("--storage-uri: must say where the model repository will lie", hint="--storage-uri s3://models/flights")
    if layout != "kserve" and storage_uri is not None:
        raise ConfigError(f"--storage-uri: must go with --layout kserve, got it with {layout}")
    if not 0 <= max_batch <= 1_000_000:
        raise ConfigError(f"--max-batch: must be in 0..1000000, got {max_batch}")

    def as_triton(folder: Path) -> list[str]:
        return triton.write(package, folder, max_batch=max_batch)

    def as_kserve(folder: Path) -> list[str]:
        notes = triton.write(package, folder / kserve.REPOSITORY, max_batch=max_batch)
        return [*kserve.write(package, folder, storage_uri=str(storage_uri)), *notes]

    def as_transformers(folder: Path) -> list[str]:
        return hugging_face.write(package, folder)

    ways: dict[str, Callable[[Path], list[str]]] = {"triton": as_triton, "kserve": as_kserve, "transformers": as_transformers}
    if layout not in ways:
        raise ConfigError(f"--layout: must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    partial = out.parent / f"{PARTIAL}{out.name}-{uuid.uuid4().hex[:8]}"
    try:
        notes = ways[layout](partial)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return notes
