"""Files in Mistral's own format against vLLM's reading of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from helpers.mistral import EXPERTS, LATENT, NEMO, PIXTRAL, VOXTRAL
from uellm.models import config_of_params, read_architecture

FILES = {"text": NEMO, "images": PIXTRAL, "sound": VOXTRAL, "latent": LATENT, "experts": EXPERTS}
FP8 = {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}}


def theirs(params: dict[str, Any]) -> dict[str, Any]:
    from vllm.transformers_utils.configs.mistral import adapt_config_dict

    config: dict[str, Any] = adapt_config_dict(copy.deepcopy(params), defaults={}).to_dict()
    return config


@pytest.mark.parametrize("more", [{}, FP8], ids=["plain", "fp8"])
@pytest.mark.parametrize("name", ["text", "latent"])
def test_a_model_has_the_sizes_that_vllms_reading_of_its_file_gives(name: str, more: dict[str, Any]) -> None:
    params = {**FILES[name], **more}
    ours, engines = read_architecture(config_of_params(params)), read_architecture(theirs(params))
    assert ours.name == engines.name
    assert ours.layer_weight_bytes == engines.layer_weight_bytes
    assert ours.layer_kv_bytes_per_token == engines.layer_kv_bytes_per_token
    assert ours.weight_bytes == engines.weight_bytes
    assert (ours.quantization, ours.max_position_embeddings) == (engines.quantization, engines.max_position_embeddings)


@pytest.mark.parametrize("name", FILES)
def test_the_class_and_the_quantisation_are_those_of_vllm(name: str) -> None:
    params = {**FILES[name], **FP8}
    for field in ("architectures", "quantization_config"):
        assert config_of_params(params)[field] == theirs(params)[field]
