"""What a call is and what its answer means, without a transport."""

from __future__ import annotations

import base64
import email.utils
import gzip
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tidemill.client.http1 import Reply
from tidemill.core.errors import ConfigError, DataError, TidemillError, Unavailable

JSON = "application/json"

Record = Mapping[str, Any] | str | bytes


@dataclass(frozen=True)
class Outgoing:
    """One request, before it is sent."""

    method: str
    path: str
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()


def address(model: str | None, version: str | None) -> str:
    """What comes before `/predict` for a model; nothing for the default one."""
    if model is None:
        return ""
    return f"/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version is not None else "")


def predict(at: str, record: Record) -> Outgoing:
    """The request for one record."""
    word = {str: "text", bytes: "image"}.get(type(record))
    return _post(f"{at}/predict", record if word is None else {word: record})


def predict_batch(at: str, records: Sequence[Record]) -> Outgoing:
    """The request for many records, many texts, or many images."""
    kinds = {type(record) for record in records}
    word = "texts" if kinds == {str} else "images" if kinds == {bytes} else "records"
    return _post(f"{at}/predict_batch", {word: list(records)})


def read_answer(reply: Reply) -> Any:
    """The value that an answer in JSON holds.

    Raises:
        TidemillError: As `check` does, and if the answer is not JSON.
    """
    check(reply)
    return _read_json(reply)


def check(reply: Reply) -> None:
    """Let pass what the server did.

    Raises:
        DataError: For 400, 413 and 422; carries the field.
        ConfigError: For 401, 403, 404, 405, 415 and what else is wrong with the call.
        Unavailable: For 408, 429, 503 and 504; says when to try again.
        TidemillError: For a failed server.
    """
    if reply.status < 300:
        return
    answer = _read_json(reply)
    told = answer.get("error") if isinstance(answer, dict) else None
    error = told if isinstance(told, dict) else {"reason": str(told or answer)}
    reason, hint = str(error.get("reason")), error.get("hint")
    if reply.status in (400, 413, 422):
        raise DataError(reason, field=error.get("field"), hint=hint)
    if reply.status in (408, 429, 503, 504):
        wait = retry_after(reply)
        raise Unavailable(reason, retry_after_s=1.0 if wait is None else wait, hint=hint)
    if reply.status < 500:
        raise ConfigError(reason, hint=hint)
    raise TidemillError(reason, hint=hint)


def retry_after(reply: Reply) -> float | None:
    """Seconds that the server asks to wait, as a number or until a date; None where it asks for nothing."""
    said = reply.headers.get("retry-after", "").strip()
    try:
        return (
            max(0.0, float(said)) if said[:1].isdecimal() else max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
        )
    except ValueError:
        return None


def unpacked(reply: Reply) -> Reply:
    """The answer with its body as it was before the server compressed it."""
    if reply.headers.get("content-encoding", "").lower() != "gzip":
        return reply
    try:
        return Reply(reply.status, reply.headers, gzip.decompress(reply.body))
    except (OSError, EOFError) as error:
        raise TidemillError(f"the server must answer with what it says is gzip: {error}") from error


def _post(path: str, value: Any) -> Outgoing:
    return Outgoing("POST", path, json_bytes(value), (("content-type", JSON),))


def _read_json(reply: Reply) -> Any:
    try:
        return json.loads(reply.body)
    except ValueError:
        raise TidemillError(f"the server must answer with JSON, got status {reply.status}", hint="is it a Tidemill server?") from None


def json_bytes(value: Any) -> bytes:
    """A value in JSON.

    Raises:
        DataError: If JSON cannot hold it.
    """
    try:
        return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"every text must be valid Unicode: {error.reason}") from error


def _plain(value: Any) -> Any:
    """A value as JSON has it: NaN, NaT and infinities as null, times as ISO 8601, NumPy scalars as numbers, bytes in base64."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if _is_missing(value):
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if not isinstance(value, (bool, int, float, str)):
        raise DataError(f"every value must be a number, text, true or false, a time or null, got {type(value).__name__}")
    return value


def _is_missing(value: Any) -> bool:
    """Whether a value is null: None, NaN, an infinity, and what stands for null in pandas."""
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or type(value).__name__ in ("NaTType", "NAType")
