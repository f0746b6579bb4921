"""Small models with random weights that give vectors and scores, for a real engine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

from uellm_devcluster import tinymodel

POOLING = {"word_embedding_dimension": 256, "pooling_mode_lasttoken": True, "include_prompt": True}


def embedder(directory: Path) -> None:
    """A decoder in the format of sentence-transformers: its class writes text, its modules.json says otherwise."""
    tinymodel.make(directory)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(POOLING))


def reranker(directory: Path) -> None:
    """A cross-encoder of BERT's class, which attends in both directions and keeps no KV cache."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    tinymodel.make(directory)
    for name in ("model.safetensors", "generation_config.json"):
        (directory / name).unlink()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        num_labels=1,
        pad_token_id=0,
        # Large enough that the score depends on the text.
        initializer_range=0.3,
    )
    BertForSequenceClassification(config).save_pretrained(directory)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings |= {"model_max_length": 512, "pad_token": tinymodel.UNKNOWN}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
