"""vLLM's scheduler for the virtual engine: imported where it is installed, and built without a model."""

from __future__ import annotations

import importlib
import json
import logging
import os
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from uellm.errors import CannotBeDone
from uellm.planner.cost.engine_file import EngineFile

FCFS = "fcfs"
PRIORITY = "priority"


@cache
def vllm() -> Any:
    """The vLLM names used here. Raises CannotBeDone where vLLM is not installed."""
    for variable, value in {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("vllm").setLevel(logging.ERROR)
    names = {
        "vllm.config": ("CacheConfig", "DeviceConfig", "ModelConfig", "SchedulerConfig", "VllmConfig"),
        "vllm.sampling_params": ("SamplingParams",),
        "vllm.v1.core.sched.scheduler": ("Scheduler",),
        "vllm.v1.kv_cache_interface": ("FullAttentionSpec", "KVCacheConfig", "KVCacheGroupSpec"),
        "vllm.v1.outputs": ("ModelRunnerOutput",),
        "vllm.v1.request": ("Request", "RequestStatus"),
        "vllm.v1.structured_output": ("StructuredOutputManager",),
    }
    try:
        torch = importlib.import_module("torch")
        found = {name: getattr(importlib.import_module(module), name) for module in names for name in names[module]}
    except ImportError as error:
        remedy = "pip install 'uellm-operator[engine-cpu,evaluate]'"
        raise CannotBeDone(f"vLLM's scheduler is not installed ({error}): {remedy}") from error
    torch.set_num_threads(1)
    return SimpleNamespace(**found, float16=torch.float16)


def _hf_config(max_model_len: int) -> dict[str, Any]:
    """The smallest model that vLLM supports; its scheduler only needs the longest context."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "num_hidden_layers": 1,
        "vocab_size": 1000,
        "max_position_embeddings": max_model_len,
        "torch_dtype": "float16",
    }


def build_scheduler(engine: EngineFile, policy: str, max_num_batched_tokens: int) -> Any:
    """A `vllm.v1.core.sched.scheduler.Scheduler` with the engine's limits; `policy` is FCFS or PRIORITY."""
    v = vllm()
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(_hf_config(engine.max_model_len)))
        model = v.ModelConfig(
            model=directory, skip_tokenizer_init=True, dtype="float16", seed=0, max_model_len=engine.max_model_len
        )
    scheduling = v.SchedulerConfig(
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=engine.max_model_len,
        enable_chunked_prefill=True,
        policy=policy,
        async_scheduling=False,
        is_encoder_decoder=False,
    )
    cache_config = v.CacheConfig(block_size=engine.block_tokens, enable_prefix_caching=True)
    config = v.VllmConfig(
        model_config=model, scheduler_config=scheduling, cache_config=cache_config, device_config=v.DeviceConfig("cpu")
    )
    spec = v.FullAttentionSpec(block_size=engine.block_tokens, num_kv_heads=1, head_size=1, dtype=v.float16)
    # vLLM reserves one block, the null block, which never holds a token.
    cache_config.num_gpu_blocks = engine.kv_blocks
    blocks = v.KVCacheConfig(
        num_blocks=engine.kv_blocks, kv_cache_tensors=[], kv_cache_groups=[v.KVCacheGroupSpec(["layer"], spec)]
    )
    return v.Scheduler(
        vllm_config=config,
        kv_cache_config=blocks,
        log_stats=False,
        structured_output_manager=v.StructuredOutputManager(config),
        block_size=engine.block_tokens,
    )
