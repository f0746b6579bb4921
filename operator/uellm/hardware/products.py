"""What GPUs of a product reach, where nobody measured the one at hand.

Rates are those of large matrix products and copies, as the profiler would measure them: measured where a source is
named, otherwise shares of the data sheet (16-bit products 85 to 95 %, copies 86 %, links 80 %). Measured: H100, H200
(this project); A100, B200, B300, GH200 (mamf-finder of stas00/ml-engineering); FP8, L40S, RTX PRO 6000
(ai-dynamo/aiconfigurator, 8192^3 with vLLM's kernels). Consumer cards: products with 32-bit accumulation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from uellm.hardware.names import NVLINK, LinkKind


@dataclass(frozen=True, slots=True)
class Product:
    """A GPU by its rates, and the usual link between two of them."""

    name: str
    compute_capability: str
    memory_bytes: int
    bf16_flops_per_s: float
    """float16 where the GPU has no bfloat16."""
    fp8_flops_per_s: float | None
    """None: it has no tensor cores for FP8."""
    memory_bytes_per_s: float
    link_kind: LinkKind
    link_bytes_per_s: float
    """One way."""
    link_latency_s: float

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability, major and minor."""
        major, _, minor = self.compute_capability.partition(".")
        return int(major), int(minor)


def _product(
    name: str,
    capability: str,
    memory_gib: float,
    bf16_teraflops: float,
    fp8_teraflops: float,
    memory_terabytes_per_s: float,
    link: tuple[LinkKind, float, float],
) -> Product:
    kind, gigabytes_per_s, latency_us = link
    return Product(
        name=name,
        compute_capability=capability,
        memory_bytes=int(memory_gib * (1 << 30)),
        bf16_flops_per_s=bf16_teraflops * 1e12,
        fp8_flops_per_s=fp8_teraflops * 1e12 or None,
        memory_bytes_per_s=memory_terabytes_per_s * 1e12,
        link_kind=kind,
        link_bytes_per_s=gigabytes_per_s * 1e9,
        link_latency_s=latency_us * 1e-6,
    )


_PIX: tuple[LinkKind, float, float] = ("PIX", 22, 20)
_PIX5: tuple[LinkKind, float, float] = ("PIX", 45, 20)  # PCIe generation 5

# name, compute capability, GiB, TFLOP/s in 16 bits and in FP8, TB/s, link: kind, GB/s, microseconds
PRODUCTS = (
    _product("V100-32", "7.0", 31.74, 90, 0, 0.8, (NVLINK, 120, 15)),
    _product("T4", "7.5", 14.56, 45, 0, 0.26, ("PIX", 11, 20)),
    _product("2080Ti-22G", "7.5", 21.48, 45, 0, 0.53, ("PIX", 11, 20)),
    _product("A100-40", "8.0", 39.49, 285, 0, 1.35, (NVLINK, 250, 15)),
    _product("A100-80", "8.0", 79.25, 285, 0, 1.75, (NVLINK, 250, 15)),
    _product("A100-80-PCIe", "8.0", 79.25, 250, 0, 1.65, ("SYS", 10, 30)),
    _product("A10G", "8.6", 22.06, 62, 0, 0.5, _PIX),
    _product("A10", "8.6", 22.06, 110, 0, 0.52, _PIX),
    _product("A5000", "8.6", 23.57, 95, 0, 0.68, _PIX),
    _product("A6000", "8.6", 47.4, 130, 0, 0.68, _PIX),
    _product("A40", "8.6", 44.4, 130, 0, 0.6, _PIX),
    _product("RTX3090", "8.6", 23.56, 65, 0, 0.83, _PIX),
    _product("L4", "8.9", 22.03, 60, 110, 0.255, ("SYS", 12, 25)),
    _product("L20", "8.9", 44.5, 110, 210, 0.74, _PIX),
    _product("L40S", "8.9", 44.4, 200, 349, 0.72, _PIX),
    _product("L40", "8.9", 44.4, 160, 290, 0.72, _PIX),
    _product("RTX4090", "8.9", 23.52, 158, 300, 0.92, _PIX),
    _product("RTX4090D", "8.9", 23.52, 140, 270, 0.92, _PIX),
    _product("H100-80", "9.0", 79.18, 790, 1435, 3.0, (NVLINK, 380, 15)),
    _product("H100-80-PCIe", "9.0", 79.18, 600, 1050, 1.75, _PIX5),
    _product("H100-NVL", "9.0", 93.1, 620, 1100, 3.45, (NVLINK, 250, 15)),
    _product("H200", "9.0", 139.81, 790, 1458, 4.3, (NVLINK, 380, 15)),
    _product("GH200", "9.0", 94.5, 800, 1535, 3.5, (NVLINK, 380, 15)),
    _product("B200", "10.0", 178.35, 1650, 1650, 6.9, (NVLINK, 750, 15)),
    _product("B300", "10.3", 268.0, 1650, 1650, 6.9, (NVLINK, 750, 15)),
    _product("RTXPRO6000", "12.0", 94.97, 400, 736, 1.55, _PIX5),
    _product("RTX5090", "12.0", 31.36, 190, 370, 1.55, _PIX5),
    _product("RTX5080", "12.0", 15.5, 100, 200, 0.83, _PIX5),
    _product("GB10", "12.1", 119.7, 90, 170, 0.235, _PIX),
)
BY_NAME = {product.name: product for product in PRODUCTS}

# The driver's names, by parts that must all be there; the first that fits counts.
_DRIVER_NAMES: tuple[tuple[str, str], ...] = (
    ("GH200", "GH200"),
    ("H200", "H200"),
    ("H100 NVL", "H100-NVL"),
    ("H100 PCIe", "H100-80-PCIe"),
    ("H100", "H100-80"),
    ("B300", "B300"),
    ("B200", "B200"),
    ("GB10", "GB10"),
    ("A100-PCIE-40", "A100-40"),
    ("A100 40", "A100-40"),
    ("A100-SXM4-40", "A100-40"),
    ("A100 80GB PCIe", "A100-80-PCIe"),
    ("A100", "A100-80"),
    ("A10G", "A10G"),
    ("L40S", "L40S"),
    ("L40", "L40"),
    ("L20", "L20"),
    ("RTX PRO 6000", "RTXPRO6000"),
    ("RTX 5090", "RTX5090"),
    ("RTX 5080", "RTX5080"),
    ("RTX 4090 D", "RTX4090D"),
    ("RTX 4090", "RTX4090"),
    ("RTX 3090", "RTX3090"),
    ("RTX A6000", "A6000"),
    ("RTX A5000", "A5000"),
    ("V100", "V100-32"),
    ("2080 Ti", "2080Ti-22G"),
    ("NVIDIA A40", "A40"),
    ("NVIDIA A10", "A10"),
    ("NVIDIA L4", "L4"),
    ("T4", "T4"),
)

# Parts of boards (`GRID A100D-20C`, `NVIDIA A40-8Q`: vGPUs, which take turns with others) and boards of another speed.
_NO_PRODUCT = re.compile(r"-\d+[ABCQ](ME)?\d*$|\bLaptop\b|\bT4\d")


def product_of(driver_name: str) -> Product | None:
    """The product by the name that the driver gives, such as `NVIDIA H100 80GB HBM3`, or by its name here.

    None for vGPUs and laptops, too: how fast they are is known only by measuring them.
    """
    if driver_name in BY_NAME:
        return BY_NAME[driver_name]
    if _NO_PRODUCT.search(driver_name):
        return None
    return next((BY_NAME[name] for part, name in _DRIVER_NAMES if part in driver_name), None)


def nearest(
    bf16_flops_per_s: float, memory_bytes_per_s: float, memory_bytes: int, among: Sequence[Product] = PRODUCTS
) -> Product:
    """The product whose figures are the nearest: what is taken for a GPU of which only these are known."""

    def distance(product: Product) -> float:
        pairs = (
            (product.bf16_flops_per_s, bf16_flops_per_s),
            (product.memory_bytes_per_s, memory_bytes_per_s),
            (product.memory_bytes, memory_bytes),
        )
        return sum(math.log(one / other) ** 2 for one, other in pairs)

    return min(among, key=distance)
