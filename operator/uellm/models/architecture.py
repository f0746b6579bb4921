"""A model as the planner needs it: bytes by layer, and the widths from which other sizes follow."""

from __future__ import annotations

from dataclasses import dataclass

from uellm.models.adapter_widths import AdapterWidths
from uellm.models.kernels import Kernel
from uellm.models.limits import SplitLimit
from uellm.models.towers.encoders import EncoderWidths
from uellm.models.weights import RecentCache


@dataclass(frozen=True, slots=True)
class Architecture:
    """A transformer of L layers in memory, before tensor parallelism divides it.

    Bytes are those of the chosen dtype and quantisation. Fields named `layer_*` have one entry per layer [L].
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
    """Of activations, norms and embeddings: float32, float16 or bfloat16."""
    weight_dtype_bytes: int
    kv_dtype_bytes: int
    quantization: str
    """Of the linear layers: none, or a method such as fp8, awq or gptq."""
    layer_weight_bytes: tuple[int, ...]
    layer_kv_bytes_per_token: tuple[int, ...]
    token_embedding_bytes: int
    embedding_bytes: int
    """Token and position embeddings, and projections before the first layer."""
    final_norm_bytes: int
    lm_head_bytes: int
    """0 if tied: the embedding of the first stage is used."""
    tied: bool
    writes: bool
    """Whether it has an LM head; False: an embedder, a reranker or a classifier."""
    parameters: int
    """Published count: tied embeddings once."""
    active_parameters: int
    """Used by one text token: all but the experts to which it is not routed."""
    tower_bytes: int
    """Image and audio encoders, which the engine holds on every stage."""
    max_position_embeddings: int
    layer_flops_per_token: tuple[float, ...]
    """Of the weight matrices: 2 per weight used, with routed and shared experts."""
    layer_attention_flops_per_token: tuple[float, ...]
    """FLOPs per token and per token of its context."""
    layer_window_tokens: tuple[int | None, ...]
    """Length of the sliding window; None: the layer attends to the whole context."""
    layer_state_bytes: tuple[int, ...]
    """State of constant size per sequence (Mamba, linear attention)."""
    layer_expert_bytes: tuple[int, ...]
    """The part of layer_weight_bytes in routed experts."""
    experts: int
    """Routed experts per layer; 0: dense."""
    experts_per_token: int
    head_flops_per_token: float
    supports_pipeline: bool
    kv_shared_by_tensor: bool
    """Whether tensor parallelism divides the KV cache, down to one head per rank; False (MLA): each rank holds all."""
    tensor_widths: tuple[tuple[str, int], ...]
    """Further fields of config.json, with their values, that tensor parallelism must divide."""
    split_limits: tuple[SplitLimit, ...] = ()
    """Widths of quantised matrices that tensor parallelism must cut into whole blocks or groups."""
    asserted: str = ""
    """The family that the user says the model is built like; empty: it is read by its class and fields."""
    exact: bool = True
    """Whether the formula is known to be exact for this model; a note says why not."""
    layer_expert_flops_per_token: tuple[float, ...] = ()
    """The part of layer_flops_per_token in routed experts."""
    linear_kernel: Kernel = "16-bit"
    """The format in which most matrices outside routed experts are multiplied."""
    expert_kernel: Kernel = "16-bit"
    """The same of the routed experts."""
    layer_read_again_bytes: tuple[int, ...] = ()
    """Bytes of an earlier layer's matrices that the layer reads once more; empty: no layer does."""
    layer_adapter_widths: tuple[AdapterWidths, ...] = ()
    """From which the bytes of LoRA slots follow."""
    layer_recent: tuple[tuple[RecentCache, ...], ...] = ()
    """Caches of the last tokens, beside those of layer_kv_bytes_per_token; empty: no layer has one."""
    host_bytes: int = 0
    """Tables that the engine keeps in host memory. They are not in `weight_bytes`."""
    predicting_layers: int = 0
    """Layers for multi-token prediction, which the engine loads for speculation alone."""
    predicting_bytes: int = 0
    """Their weights, which are not in `weight_bytes`."""
    draft: Architecture | None = None
    """The model or head of its own that drafts for speculation (drafts.py). It is not in `weight_bytes`."""
    encoder: EncoderWidths | None = None
    """Of images, where what it computes on grows with them; None: it has none, or of images of one size."""
    sparse_attention: bool = False
    """Whether an indexer picks the tokens that latent attention attends to (DeepSeek V3.2 and later, GLM-5)."""
    layer_fixed_kv_bytes: tuple[int, ...] = ()
    """The part of layer_kv_bytes_per_token that is packed in bytes of its own, whatever data type the cache has."""
    int8_products: bool = False
    """Whether matrices outside routed experts are multiplied in INT8: weights and inputs are integers."""
    fp8_products_only: bool = False
    """Whether matrices outside routed experts are multiplied in FP8 on every GPU, and so need one that can."""
    measured: bool = False
    """Whether bytes come from the checkpoint's headers or the engine; otherwise they are computed from config.json."""
    source: str = "config"
    """Where the bytes come from: config, safetensors (the checkpoint's headers) or engine (vLLM's own class)."""
    notes: tuple[str, ...] = ()
    """Assumptions made while reading, as sentences."""

    @property
    def weight_bytes(self) -> int:
        """All weights of the model, tied ones once."""
        ends = self.embedding_bytes + self.final_norm_bytes + self.lm_head_bytes
        return sum(self.layer_weight_bytes) + ends + self.tower_bytes

    @property
    def state_bytes(self) -> int:
        """State of one sequence over all layers, whatever its length."""
        return sum(self.layer_state_bytes)

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one token over all layers."""
        return sum(self.layer_kv_bytes_per_token)

    def lm_head_bytes_on_last_stage(self, pipeline: int) -> int:
        """Bytes of the head on the last stage. With more than one stage, a tied LM head is a copy of the embedding."""
        return self.token_embedding_bytes if self.tied and pipeline > 1 else self.lm_head_bytes

    def layer_read_bytes(self, index: int, tokens: int) -> float:
        """Expected weight bytes of a layer that a step over this many tokens reads.

        A step reads all dense weights. Of E experts with k per token, it reads E * (1 - (1 - k/E)^tokens) on average,
        if the router chooses uniformly.
        """
        experts = self.layer_expert_bytes[index]
        whole = self.layer_weight_bytes[index] + (
            self.layer_read_again_bytes[index] if self.layer_read_again_bytes else 0
        )
        if not experts:
            return float(whole)
        touched = 1.0 - (1.0 - self.experts_per_token / self.experts) ** tokens
        return whole - experts * (1.0 - touched)
