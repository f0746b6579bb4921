"""What differs between versions of vLLM, where predictions show it."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Start-up logs of published runs: from this version on, CUDA graphs are taken off the KV cache, and the default of
# --gpu-memory-utilization is higher by as much.
GRAPHS_COUNTED = (0, 21)
# From this version on, the server's processes no longer keep the GPU waiting for every sequence of a step.
OVERLAPPED = (0, 12)
# vLLM's own sampler sorts the logits in 32 bits with 64-bit indices. Start-up logs show 38.5 bytes a logit.
SAMPLER_BYTES_PER_LOGIT = 38.5
# FlashInfer's sampler does not sort. vLLM's images use it from this version on, on GPUs of this compute capability on.
FLASHINFER_SAMPLER = (0, 19)
FLASHINFER_CAPABILITY = (9, 0)
FLASHINFER_BYTES_PER_LOGIT = 14.0

_VERSION = re.compile(r"v?(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class EngineVersion:
    """A version of vLLM, by what predictions need of it."""

    sampler_bytes_per_logit: float = SAMPLER_BYTES_PER_LOGIT
    counts_graphs: bool = True
    utilization: str = "0.92"
    """The default of --gpu-memory-utilization."""
    overlaps: bool = True
    """Whether sequences are prepared while the GPU computes."""


CURRENT = EngineVersion()


def engine_version(text: str | None, capability: tuple[int, int] = (0, 0)) -> EngineVersion:
    """The facts of a version such as 0.11.2 on GPUs of a compute capability.

    Where the text names no version, it is the current one, with the sampler that takes more memory.
    """
    match = _VERSION.match(text or "")
    if match is None:
        return CURRENT
    version = int(match[1]), int(match[2])
    flashinfer = version >= FLASHINFER_SAMPLER and capability >= FLASHINFER_CAPABILITY
    return EngineVersion(
        sampler_bytes_per_logit=FLASHINFER_BYTES_PER_LOGIT if flashinfer else SAMPLER_BYTES_PER_LOGIT,
        counts_graphs=version >= GRAPHS_COUNTED,
        utilization="0.92" if version >= GRAPHS_COUNTED else "0.9",
        overlaps=version >= OVERLAPPED,
    )
