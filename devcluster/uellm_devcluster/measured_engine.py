"""`python -m uellm_devcluster.measured_engine CONFIG.json --layers 3,5`: steps of a real vLLM on the CPU, by stage.

The model has the given configuration and random weights. Each stage is a process with a CPU of its own. The output is
one JSON document:

    {"memory": [{"weights", "grown", "kv"} by stage], "kvTokens",
     "rounds": [{"name", "seconds", "tokens", "steps": [[step, ...] by stage]}, ...]}
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

KV_CACHE_BYTES = 128 << 20


def main() -> int:
    """Start the engine, run the loads one after the other, print the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="the model's config.json")
    parser.add_argument("--layers", required=True, help="layers by stage, such as 3,5")
    parser.add_argument("--loads", required=True, help="JSON: [[name, requests, prompt tokens, output tokens], ...]")
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--sequences", type=int, default=16)
    args = parser.parse_args()
    # The engine logs to standard output, which is reserved for the document.
    document_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(Path(args.config).read_text())
        result = measure(directory, args.layers, json.loads(args.loads), args.chunk, args.sequences)
    document_to.write(json.dumps(result))
    document_to.flush()
    return 0


def measure(directory: str, layers: str, loads: list[list[Any]], chunk: int, sequences: int) -> dict[str, Any]:
    """The document that the module's docstring describes."""
    stages = len(layers.split(","))
    os.environ.update(environment(layers))
    from vllm import LLM

    llm = LLM(
        model=directory,
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=1024,
        max_num_batched_tokens=chunk,
        max_num_seqs=sequences,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        pipeline_parallel_size=stages,
        distributed_executor_backend="mp",
        compilation_config={"mode": 2, "backend": "eager"},
        enable_prefix_caching=False,
        disable_log_stats=True,
        worker_cls="uellm_devcluster.timedworker.TimedWorker",
    )
    memory = llm.collective_rpc("memory_held")
    rounds = [_round(llm, *load) for load in loads]
    cache = llm.llm_engine.vllm_config.cache_config
    return {"memory": memory, "kvTokens": (cache.num_gpu_blocks or 0) * cache.block_size, "rounds": rounds}


def environment(layers: str) -> dict[str, str]:
    """The environment with which the CPU engine puts each stage on a CPU of its own and uses only this machine."""
    stages = len(layers.split(","))
    cpus = sorted(os.sched_getaffinity(0))[:stages]
    settings = {
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(str(cpu) for cpu in cpus),
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    return settings | ({"VLLM_PP_LAYER_PARTITION": layers} if stages > 1 else {})


def _round(llm: Any, name: str, requests: int, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    """One load. All its requests arrive at once, and every prompt is different."""
    from vllm import SamplingParams

    llm.collective_rpc("steps_taken")
    prompts = [
        {"prompt_token_ids": [3 + (7 * request + token) % 1000 for token in range(prompt_tokens)]}
        for request in range(requests)
    ]
    sampling = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True, detokenize=False)
    began = time.perf_counter()
    llm.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - began
    steps = llm.collective_rpc("steps_taken")
    return {"name": name, "seconds": seconds, "tokens": requests * output_tokens, "steps": steps}


if __name__ == "__main__":
    sys.exit(main())
