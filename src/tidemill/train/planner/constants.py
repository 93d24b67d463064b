"""The few numbers that no data sheet says: calibrated on some published runs, tested on the others (`benchmarks/planner`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What turns peaks into times. Fitted ones say so; the rest are published or set beforehand."""

    product_share: Mapping[str, float] = field(default_factory=lambda: {"a100": 0.74, "h100": 0.58, "b200": 0.58, "cpu": 1.0})
    """Share of the peak that products hold in training, by generation. Fitted for a100 and h100; b200 takes h100's, a CPU's peak is measured."""
    link_share: float = 0.89
    """Share of a link's bandwidth that collectives reach in a node. Fitted."""
    unfused: float = 2.63
    """Times the traffic of element-wise work without a compiler that fuses it. Fitted."""
    attention_share: float = 0.6
    """Rate of a fused attention kernel over that of products (Dao 2023, figure 4: 0.5 to 0.7 of what matrix products reach)."""
    memory_share: float = 0.85
    """Share of the memory's bandwidth that streams reach (STREAM on A100 and H100: 0.85 to 0.92)."""
    node_share: float = 0.9
    """Share of an adapter's bandwidth between nodes (nccl-tests on 200 and 400 Gb/s: about 0.85 to 0.95)."""
    link_alpha_s: float = 4e-6
    """Latency of a step in a node."""
    node_alpha_s: float = 12e-6
    """Latency of a step between nodes."""


CALIBRATED = Constants()
