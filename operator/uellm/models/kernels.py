"""The number formats for which engines have matrix kernels of their own, and so rates of their own."""

from __future__ import annotations

from typing import Literal, get_args

Kernel = Literal["16-bit", "fp8", "fp8-block", "int4", "mxfp4", "nvfp4"]
"""16-bit: also float32. fp8: also INT8. int4: all integer formats of four bits or fewer, unpacked to 16 bits."""

KERNELS: tuple[Kernel, ...] = get_args(Kernel)
