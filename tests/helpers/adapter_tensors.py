"""`python adapter_tensors.py SLOTS RANK TENSOR PART PORT CONFIG.json...`: the LoRA tensors that vLLM allocates.

One of TENSOR processes that share the layers; each builds the models on the meta device and wraps them as a worker
does. Prints for each model a JSON object: module -> bytes on this GPU.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_HOST_IP="127.0.0.1",
    GLOO_SOCKET_IFNAME="lo",
)


def allocated(config: dict[str, Any], slots: int, rank: int, tensor: int, part: int, port: int) -> dict[str, int]:
    import torch
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, VllmConfig, set_current_vllm_config
    from vllm.config.lora import LoRAConfig
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config))
        model = ModelConfig(
            model=directory,
            tokenizer=directory,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=1024,
            enforce_eager=True,
        )
        lora = LoRAConfig(max_lora_rank=rank, max_loras=slots)
        whole = VllmConfig(
            model_config=model,
            cache_config=CacheConfig(block_size=16),
            device_config=DeviceConfig("cpu"),
            lora_config=lora,
        )
        with set_current_vllm_config(whole):
            try:
                init_distributed_environment(tensor, part, f"tcp://127.0.0.1:{port}", part, "gloo")
                initialize_model_parallel(tensor, 1)
                with set_default_torch_dtype(model.dtype), torch.device("meta"):
                    built = initialize_model(whole, model_config=model)
                LoRAModelManager(built, 8, 512, model.get_vocab_size(), lora, torch.device("cpu"), whole)
            finally:
                cleanup_dist_env_and_memory()
    return {name: size for name, module in built.named_modules() if (size := _bytes(module))}


def _bytes(module: Any) -> int:
    found = [value for name, value in vars(module).items() if name in ("lora_a_stacked", "lora_b_stacked")]
    tensors = [each for value in found for each in (value if isinstance(value, list | tuple) else (value,))]
    return sum(each.numel() * each.element_size() for each in tensors)


if __name__ == "__main__":
    slots, rank, tensor, part, port = map(int, sys.argv[1:6])
    for number, name in enumerate(sys.argv[6:]):
        config = json.loads(Path(name).read_text())
        print(json.dumps(allocated(config, slots, rank, tensor, part, port + number)), flush=True)
