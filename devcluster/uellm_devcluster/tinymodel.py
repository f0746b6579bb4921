"""`python -m uellm_devcluster.tinymodel OUT_DIR`: a small Llama with random weights, for a real engine without a GPU.

It is generated, so nothing is downloaded: the tokenizer is trained on the Python documentation that comes with the
interpreter, and the weights are drawn from a seed. Its output is nonsense made of words. The same request at
temperature 0 gives the same output every time, which tests and the demo need. It takes seconds and 35 MB.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
# In this order their ids are 0, 1, 2, as the configuration requires.
SPECIAL_TOKENS = (UNKNOWN, BEGIN, END)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
# Large enough that the hidden state, and so the text, depends on the prompt.
WEIGHT_SCALE = 1.0


def config() -> dict[str, Any]:
    """The model's config.json, which an LLMService contains inline for a `file://` or `pvc://` model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 4096,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def make(directory: Path, *, seed: int = 0) -> dict[str, Any]:
    """Write the model's files to `directory` and return its configuration. The same seed gives identical files."""
    import numpy
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    model = config()
    tokenizer = _tokenizer(int(model["vocab_size"]))
    weights = dict(_weights(model, numpy.random.default_rng(seed)))
    _silence(weights["lm_head.weight"], tokenizer)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(directory / "tokenizer.json"))
    _write(directory / "config.json", model)
    _write(directory / "tokenizer_config.json", _tokenizer_config(int(model["max_position_embeddings"])))
    _write(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    # The engine's pod reads them as another user.
    directory.chmod(0o755)
    for path in directory.iterdir():
        path.chmod(0o644)
    return model


def _tokenizer(vocabulary: int) -> Tokenizer:
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)], trainer)
    return tokenizer


def _tokenizer_config(max_length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _weights(model: dict[str, Any], random: numpy.random.Generator) -> Iterator[tuple[str, NDArray[numpy.float32]]]:
    import numpy

    hidden, inner = model["hidden_size"], model["intermediate_size"]
    heads = model["num_attention_heads"] * model["head_dim"]
    kv = model["num_key_value_heads"] * model["head_dim"]

    def matrix(rows: int, columns: int) -> NDArray[numpy.float32]:
        drawn = random.standard_normal((rows, columns), dtype=numpy.float32)
        return drawn * numpy.float32(WEIGHT_SCALE / columns**0.5)

    yield "model.embed_tokens.weight", matrix(model["vocab_size"], hidden)
    for layer in range(model["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", numpy.ones(hidden, dtype=numpy.float32)
        yield f"{prefix}.self_attn.q_proj.weight", matrix(heads, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", matrix(kv, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", matrix(kv, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", matrix(hidden, heads)
        yield f"{prefix}.post_attention_layernorm.weight", numpy.ones(hidden, dtype=numpy.float32)
        yield f"{prefix}.mlp.gate_proj.weight", matrix(inner, hidden)
        yield f"{prefix}.mlp.up_proj.weight", matrix(inner, hidden)
        yield f"{prefix}.mlp.down_proj.weight", matrix(hidden, inner)
    yield "model.norm.weight", numpy.ones(hidden, dtype=numpy.float32)
    yield "lm_head.weight", matrix(model["vocab_size"], hidden)


def _silence(head: NDArray[numpy.float32], tokenizer: Tokenizer) -> None:
    """Zero the weights of end and non-ASCII tokens, so that the output goes on and is readable."""
    for token in range(len(head)):
        text = tokenizer.decode([token])
        if token < len(SPECIAL_TOKENS) or not (text.isascii() and text.isprintable()):
            head[token] = 0.0


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Generate the model in the directory that the command line names."""
    parser = argparse.ArgumentParser(prog="uellm_devcluster.tinymodel", description="A small Llama of random weights")
    parser.add_argument("directory", type=Path, metavar="OUT_DIR")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        make(args.directory, seed=args.seed)
    except ModuleNotFoundError as error:
        print(f"tinymodel: the Python package {error.name!r} is missing: run `make setup`", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in args.directory.iterdir())
    print(f"{args.directory}: a Llama of 8 layers with random weights (seed {args.seed}), {size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
