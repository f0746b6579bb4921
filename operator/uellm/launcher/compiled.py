"""Where the engine keeps what it compiles, so that the next engine of the same kind need not compile it anew.

    COMPILED_DIRECTORY/VERSION/GPUS/...     version of vLLM, products of the GPUs

vLLM's own caches are named by digests of all that they depend on. Those of the libraries below it are not, so each
version of the engine and each kind of GPUs has directories of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

LEAST_FREE_BYTES = 2 << 30
"""The engine fails where it cannot write, so a volume that is nearly full is left alone."""
# Variables of vLLM 0.32, PyTorch, Triton, FlashInfer, TileLang and the CUDA driver. DeepGEMM follows the first, and so
# does all of PyTorch that vLLM itself compiles: it sets the second anew, below the first.
_VARIABLES = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TILELANG_CACHE_DIR": "tilelang",
    "CUDA_CACHE_PATH": "cuda",
}


def compile_cache(directory: Path, version: str, products: Iterable[str]) -> tuple[Path | None, str]:
    """The directory for engines of this version on these GPUs; None, and why, where it cannot be used.

    Where `directory` itself is not there, nothing is said: the service keeps nothing.
    """
    if not directory.is_dir():
        return None, ""
    place = directory / _name(version) / (_name("+".join(sorted(set(products)))) or "unknown")
    try:
        place.mkdir(parents=True, exist_ok=True)
        draft = place / f".{os.getpid()}"
        draft.touch()
        draft.unlink(missing_ok=True)  # another replica's launcher may have the same process id
        found = os.statvfs(place)
    except OSError as error:
        return None, f"{place}: {error.strerror}"
    free = found.f_bavail * found.f_frsize
    if free < LEAST_FREE_BYTES:
        return None, f"{place}: {free >> 20} MiB are free, and {LEAST_FREE_BYTES >> 20} MiB are needed"
    return place, ""


def cache_variables(place: Path | None, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that lead there. One that the user has set to a place of his own stays."""
    if place is None:
        return {}
    home = environment.get("HOME") or "/"
    ours = (name for name in _VARIABLES if _is_ours(environment.get(name), home))
    return {name: str(place / _VARIABLES[name]) for name in ours}


def _is_ours(value: str | None, home: str) -> bool:
    return not value or value.startswith(f"{home.rstrip('/')}/")


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", text).strip("-.")
