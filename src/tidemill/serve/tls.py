"""`[serve.tls]`: certificate and key, and whether they go together."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tidemill.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """Certificate and key in PEM; a running server follows the files when they are replaced."""

    cert: Path
    """The certificate, followed by those between it and its authority."""
    key: Path
    """Its private key, without a password."""
    min_version: Literal["1.2", "1.3"] = "1.2"
    """Oldest protocol taken."""

    def checked(self, folder: Path) -> tuple[Path, Path]:
        """The files' places, found to go together.

        Raises:
            ConfigError: If they cannot be read or do not go together.
        """
        self.context(folder)
        return folder / self.cert, folder / self.key

    def context(self, folder: Path) -> ssl.SSLContext:
        """What connections of a server are secured with.

        Raises:
            ConfigError: As above.
        """
        cert, key = folder / self.cert, folder / self.key
        made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        made.minimum_version = ssl.TLSVersion.TLSv1_3 if self.min_version == "1.3" else ssl.TLSVersion.TLSv1_2
        made.set_alpn_protocols(["http/1.1"])
        try:
            made.load_cert_chain(cert, key, password=_no_password)
        except (OSError, ValueError) as error:
            raise ConfigError(f"serve.tls: {cert} and {key} must be a certificate and its key in PEM: {error}") from error
        return made

    def stamp(self, folder: Path) -> Any:
        """What changes when a file is replaced; None while one is not there."""
        try:
            return [(stat.st_mtime_ns, stat.st_ino) for stat in ((folder / path).stat() for path in (self.cert, self.key))]
        except OSError:
            return None


def _no_password() -> str:
    raise ValueError("the key has a password")
