"""The names that Kubernetes and NVIDIA's tools give to GPUs and to the links between them."""

from __future__ import annotations

from typing import Literal, get_args

GPU_RESOURCE = "nvidia.com/gpu"
"""The extended resource by which pods request whole GPUs; MIG slices may have one of their own."""

LinkKind = Literal["NVLink", "PIX", "PXB", "PHB", "NODE", "SYS"]
"""Links between GPUs as `nvidia-smi topo -m` names them."""

LINK_KINDS: tuple[str, ...] = get_args(LinkKind)
"""The fastest first."""

NVLINK: LinkKind = "NVLink"
SLOWEST_LINK = "SYS"
