"""The engine's own word on a model: vLLM's class built on the meta device, without a weight.

A program of its own, `python -m uellm.engine_facts CONFIG.json...`, because it needs torch and vLLM (the extra
`engine-cpu`) and takes half a minute; `uellm model --exact` runs it. Prints one JSON document a line for each config:

    {"tensors": {name: [dtype, shape]}, "caches": {layer: {"bytesPerToken", "stateBytes", "windowTokens"}}}
    {"error": what vLLM says of a config that it does not take}

Dtypes are spelled as in safetensors. Cache sizes come from vLLM's own `get_kv_cache_spec`.
"""
