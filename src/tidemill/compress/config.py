"""`[compress]`: known to the project file; this version does not compress yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tidemill.core.errors import Unsupported


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """Quantisation, pruning and distillation inside the contract."""

    unbuilt: ClassVar[dict[str, str]] = dict.fromkeys(
        ("goal", "techniques", "budget_s"), "a smaller model.max_depth or fewer rounds shrinks a package"
    )

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], path: str, where: str) -> CompressConfig:
        raise Unsupported(
            f"{path}: compression is not built in this version ({where})", hint="remove the section; contract.size still holds"
        )
