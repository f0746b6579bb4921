"""Which files of a repository the engine reads."""

from __future__ import annotations

import pytest

from uellm.hub.listing import wanted_paths

SMALL = ["config.json", "generation_config.json", "merges.txt", "tokenizer.model"]


@pytest.mark.parametrize(
    ("paths", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin", "model.gguf", "model.pth"], ["model.safetensors"]),
        (["pytorch_model.bin", "training_args.bin", "optimizer.bin", "rng.pth"], ["pytorch_model.bin"]),
        (["model.pt"], ["model.pt"]),
        # The engine takes Mistral's own format where it is there.
        (["model.safetensors", "consolidated.safetensors"], ["consolidated.safetensors"]),
        (["model.safetensors", "2_Dense/model.safetensors"], ["model.safetensors", "2_Dense/model.safetensors"]),
        (["model.safetensors", "unet/model.safetensors", "original/model.safetensors"], ["model.safetensors"]),
    ],
)
def test_each_weight_is_wanted_in_the_format_that_the_engine_reads(paths, weights):
    assert sorted(wanted_paths([*SMALL, *paths])) == sorted([*SMALL, *weights])


def test_what_the_index_does_not_name_is_not_wanted():
    paths = ["model-1.safetensors", "model-2.safetensors", "model.safetensors", "model.safetensors.index.json"]
    wanted = wanted_paths(paths, ["model-1.safetensors", "model-2.safetensors"])
    assert wanted == ["model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"]


def test_configurations_templates_and_code_come_first():
    paths = ["model.safetensors", "chat_template.jinja", "modeling_x.py", "1_Pooling/config.json", "onnx/config.json"]
    assert wanted_paths(paths) == ["1_Pooling/config.json", "chat_template.jinja", "modeling_x.py", "model.safetensors"]
    assert wanted_paths(["README.md", "image.png", ".gitattributes"]) == []


def test_the_tokenizers_of_mistrals_own_format_are_wanted():
    tokenizers = ["tokenizer.model.v3", "tokenizer.model.v7", "tokenizer.model.v7m1", "tokenizer.mm.model.v2"]
    assert wanted_paths([*tokenizers, "params.json", "original/tokenizer.model.v3", "model.v3"]) == sorted(
        ["params.json", *tokenizers]
    )
