"""What the planner needs to know of a model: bytes by layer, and the few widths that sizes follow from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder-only transformer as it lies in memory, before tensor parallelism divides it.

    Bytes are those of the chosen dtype and quantisation. `parameters` counts weights as they are published:
    tied embeddings once.
    """

    name: str  # the class of config.json's `architectures`, such as LlamaForCausalLM
    layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    dtype: str  # float32 | float16 | bfloat16: of activations, norms and embeddings
    weight_dtype_bytes: int
    kv_dtype_bytes: int
    quantization: str  # none | fp8 | awq | gptq: of the linear layers
    layer_weight_bytes: tuple[int, ...]
    layer_kv_bytes_per_token: tuple[int, ...]
    token_embedding_bytes: int
    embedding_bytes: int  # tokens, positions and what lies between them and the first layer
    final_norm_bytes: int
    lm_head_bytes: int  # 0 where tied: the first stage's embedding serves
    tied: bool
    parameters: int
    max_position_embeddings: int
    notes: tuple[str, ...] = ()  # what was assumed while reading, as sentences

    @property
    def weight_bytes(self) -> int:
        """All weights of the model, tied ones once."""
        return sum(self.layer_weight_bytes) + self.embedding_bytes + self.final_norm_bytes + self.lm_head_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one token over all layers."""
        return sum(self.layer_kv_bytes_per_token)

    def lm_head_bytes_on_last_stage(self, pipeline: int) -> int:
        """The LM head where the last stage needs it: a tied one is a copy of the embedding once stages differ."""
        return self.token_embedding_bytes if self.tied and pipeline > 1 else self.lm_head_bytes
