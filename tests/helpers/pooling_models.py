"""config.json of published embedders, rerankers and speech models: the fields that sizes and tasks follow from."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def bert(name: str = "BertModel", **fields: Any) -> Config:
    """BAAI/bge-large-en-v1.5; e5-large-v2 has the same sizes."""
    return {
        "architectures": [name],
        "model_type": "bert",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        **fields,
    }


def xlm_roberta(name: str = "XLMRobertaModel", **fields: Any) -> Config:
    """BAAI/bge-m3; bge-reranker-v2-m3 and multilingual-e5-large are built alike."""
    sizes = {"vocab_size": 250002, "max_position_embeddings": 8194, "type_vocab_size": 1, "pad_token_id": 1}
    return bert(name, **{"model_type": "xlm-roberta", **sizes, **fields})


def modernbert(name: str = "ModernBertModel", **fields: Any) -> Config:
    """Alibaba-NLP/gte-modernbert-base."""
    return {
        "architectures": [name],
        "model_type": "modernbert",
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "vocab_size": 50368,
        "max_position_embeddings": 8192,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "torch_dtype": "float16",
        **fields,
    }


def qwen3(name: str = "Qwen3ForCausalLM", **fields: Any) -> Config:
    """Qwen/Qwen3-Embedding-0.6B and Qwen3-Reranker-0.6B."""
    return {
        "architectures": [name],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151669,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        **fields,
    }


def qwen2(name: str = "Qwen2ForCausalLM", **fields: Any) -> Config:
    """Alibaba-NLP/gte-Qwen2-7B-instruct, whose LM head is its own."""
    return {
        "architectures": [name],
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 151646,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **fields,
    }


def whisper(**fields: Any) -> Config:
    """openai/whisper-large-v3-turbo."""
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "decoder_layers": 4,
        "decoder_attention_heads": 20,
        "decoder_ffn_dim": 5120,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "num_mel_bins": 128,
        "vocab_size": 51866,
        "torch_dtype": "float16",
        **fields,
    }


def voxtral(**fields: Any) -> Config:
    """mistralai/Voxtral-Mini-3B-2507."""
    return {
        "architectures": ["VoxtralForConditionalGeneration"],
        "model_type": "voxtral",
        "audio_config": {
            "model_type": "voxtral_encoder",
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "num_mel_bins": 128,
            "max_source_positions": 1500,
            "vocab_size": 51866,
        },
        "text_config": {
            "model_type": "llama",
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 30,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 131072,
            "max_position_embeddings": 131072,
        },
        "torch_dtype": "bfloat16",
        **fields,
    }
