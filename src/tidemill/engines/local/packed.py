"""Packed files, unpacked into the scratch folder where DuckDB would not notice that one is torn, or cannot read it."""

from __future__ import annotations

import bz2
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from tidemill.core.errors import DataError
from tidemill.core.source import COMPRESSED, zipped_name
from tidemill.engines.local.snappy import unframed

STEP_BYTES = 1 << 20


def unpacked(file: Path, folder: Path, *, reads_gzip: bool) -> Path:
    """The file itself, or what is in it, unpacked below `folder`.

    Args:
        reads_gzip: Whether the reader takes gzip as it is.

    Raises:
        DataError: If the file is torn or not what its suffix says.
    """
    suffix = file.suffix.lower()
    if suffix not in COMPRESSED or (suffix == ".gz" and reads_gzip):
        return file
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / Path(zipped_name(file) if suffix == ".zip" else file.stem).name
    try:
        with _opened(file, suffix) as packed, target.open("wb") as out:
            shutil.copyfileobj(packed, out, STEP_BYTES)
    except (zipfile.BadZipFile, EOFError, OSError, pa.ArrowException) as error:
        raise DataError(f"source {file} must be a whole {suffix[1:]} file, it is torn or of another kind: {error}") from error
    if target.stat().st_size == 0:
        raise DataError(f"source must hold data, {file} is empty once unpacked")
    return target


@contextmanager
def _opened(file: Path, suffix: str) -> Iterator[BinaryIO]:
    if suffix == ".zip":
        with zipfile.ZipFile(file) as archive, archive.open(zipped_name(file)) as packed:
            yield cast(BinaryIO, packed)
    elif suffix == ".bz2":
        with bz2.open(file) as packed:
            yield cast(BinaryIO, packed)
    elif suffix == ".snappy":
        with file.open("rb") as framed:
            yield unframed(framed)
    else:
        with pa.OSFile(str(file)) as raw, pa.CompressedInputStream(raw, "gzip" if suffix == ".gz" else "zstd") as packed:
            yield packed
