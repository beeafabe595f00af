"""Roofline: the least time that each operator can take, by a device's peak rate and its memory bandwidth.

Bounds, not measurements. An operator is bounded from below if its tensors come from memory and go back there, as they
do in layer-by-layer execution of maps larger than the caches; where tensors stay in a cache, the memory term is no
bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from hanax.devices._cost_models import Setting
from hanax.search_spaces import Operator

BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """Datasheet figures of one device.

    Attributes:
        name: In the device's name, ``roofline-NAME``.
        dtype: The number format of weights and activations that `peak_macs_per_s` is for.
        peak_macs_per_s: Multiply-accumulates per second at `dtype`, dense.
        memory_bytes_per_s: Bandwidth of the memory that holds weights and activations.
        source: Where the figures were read, and how the peak follows from them.

    Raises:
        ValueError: A rate is not positive.
    """

    name: str
    dtype: Literal["fp32", "fp16", "int8"]
    peak_macs_per_s: float
    memory_bytes_per_s: float
    source: str

    def __post_init__(self) -> None:
        for name in ("peak_macs_per_s", "memory_bytes_per_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{self.name}: {name} must be positive; it is {getattr(self, name)}")


def roofline_latency_s(macs: int | float, traffic_bytes: int | float, device: DeviceProfile) -> float:
    """Lower bound on one operator's latency, in seconds.

    The operator takes at least its compute time and at least its memory time: ``max(macs / peak, traffic / bandwidth)``
    (Williams et al., 2009, doi:10.1145/1498765.1498785).
    """
    return max(macs / device.peak_macs_per_s, traffic_bytes / device.memory_bytes_per_s)


@dataclass(frozen=True, slots=True)
class Roofline:
    """The sum of the roofline bounds of all operators, which run one after the other; for one image.

    Every operator reads its inputs and weights from memory and writes its output there.
    """

    profile: DeviceProfile
    costs: ClassVar[tuple[str, ...]] = ("latency_ms",)
    combine: ClassVar[Literal["sum", "max"]] = "sum"
    reads_names: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """``roofline-`` and the profile's name."""
        return f"roofline-{self.profile.name}"

    @property
    def description(self) -> str:
        """The figures it uses."""
        return (
            f"a bound, no measurement: {self.profile.peak_macs_per_s / 1e9:g} GMAC/s in {self.profile.dtype}, "
            f"{self.profile.memory_bytes_per_s / 1e9:g} GB/s"
        )

    @property
    def source(self) -> str:
        """That of the figures."""
        return self.profile.source

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The figures."""
        return (
            ("dtype", self.profile.dtype),
            ("peak_macs_per_s", self.profile.peak_macs_per_s),
            ("memory_bytes_per_s", self.profile.memory_bytes_per_s),
        )

    def costs_of(self, operators: list[Operator]) -> tuple[float, ...]:
        """The bound of `operators`, in ms."""
        size = BYTES[self.profile.dtype]
        return (1e3 * sum(roofline_latency_s(op.macs, op.traffic_values * size, self.profile) for op in operators),)


PROFILES = (
    DeviceProfile(
        "cortex-a53",
        "fp32",
        4 * 1.2e9,
        3.6e9,
        "Raspberry Pi 3 Model B, one core: one 128-bit FMA a cycle (4 MACs; two 64-bit NEON pipes) at 1.2 GHz; "
        "LPDDR2-900, 32 bits wide",
    ),
    DeviceProfile(
        "cortex-a72",
        "fp32",
        4 * 1.5e9,
        12.8e9,
        "Raspberry Pi 4 Model B, one core: one 128-bit FMA a cycle (4 MACs), as WikiChip, 'FLOPS', has for the "
        "Cortex-A57 that it follows, at 1.5 GHz; LPDDR4-3200, 32 bits wide",
    ),
    DeviceProfile(
        "cortex-a76",
        "fp32",
        8 * 2.4e9,
        17.068e9,
        "Raspberry Pi 5, one core: two 128-bit FMAs a cycle (8 MACs; WikiChip, 'FLOPS') at 2.4 GHz; LPDDR4X-4267, "
        "32 bits wide",
    ),
    DeviceProfile(
        "cortex-m7",
        "int8",
        2 * 480e6,
        1.92e9,
        "STM32H743 (ST DS12110): one SMLAD a cycle (2 MACs of 16-bit values, to which int8 is widened; Armv7E-M "
        "Architecture Reference Manual) at 480 MHz; AXI SRAM, 64 bits wide at 240 MHz",
    ),
    DeviceProfile(
        "jetson-nano",
        "fp16",
        236e9,
        25.6e9,
        "NVIDIA Jetson Nano module: 128 Maxwell cores at 921.6 MHz, two fp16 MACs a cycle each, the datasheet's 472 "
        "GFLOPS; LPDDR4-3200, 64 bits wide",
    ),
    DeviceProfile(
        "epyc-7742",
        "fp32",
        16 * 3.4e9,
        204.8e9,
        "AMD EPYC 7742 (Zen 2), one core: two 256-bit FMAs a cycle (16 MACs; WikiChip, 'FLOPS') at the maximum boost "
        "of 3.4 GHz; eight channels of DDR4-3200, all for this core",
    ),
)

ROOFLINES = tuple(Roofline(profile) for profile in PROFILES)
