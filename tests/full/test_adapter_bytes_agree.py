"""The bytes that a plan counts for LoRA slots are those that vLLM allocates for models on the meta device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import adapter_tensors
from uellm.models import read_architecture
from uellm.planner.adapter_slots import AdapterSlots
from uellm.planner.memory.adapters import adapter_bytes
from uellm_devcluster.local import free_port

SLOTS = AdapterSlots(3, 16)
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
MODELS = {
    "llama": LLAMA,
    "llama, one KV head": {**LLAMA, "num_key_value_heads": 1},
    "qwen2": {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3, tied": {
        **LLAMA,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "gemma2": {
        **LLAMA,
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "head_dim": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 512,
        "query_pre_attn_scalar": 32,
        "tie_word_embeddings": True,
    },
}


@pytest.mark.parametrize("tensor", [1, 2])
def test_slots_take_what_the_engine_allocates(tensor: int, tmp_path: Path):
    files = []
    for number, config in enumerate(MODELS.values()):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(config))
    port = free_port()
    # vLLM's executor sets it, and its processes on some CPUs share memory under this name.
    environment = {**os.environ, "VLLM_DIST_IDENT": f"test-{port}"}
    fixed = [SLOTS.slots, SLOTS.rank, tensor]
    parts = [
        subprocess.Popen(
            list(map(str, [sys.executable, adapter_tensors.__file__, *fixed, part, port, *files])),
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for part in range(tensor)
    ]
    answers = [part.communicate(timeout=300)[0] for part in parts]
    assert all(part.returncode == 0 for part in parts)
    assert len(set(answers)) == 1, "every GPU holds the same"
    for (name, config), line in zip(MODELS.items(), answers[0].splitlines(), strict=True):
        found, expected = json.loads(line), adapter_bytes(read_architecture(config), SLOTS, tensor)
        layers = [sum(size for module, size in found.items() if f".layers.{index}." in module) for index in range(2)]
        ends = [sum(size for module, size in found.items() if part in module) for part in ("embed", "logits")]
        assert (layers, ends) == (list(expected.layers), [expected.first, expected.last]), name
        assert sum(found.values()) == expected.total, name
