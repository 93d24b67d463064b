"""JSON Web Tokens of an issuer: signature by one of its keys, audience, time, scopes. The checking itself is PyJWT's."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tidemill.core.errors import ConfigError, Unavailable
from tidemill.core.load import need
from tidemill.serve.access.config import JwtConfig
from tidemill.serve.access.scopes import Caller

# A fetched key set is taken for fresh this long; an unknown key id asks again, but no sooner than `PATIENCE_S` after the last time.
FRESH_S = 300.0
PATIENCE_S = 5.0
TIMEOUT_S = 3.0
MAX_BYTES = 1_000_000


class Tokens:
    """Checks tokens against an issuer's key set. Safe from several threads.

    Raises:
        ConfigError: If the key set is a file that is not there or holds no key.
        MissingDependency: If the extra [auth] is not installed.
    """

    def __init__(self, config: JwtConfig, *, folder: Path) -> None:
        self._jwt = need("jwt", "serve.auth.jwt")
        need("cryptography", "serve.auth.jwt")
        self._config = config
        self._keys = KeySet(config.jwks, folder=folder, jwt=self._jwt, algorithms=config.algorithms)

    def caller(self, token: str) -> Caller:
        """Whose token it is: its subject, with the scopes of its claim `scope` (RFC 8693) or `scp`.

        Raises:
            PermissionError: If it may not be taken; says why, without the token.
            Unavailable: If the key set cannot be fetched and none is known.
        """
        jwt, config = self._jwt, self._config
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm not in config.algorithms:
                raise PermissionError(f"the token is signed with {str(algorithm)[:20]!r}, taken are {', '.join(config.algorithms)}")
            key = self._keys.find(header.get("kid"), str(algorithm))
            claims = jwt.decode(
                token,
                key,
                algorithms=list(config.algorithms),
                audience=config.audience,
                issuer=config.issuer,
                leeway=config.leeway_s,
                options={"require": ["exp", "aud", *(["iss"] if config.issuer else [])]},
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise PermissionError(f"the token may not be taken: {type(error).__name__}: {error}") from error
        said = claims.get("scope", claims.get("scp", ""))
        scopes = (
            said.split() if isinstance(said, str) else [scope for scope in said if isinstance(scope, str)] if isinstance(said, list) else []
        )
        return Caller(name=str(claims.get("sub", "")), scopes=frozenset(scopes))


class KeySet:
    """The public keys of an issuer by id, from a file or an address.

    An address is asked from a thread of its own, so that nobody waits for it: a token of a key that is not known yet is told to come again.
    """

    def __init__(self, source: str, *, folder: Path, jwt: Any, algorithms: tuple[str, ...]) -> None:
        self._address = source if urlsplit(source).scheme in ("http", "https") else None
        self._path = folder / source
        self._jwt = jwt
        self._algorithms = algorithms
        self._lock = threading.Lock()
        self._keys: list[Any] = []
        self._fetched = float("-inf")
        self._tried = float("-inf")
        self._fetching: threading.Thread | None = None
        self._stamp: int | None = None
        if self._address is None:
            self._read()
        else:
            self._fetch(self._address)

    def find(self, key_id: Any, algorithm: str) -> Any:
        """The key that a token names, or the only one that fits its algorithm where it names none.

        Raises:
            PermissionError: If there is no such key.
            Unavailable: If the key may be a new one and the issuer is being asked.
        """
        if self._address is None:
            with self._lock:
                self._read()
        elif time.monotonic() - self._fetched > FRESH_S:
            self._ask(self._address)
        found = self._matching(key_id, algorithm)
        if not found and self._address is not None and self._ask(self._address):
            raise Unavailable("the issuer of the token is being asked for its keys", retry_after_s=1.0)
        if len(found) != 1:
            raise PermissionError("the token names no key of its issuer")
        return found[0].key

    def _matching(self, key_id: Any, algorithm: str) -> list[Any]:
        """Keys of this id whose own kind goes with the algorithm: no key is used for a kind of signature that it was not made for."""
        fitting = [key for key in self._keys if key.algorithm_name == algorithm]
        return fitting if key_id is None else [key for key in fitting if key.key_id == key_id]

    def _ask(self, address: str) -> bool:
        """Whether the issuer is being asked now; it is not where that was tried a moment ago."""
        with self._lock:
            if self._fetching is not None and self._fetching.is_alive():
                return True
            if time.monotonic() - self._tried < PATIENCE_S:
                return False
            self._tried = time.monotonic()
            self._fetching = threading.Thread(target=self._fetch, args=(address,), daemon=True, name="jwks")
            self._fetching.start()
            return True

    def _fetch(self, address: str) -> None:
        """Ask the issuer; where it does not answer, the keys stay as they were."""
        self._tried = time.monotonic()
        with suppress(OSError, ConfigError):
            with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:  # http or https, by the config's check
                keys = self._parsed(answer.read(MAX_BYTES))
            self._keys, self._fetched = keys, time.monotonic()

    def _read(self) -> None:
        """The file, where it changed; one that is unreadable leaves the keys as they were, but for the first time."""
        try:
            stamp = self._path.stat().st_mtime_ns
            if stamp != self._stamp:
                self._keys = self._parsed(self._path.read_bytes())
                self._stamp = stamp
        except (OSError, ConfigError) as error:
            if self._stamp is None:
                raise ConfigError(f"serve.auth.jwt.jwks: {self._path} must be a key set: {error}") from error

    def _parsed(self, content: bytes) -> list[Any]:
        try:
            entries = [entry for entry in json.loads(content)["keys"] if entry.get("use", "sig") == "sig"]
            keys = [
                self._jwt.PyJWK(entry, algorithm=algorithm)
                for entry in entries
                for algorithm in self._algorithms
                if entry.get("alg", algorithm) == algorithm and _goes_with(entry, algorithm)
            ]
        except (ValueError, KeyError, TypeError, AttributeError, self._jwt.PyJWTError) as error:
            raise ConfigError(f"a key set must be JSON with keys (RFC 7517): {type(error).__name__}") from error
        if not keys:
            raise ConfigError(f"a key set must hold a key for {', '.join(self._algorithms)}, holds none")
        return keys


def _goes_with(entry: dict[str, Any], algorithm: str) -> bool:
    """Whether a key of this type and curve can make such signatures."""
    kinds = {"R": ("RSA", None), "P": ("RSA", None), "E": ("EC", {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}.get(algorithm))}
    kind, curve = ("OKP", None) if algorithm == "EdDSA" else kinds[algorithm[0]]
    return entry["kty"] == kind and (curve is None or entry.get("crv") == curve)
