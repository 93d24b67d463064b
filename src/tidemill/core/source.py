"""Which files a source means, in which order and format."""

from __future__ import annotations

import glob
import json
import zipfile
from collections.abc import Collection
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING

from tidemill.core.engine import Format, Source
from tidemill.core.errors import DataError, nearest
from tidemill.core.objects import StoredObject, is_address, stored_objects

if TYPE_CHECKING:
    import pyarrow.parquet as pq

# Bytes of a value by the type that Parquet has for it; of text and all others the dictionary's code is counted, and what it holds.
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8}
CODE_BYTES = 4

FORMATS: dict[str, Format] = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".orc": "orc", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
COMPRESSED = (".gz", ".bz2", ".zip", ".zst", ".snappy")
WRITTEN = "_manifest.json"


def source_files(source: Source) -> tuple[list[Path], Format]:
    """The files of a source, in the order in which their rows come, and their common format.

    A folder that an engine wrote has a manifest, which says the order; any other folder or glob is sorted by path. Names that
    begin with `_` or `.` are not data.

    Raises:
        DataError: If nothing is there, a file is empty, or the format cannot be told.
    """
    path = Path(source.path)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = _in_folder(path, source)
    else:
        files = sorted(Path(name) for name in glob.glob(source.path, recursive=True) if _is_data(Path(Path(name).name)))  # noqa: PTH207 - absolute patterns
        if not files:
            raise DataError(f"source must exist, got nothing at {path}", hint=_near(path))
    for file in files:
        try:
            if file.stat().st_size == 0:
                raise DataError(f"source must hold data, {file} is empty (0 bytes)")
            with file.open("rb"):
                pass
        except OSError as error:
            raise DataError(f"source {file} must be readable: {error.strerror}") from error
    return files, source.format or _common_format({str(file): _named_inside(file) for file in files})


def source_objects(source: Source) -> tuple[list[StoredObject], Format]:
    """The same of an object store's address: the objects sorted by key, and their common format.

    Raises:
        DataError: If nothing is there, an object is empty, or the format cannot be told.
        Unavailable: If the store does not answer.
        Unsupported: If it is no object store's address.
    """
    objects = [entry for entry in stored_objects(source) if _is_data(PurePosixPath(entry.below))]
    if len(objects) != 1 or objects[0].path != source.path:
        objects = [entry for entry in objects if source.format or format_of(entry.path)]
    if not objects:
        raise DataError(f"source must exist, got no {', '.join(FORMATS)} objects at {source.path}")
    for entry in objects:
        if entry.size == 0:
            raise DataError(f"source must hold data, {entry.path} is empty (0 bytes)")
    return objects, source.format or _common_format({entry.path: PurePosixPath(entry.path).name for entry in objects})


def row_bytes(group: pq.RowGroupMetaData, columns: Collection[str]) -> int:
    """What a row of a Parquet row group takes in memory, its text as dictionaries; about, and at least 1."""
    rows, size = max(1, group.num_rows), 1
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema in columns:
            size += WIDTHS.get(column.physical_type) or CODE_BYTES + column.total_uncompressed_size // rows
    return size


def is_remote(source: Source) -> bool:
    """Whether the path is an address, and not of this machine's files."""
    return is_address(source.path)


def format_of(name: str) -> Format | None:
    """The format that a file's name tells, compression aside."""
    path = Path(name)
    if path.suffix.lower() in COMPRESSED:
        path = path.with_suffix("")
    return FORMATS.get(path.suffix.lower())


def zipped_name(file: Path) -> str:
    """The one file inside a zip archive that holds data.

    Raises:
        DataError: If it is no zip archive, or holds none or several.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir() and not info.filename.startswith("__MACOSX")]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"source {file} must be a zip archive: {error}") from error
    if len(names) != 1:
        raise DataError(
            f"source {file} must hold one file, holds {len(names)}: {', '.join(names[:5])}", hint="unpack it and name the folder"
        )
    return names[0]


def _in_folder(folder: Path, source: Source) -> list[Path]:
    manifest = folder / WRITTEN
    if manifest.is_file():
        return [folder / entry["name"] for entry in json.loads(manifest.read_text(encoding="utf-8"))["files"]]
    files = [path for path in folder.rglob("*") if _is_data(path.relative_to(folder)) and path.is_file()]
    files = sorted(path for path in files if source.format or format_of(path.name))
    if not files:
        raise DataError(f"source folder {folder} must hold files of {', '.join(FORMATS)}, holds none")
    return files


def _is_data(path: PurePath) -> bool:
    return not any(part.startswith(("_", ".")) for part in path.parts)


def _named_inside(file: Path) -> str:
    return zipped_name(file) if file.suffix.lower() == ".zip" else file.name


def _common_format(names: dict[str, str]) -> Format:
    """The format that the names tell, each of a file shown as its key says."""
    found: dict[Format, str] = {}
    for shown, name in names.items():
        form = format_of(name)
        if form is None:
            raise DataError(
                f"source must be one of {', '.join(FORMATS)} (or one of them with {', '.join(COMPRESSED)}), got {PurePosixPath(shown).name}",
                hint='say which: source = { path = "...", format = "csv" }',
            )
        found.setdefault(form, shown)
    if len(found) > 1:
        raise DataError(f"source must hold one format, holds {' and '.join(found.values())}")
    return next(iter(found))


def _near(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    close = nearest(path.name, [other.name for other in path.parent.iterdir()])
    return f"did you mean {path.parent / close}?" if close else None
