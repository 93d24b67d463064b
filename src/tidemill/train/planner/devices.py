"""What a device can do by its maker's data sheet, and what this machine does by a quick look.

A matrix product never reaches the data sheet's peak for long; which share it reaches is calibrated (`constants`), a generation at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tidemill.core.contract import hardware
from tidemill.core.errors import NotFound

GIB = 2**30
TERA = 1e12


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device and how it is linked to others."""

    name: str
    generation: str
    """Key of the calibrated share of the peak; devices of one generation have it in common."""
    memory_bytes: float
    flops: Mapping[str, float]
    """Dense FLOP/s of matrix products by precision."""
    memory_bandwidth: float
    """Bytes a second between memory and cores."""
    link_bandwidth: float
    """Bytes a second and direction to another device of the node."""
    node_bandwidth: float
    """Bytes a second and direction of a device's own adapter to other nodes."""
    node_size: int
    """Devices of a node."""
    power_share: float = 1.0
    """Power limit over the data sheet's. The clock under full load follows its cube root (dynamic power is about clock x voltage squared)."""
    source: str = ""

    @property
    def clock_share(self) -> float:
        return float(self.power_share ** (1 / 3))


_A100 = "NVIDIA A100 data sheet (2021); HDR InfiniBand 200 Gb/s a device (DGX A100)"
_H100 = "NVIDIA H100 data sheet (2023); NDR InfiniBand or RoCE 400 Gb/s a device (DGX H100)"

DEVICES = {
    device.name: device
    for device in (
        Device(
            name="a100-40", generation="a100", memory_bytes=40 * GIB, flops={"fp32": 156 * TERA, "bf16": 312 * TERA, "fp16": 312 * TERA},
            memory_bandwidth=1.555e12, link_bandwidth=300e9, node_bandwidth=25e9, node_size=8, source=_A100,
        ),
        Device(
            name="a100-80", generation="a100", memory_bytes=80 * GIB, flops={"fp32": 156 * TERA, "bf16": 312 * TERA, "fp16": 312 * TERA},
            memory_bandwidth=2.039e12, link_bandwidth=300e9, node_bandwidth=25e9, node_size=8, source=_A100,
        ),
        Device(
            name="h100", generation="h100", memory_bytes=80 * GIB, flops={"fp32": 494.7 * TERA, "bf16": 989.4 * TERA, "fp16": 989.4 * TERA},
            memory_bandwidth=3.35e12, link_bandwidth=450e9, node_bandwidth=50e9, node_size=8, source=_H100,
        ),
        Device(
            name="h100-96-500w", generation="h100", memory_bytes=95 * GIB, flops={"fp32": 494.7 * TERA, "bf16": 989.4 * TERA, "fp16": 989.4 * TERA},
            memory_bandwidth=2.4e12, link_bandwidth=450e9, node_bandwidth=50e9, node_size=8, power_share=500 / 700,
            source="torchtitan, benchmarks/llama3_h100_202412_torchtitan.md: 96 GB HBM2e at 2.4 TB/s, 500 of 700 W; peak of the H100 data sheet",
        ),
        Device(
            name="h200", generation="h100", memory_bytes=140 * GIB, flops={"fp32": 494.7 * TERA, "bf16": 989.4 * TERA, "fp16": 989.4 * TERA},
            memory_bandwidth=4.8e12, link_bandwidth=450e9, node_bandwidth=50e9, node_size=8, source="NVIDIA H200 data sheet (2024)",
        ),
        Device(
            name="b200", generation="b200", memory_bytes=180 * GIB, flops={"fp32": 1100 * TERA, "bf16": 2250 * TERA, "fp16": 2250 * TERA},
            memory_bandwidth=7.7e12, link_bandwidth=900e9, node_bandwidth=50e9, node_size=8, source="NVIDIA DGX B200 data sheet (2024)",
        ),
    )
}  # fmt: skip

# Between processes of one machine, until `tidemill doctor --collectives` has measured it: gloo over loopback copies through the kernel.
_LOOPBACK = 1e9


def device(name: str) -> Device:
    """The device of that name; "cpu" is this machine, looked at for a tenth of a second.

    Raises:
        NotFound: If no device has that name.
    """
    if name == "cpu":
        return this_machine()
    if name not in DEVICES:
        raise NotFound("device", name, [*DEVICES, "cpu"])
    return DEVICES[name]


def this_machine() -> Device:
    """This machine as one device of which `count` ranks share the cores: FLOP/s and memory bandwidth as NumPy reaches them now, on one core."""
    cores = os.cpu_count() or 1
    flops = _product_flops()
    return Device(
        name="cpu",
        generation="cpu",
        memory_bytes=float(hardware()["memory_gb"]) * 1e9,
        flops={"fp32": flops, "bf16": flops, "fp16": flops},
        memory_bandwidth=_copy_bandwidth(),
        link_bandwidth=_LOOPBACK,
        node_bandwidth=_LOOPBACK,
        node_size=1_000_000,
        source=f"measured here in NumPy, one of {cores} cores",
    )


def _product_flops(size: int = 512) -> float:
    a = np.ones((size, size), np.float32)
    a @ a
    seconds = min(_timed(lambda: a @ a) for _ in range(5))
    return 2 * size**3 / seconds / min(os.cpu_count() or 1, 64)


def _copy_bandwidth(num_bytes: int = 2**25) -> float:
    a = np.ones(num_bytes, np.uint8)
    b = np.empty_like(a)
    return 2 * num_bytes / min(_timed(lambda: np.copyto(b, a)) for _ in range(3))


def _timed(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start
