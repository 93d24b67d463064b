"""`[stream]`: known to the project file; this version does not run streams yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tidemill.core.errors import Unsupported


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Predictions over a stream in micro-batches."""

    unbuilt: ClassVar[dict[str, str]] = dict.fromkeys(("source", "window", "keys", "sink"), "tidemill predict answers for files")

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], path: str, where: str) -> StreamConfig:
        raise Unsupported(f"{path}: streams are not built in this version ({where})", hint="tidemill predict answers for files")
