"""`python -m uellm.engine_facts CONFIG.json...`: build each model on the meta device; print its tensors and caches."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

# Before vLLM is imported: it asks no network, and logs nothing that is not an error.
os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_ALLOW_LONG_MAX_MODEL_LEN="1",
    VLLM_HOST_IP="127.0.0.1",
    GLOO_SOCKET_IFNAME="lo",
)
BLOCK_TOKENS = 16
LONGEST_REASON = 500
SPELLED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int32": "I32", "int64": "I64"}
SPELLED |= {"int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


def facts(config: dict[str, Any]) -> dict[str, Any]:
    """The tensors and caches of the model that a config.json describes, without its quantisation.

    Raises what transformers and vLLM raise for a config that they do not take.
    """
    import torch
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.model_executor.models import registry
    from vllm.utils.torch_utils import set_default_torch_dtype

    # vLLM would look at each class in a process of its own, to keep CUDA out of this one.
    registry._run_in_subprocess = lambda look: look()
    # The CPU build would keep the state of layers in 32 bits for kernels of its own.
    torch.cpu._is_avx512_bf16_supported = lambda: False
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(plain), encoding="utf-8")
        model = ModelConfig(
            model=directory,
            tokenizer=directory,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            enforce_eager=True,
        )
        # As EngineArgs sets it: layers without a window of their own have that of the model.
        kinds = getattr(model.hf_text_config, "layer_types", None) or ()
        slides = all(kind == "sliding_attention" for kind in kinds)
        window = model.get_sliding_window() if slides else None
        cache = CacheConfig(block_size=BLOCK_TOKENS, sliding_window=window)
        whole = VllmConfig(model_config=model, cache_config=cache, device_config=DeviceConfig("cpu"))
        with set_current_vllm_config(whole):
            try:
                init_distributed_environment(1, 0, f"tcp://127.0.0.1:{_free_port()}", 0, "gloo")
                initialize_model_parallel(1, 1)
                with set_default_torch_dtype(model.dtype), torch.device("meta"):
                    built = initialize_model(whole, model_config=model)
                found = whole.compilation_config.static_forward_context
                specs = {name: each.get_kv_cache_spec(whole) for name, each in found.items() if _keeps(each)}
            finally:
                cleanup_dist_env_and_memory()
    tensors = {name: [SPELLED[str(each.dtype)[6:]], list(each.shape)] for name, each in built.named_parameters()}
    caches = {name: _cache(spec) for name, spec in specs.items()}
    return {"tensors": tensors, "caches": {name: cache for name, cache in caches.items() if cache is not None}}


def _keeps(layer: Any) -> bool:
    return hasattr(layer, "get_kv_cache_spec")


def _cache(spec: Any) -> dict[str, Any] | None:
    """Sizes of one layer's cache; None where it reads another layer's."""
    from vllm.v1.kv_cache_interface import CrossAttentionSpec, MambaSpec

    if spec is None:
        return None
    if isinstance(spec, MambaSpec):
        size = sum(_product(shape) * dtype.itemsize for shape, dtype in zip(spec.shapes, spec.dtypes, strict=True))
        return {"bytesPerToken": 0, "stateBytes": size, "windowTokens": None}
    if isinstance(spec, CrossAttentionSpec):
        return None
    window = getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None)
    return {"bytesPerToken": spec.page_size_bytes // spec.block_size, "stateBytes": 0, "windowTokens": window}


def _product(shape: tuple[int, ...]) -> int:
    whole = 1
    for side in shape:
        whole *= side
    return whole


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """The facts, or vLLM's reason in one line."""
    try:
        return facts(config)
    except Exception as error:  # whatever vLLM raises is its answer
        text = " ".join(line.strip() for line in str(error).strip().splitlines())
        return {"error": f"{type(error).__name__}: {text[:LONGEST_REASON]}"}


def main() -> int:
    """Print a line for each config. The exit status is 1 where vLLM takes one of them not."""
    failed = False
    for name in sys.argv[1:]:
        found = answer(json.loads(Path(name).read_text(encoding="utf-8")))
        failed = failed or "error" in found
        print(json.dumps(found), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
