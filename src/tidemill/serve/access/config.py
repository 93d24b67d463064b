"""`[serve.auth]`: which credentials are taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from tidemill.core.errors import ConfigError
from tidemill.serve.access.scopes import VERBS

# Signatures by a private key only: with a shared secret, whoever can check a token can make one.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


@dataclass(frozen=True, kw_only=True)
class JwtConfig:
    """Which JSON Web Tokens are taken (RFC 7519, RFC 8725)."""

    jwks: str
    """Key set of the issuer: an https address (http on loopback only) or a file, which is read again when it changes."""
    audience: str
    """What the token's `aud` must name: this service."""
    issuer: str | None = None
    """What the token's `iss` must be; any when absent."""
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256")
    """Signature algorithms taken; the token's own word is not trusted."""
    leeway_s: float = field(default=30.0, metadata={"min": 0.0, "max": 300.0})
    """How far clocks may differ, in seconds."""

    def check(self) -> None:
        address = urlsplit(self.jwks)
        if address.scheme == "http" and address.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise ConfigError(
                f"serve.auth.jwt.jwks: must be an https address or a file, got {self.jwks!r}", hint="keys must not be altered on their way"
            )
        if not self.algorithms:
            raise ConfigError("serve.auth.jwt.algorithms: must name at least one, got none")
        if not self.audience:
            raise ConfigError("serve.auth.jwt.audience: must name this service, is empty")


@dataclass(frozen=True, kw_only=True)
class AuthConfig:
    """Who may ask. With this section every address but health needs a credential."""

    keys: Path | None = None
    """File of API keys, hashed, as `tidemill serve keys` writes it; relative to the project file."""
    jwt: JwtConfig | None = None
    """Tokens that are taken."""
    open: tuple[Literal["predict", "read", "metrics"], ...] = ()
    """Verbs that need no credential: predict, read, metrics; admin always does."""

    def check(self) -> None:
        if self.keys is None and self.jwt is None:
            raise ConfigError("serve.auth: must name keys or jwt, names neither", hint='keys = ".tidemill/keys.json"')
        if set(self.open) >= set(VERBS) - {"admin"}:
            raise ConfigError("serve.auth.open: must leave a verb that needs a credential", hint="without [serve.auth] nothing needs one")
        if self.jwt is not None:
            self.jwt.check()
