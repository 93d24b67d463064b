"""Addresses to listen on, and to be found at."""

from __future__ import annotations

import ipaddress


def bound(host: str) -> str:
    """The address to listen on."""
    return "127.0.0.1" if host == "localhost" else host


def reachable(host: str) -> str:
    """Where this machine finds a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}.get(host, host)  # noqa: S104 - compared, never bound


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches whoever listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
