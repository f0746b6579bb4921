"""What the planner needs to know of a model: bytes by layer, and the few widths that sizes follow from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder-only transformer as it lies in memory, before tensor parallelism divides it.

    Bytes are those of the chosen dtype and quantisation. `parameters` counts weights as they are published:
    tied embeddings once.
    """

    name: str
    """The class of config.json's `architectures`, such as LlamaForCausalLM."""
    layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    """float32, float16 or bfloat16; of activations, norms and embeddings."""
    weight_dtype_bytes: int
    kv_dtype_bytes: int
    quantization: str
    """Of the linear layers: none, fp8, awq or gptq."""
    layer_weight_bytes: tuple[int, ...]
    layer_kv_bytes_per_token: tuple[int, ...]
    token_embedding_bytes: int
    embedding_bytes: int
    """Tokens, positions and what lies between them and the first layer."""
    final_norm_bytes: int
    lm_head_bytes: int
    """0 where tied: the first stage's embedding serves."""
    tied: bool
    parameters: int
    active_parameters: int
    """That a token of text computes with: all but the experts not chosen for it."""
    tower_bytes: int
    """What reads images or sound: the engine holds it on every stage."""
    max_position_embeddings: int
    layer_flops_per_token: tuple[float, ...]
    """Matrices alone, 2 a weight used: of experts, the routed and shared ones."""
    layer_attention_flops_per_token: tuple[float, ...]
    """Per token, and per token of context that it attends to."""
    layer_window_tokens: tuple[int | None, ...]
    """KV and attention reach no further; None: the whole context."""
    layer_state_bytes: tuple[int, ...]
    """Constant state of a sequence (Mamba, linear attention)"""
    layer_expert_bytes: tuple[int, ...]
    """Of layer_weight_bytes, those in routed experts."""
    experts: int
    """0: dense."""
    experts_per_token: int
    head_flops_per_token: float
    supports_pipeline: bool
    kv_shared_by_tensor: bool
    """Tensor parallelism divides KV, down to a head each; False (MLA): each rank has all."""
    tensor_widths: tuple[tuple[str, int], ...]
    """Fields of config.json that tensor parallelism must divide, too."""
    measured: bool = False
    """Bytes are those of the checkpoint's headers, not reckoned."""
    notes: tuple[str, ...] = ()
    """What was assumed while reading, as sentences."""

    @property
    def weight_bytes(self) -> int:
        """All weights of the model, tied ones once."""
        ends = self.embedding_bytes + self.final_norm_bytes + self.lm_head_bytes
        return sum(self.layer_weight_bytes) + ends + self.tower_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one token over all layers."""
        return sum(self.layer_kv_bytes_per_token)

    def lm_head_bytes_on_last_stage(self, pipeline: int) -> int:
        """The LM head where the last stage needs it: a tied one is a copy of the embedding once stages differ."""
        return self.token_embedding_bytes if self.tied and pipeline > 1 else self.lm_head_bytes

    def layer_read_bytes(self, index: int, tokens: int) -> float:
        """Weight bytes of a layer that a step over so many tokens reads, on average.

        Dense weights all; of E experts with k a token the expected number of distinct ones, E*(1 - (1 - k/E)^tokens),
        as if the router chose evenly.
        """
        experts = self.layer_expert_bytes[index]
        if not experts:
            return float(self.layer_weight_bytes[index])
        touched = 1.0 - (1.0 - self.experts_per_token / self.experts) ** tokens
        return self.layer_weight_bytes[index] - experts * (1.0 - touched)
