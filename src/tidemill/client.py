"""A small client of a Tidemill server, on the standard library alone.

`Outgoing` and `read_answer` hold what a call is and means without a transport; an asynchronous client is these two over
another connection.
"""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

from tidemill.core.errors import ConfigError, DataError, TidemillError, Unavailable

Record = Mapping[str, Any] | str


class Client:
    """Asks one server. Keeps its connection; for one thread at a time.

    Example:
        >>> client = Client("http://127.0.0.1:8000")
        >>> client.url
        'http://127.0.0.1:8000'
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, model: str | None = None, version: str | None = None, timeout_s: float = 30.0
    ) -> None:
        """Make a client; nothing is sent.

        Args:
            model: Name of the model to ask; the server's default when absent.
            version: Version of it; the server's first of that name when absent.
            timeout_s: Longest wait for the server at any one point, in seconds.

        Raises:
            ConfigError: If `url` is no http address, or a version is given without a model.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise ConfigError(f"url: must be like http://127.0.0.1:8000, got {url!r}")
        if version is not None and model is None:
            raise ConfigError(f"model: must be given with version {version!r}")
        self.url = f"http://{parts.netloc}{parts.path.rstrip('/')}"
        self._prefix = parts.path.rstrip("/")
        self._at = address(model, version)
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout_s)

    def predict(self, record: Record) -> dict[str, Any]:
        """The answer for one record: a mapping of fields, or a text for a text package.

        Raises:
            DataError: If a field is missing or wrong; names it.
            Unavailable: If the server does not answer now.
        """
        return dict(self._ask(predict(self._at, record)))

    def predict_batch(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """The answers for many records, in their order.

        Raises:
            DataError: If a field is missing or wrong; names it.
            Unavailable: If the server does not answer now.
        """
        return list(self._ask(predict_batch(self._at, records))["predictions"])

    def health(self) -> dict[str, Any]:
        """What the server says of itself."""
        return dict(self._ask(Outgoing("GET", "/health")))

    def model_info(self) -> dict[str, Any]:
        """Name, version, signature and contract of the model."""
        return dict(self._ask(Outgoing("GET", f"{self._at}/model_info")))

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _ask(self, outgoing: Outgoing) -> Any:
        """The answer; asked once more where a kept connection had been closed meanwhile, which changes nothing on the server."""
        was_kept = self._connection.sock is not None
        try:
            return self._ask_once(outgoing)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            self._connection.close()
            if not was_kept:
                raise self._unreachable(error) from error
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._unreachable(error) from error
        try:
            return self._ask_once(outgoing)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._unreachable(error) from error

    def _ask_once(self, outgoing: Outgoing) -> Any:
        headers = {"content-type": "application/json"} if outgoing.body is not None else {}
        self._connection.request(outgoing.method, self._prefix + outgoing.path, outgoing.body, headers)
        response = self._connection.getresponse()
        return read_answer(response.status, response.read(), retry_after=response.headers.get("retry-after"))

    def _unreachable(self, error: Exception) -> Unavailable:
        reason = "no answer in time" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
        return Unavailable(f"the server at {self.url} must answer: {reason}", hint="is it running? tidemill serve NAME")


@dataclass(frozen=True)
class Outgoing:
    """One request, before it is sent."""

    method: str
    path: str
    body: bytes | None = None


def address(model: str | None, version: str | None) -> str:
    """What comes before `/predict` for a model; nothing for the default one."""
    if model is None:
        return ""
    return f"/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version is not None else "")


def predict(at: str, record: Record) -> Outgoing:
    """The request for one record."""
    return Outgoing("POST", f"{at}/predict", _json({"text": record} if isinstance(record, str) else record))


def predict_batch(at: str, records: Sequence[Record]) -> Outgoing:
    """The request for many records, or many texts."""
    texts = bool(records) and all(isinstance(record, str) for record in records)
    return Outgoing("POST", f"{at}/predict_batch", _json({"texts" if texts else "records": list(records)}))


def read_answer(status: int, body: bytes, *, retry_after: str | None = None) -> Any:
    """What a response means.

    Raises:
        DataError: For 400, 413 and 422; carries the field.
        ConfigError: For 404, 405, 415 and what else is wrong with the call.
        Unavailable: For 408, 429 and 503; says when to try again.
        TidemillError: For a failed server, or an answer that is not JSON.
    """
    try:
        answer = json.loads(body)
    except ValueError:
        raise TidemillError(f"the server must answer with JSON, got status {status}", hint="is it a Tidemill server?") from None
    if status < 300:
        return answer
    told = answer.get("error") if isinstance(answer, dict) else None
    error = told if isinstance(told, dict) else {"reason": str(told or answer)}
    reason, hint = str(error.get("reason")), error.get("hint")
    if status in (400, 413, 422):
        raise DataError(reason, field=error.get("field"), hint=hint)
    if status in (408, 429, 503):
        wait = float(retry_after) if retry_after is not None and retry_after.isdecimal() else 1.0
        raise Unavailable(reason, retry_after_s=wait, hint=hint)
    if status < 500:
        raise ConfigError(reason, hint=hint)
    raise TidemillError(reason, hint=hint)


def _json(value: Any) -> bytes:
    try:
        return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"every text must be valid Unicode: {error.reason}") from error


def _plain(value: Any) -> Any:
    """A value as JSON has it: NaN, NaT and infinities as null, times as ISO 8601, NumPy scalars as numbers."""
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
    if not isinstance(value, (bool, int, float, str)):
        raise DataError(f"every value must be a number, text, true or false, a time or null, got {type(value).__name__}")
    return value


def _is_missing(value: Any) -> bool:
    """Whether a value is null: None, NaN, an infinity, and what stands for null in pandas."""
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or type(value).__name__ in ("NaTType", "NAType")
