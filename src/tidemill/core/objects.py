"""Objects of a store behind an address, through Arrow's file systems: Amazon S3 and what speaks like it, Google's, Azure's.

Who asks is told by the provider's own means: environment, profile or role of the machine. `AWS_ENDPOINT_URL`, or a source's
`endpoint`, leads to another server than Amazon's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tidemill.core.engine import Source
from tidemill.core.errors import ConfigError, DataError, Unavailable, Unsupported

SCHEMES = ("s3", "gs", "az")
CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 60.0
ATTEMPTS = 4


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One object."""

    path: str
    """Its address, with the scheme."""
    key: str
    """Its path in the file system: bucket and key."""
    below: str
    """Its path below the folder, or the fixed part of the pattern, that was asked for."""
    size: int
    changed_ns: int
    """When it was written, nanoseconds since 1970."""


def is_address(path: str) -> bool:
    """Whether the path begins with a scheme, such as `s3://`."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def stored_objects(source: Source) -> list[StoredObject]:
    """The objects at an address, sorted by key: one, those below a folder, or those that a pattern (`*`, `**`, `?`) matches.

    Raises:
        DataError: If the bucket is not there or may not be read.
        Unavailable: If the store does not answer.
        Unsupported: If no object store has that scheme.
    """
    from pyarrow.fs import FileSelector, FileType

    files, key = file_system(source)
    scheme = source.path.partition("://")[0]
    fixed = re.split(r"[*?\[]", key)[0]
    pattern = _pattern(key) if fixed != key else None
    folder = fixed.rpartition("/")[0] if pattern else key
    with answered(source.path):
        found = files.get_file_info(folder) if pattern is None else None
        if found is not None and found.type == FileType.File:
            infos, folder = [found], folder.rpartition("/")[0]
        else:
            infos = files.get_file_info(FileSelector(folder, recursive=True, allow_not_found=True))
    objects = [
        StoredObject(
            path=f"{scheme}://{info.path}", key=info.path, below=info.path[len(folder) :].lstrip("/"),
            size=info.size or 0, changed_ns=info.mtime_ns or 0,
        )
        for info in infos
        if info.type == FileType.File and (pattern is None or pattern.fullmatch(info.path))
    ]  # fmt: skip
    return sorted(objects, key=lambda entry: entry.key)


def object_version(entry: StoredObject, source: Source) -> str:
    """What changes when the object's bytes do: the store's ETag, or where it has none the time of writing."""
    files, _ = file_system(source)
    with answered(entry.path), files.open_input_stream(entry.key) as stream:
        tag = (stream.metadata() or {}).get("ETag")
    return f"etag {tag.decode()}" if tag else f"changed {entry.changed_ns}"


def file_system(source: Source) -> tuple[Any, str]:
    """Arrow's file system for an address, and the address's bucket and key in it.

    Raises:
        Unsupported: If no object store has that scheme.
    """
    scheme, _, key = source.path.partition("://")
    if scheme not in SCHEMES:
        raise Unsupported(
            f"source {source.path} must be a path or an object store's address ({', '.join(f'{name}://' for name in SCHEMES)})",
            hint="a database is read with source = { query = ..., url = ... }; other servers' files are downloaded first",
        )
    endpoint = source.endpoint
    if scheme == "s3":
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    with answered(source.path):
        return _made(scheme, key.partition("/")[0], endpoint, region), key.rstrip("/")


@lru_cache(maxsize=16)
def _made(scheme: str, bucket: str, endpoint: str | None, region: str | None) -> Any:
    from pyarrow import fs

    if scheme == "gs":
        return fs.GcsFileSystem(endpoint_override=endpoint)
    if scheme == "az":
        account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME") or os.environ.get("AZURE_STORAGE_ACCOUNT")
        if not account:
            raise ConfigError(f"source az://{bucket}: AZURE_STORAGE_ACCOUNT_NAME must name the storage account")
        key = os.environ.get("AZURE_STORAGE_ACCOUNT_KEY") or os.environ.get("AZURE_STORAGE_KEY")
        return fs.AzureFileSystem(account, account_key=key)
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
    limits = {"connect_timeout": CONNECT_TIMEOUT_S, "request_timeout": REQUEST_TIMEOUT_S, "retry_strategy": retries}
    if endpoint:
        return fs.S3FileSystem(endpoint_override=endpoint, region=region or "us-east-1", **limits)
    return fs.S3FileSystem(region=region or fs.resolve_s3_region(bucket), **limits)


@contextmanager
def answered(address: str) -> Iterator[None]:
    """A store's errors inside the block become Tidemill's."""
    try:
        yield
    except OSError as error:
        text = " ".join(str(error).split())
        # a refused or timed-out connection
        if re.search(r"NETWORK_CONNECTION|REQUEST_TIMEOUT|SLOW_DOWN|SERVICE_UNAVAILABLE|curlCode", text):
            raise Unavailable(f"the object store must answer, {address}: {text[:300]}", hint="is the endpoint right?") from error
        raise DataError(
            f"source {address} must be readable: {text[:300]}",
            hint="credentials come from the environment, a profile or the machine's role",
        ) from error


def _pattern(key: str) -> re.Pattern[str]:
    """A glob as a regular expression: `*` and `?` within a folder, `**/` over any number of them."""
    marks = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", key)
    return re.compile("".join(marks.get(part) or (part if part[:1] == "[" else re.escape(part)) for part in parts))
