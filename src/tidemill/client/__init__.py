"""Clients of a Tidemill server, on the standard library and NumPy alone: `Client`, and `AsyncClient` for an event loop.

What a call is and means (`calls`, `rows`, `tensors`), when it is sent again (`asking`) and how HTTP is written (`http1`) knows no
connection; the two clients are thin transports of the same steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidemill.client.sync import Client

if TYPE_CHECKING:
    from tidemill.client.aio import AsyncClient

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    if name == "AsyncClient":  # asyncio is imported with it
        from tidemill.client.aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module 'tidemill.client' has no attribute {name!r}")
