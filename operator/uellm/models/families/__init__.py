"""The decoder families whose weights are known, and how each is recognised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from uellm.models.families import chatglm, deepseek, dense, falcon, gemma, gpt_oss, learned, llama4, mixture
from uellm.models.fields import Config
from uellm.models.weights import Blueprint

# The defaults of transformers' LlamaConfig, on which Vicuna inside LLaVA relies.
LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}
# transformers' MistralConfig.
MISTRAL_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
}


@dataclass(frozen=True, slots=True)
class Family:
    """How a family is recognised and read. `defaults` apply only in a nested config."""

    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    read: Callable[[Config], Blueprint]
    defaults: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The family's name in `uellm_family`."""
        return self.model_types[0]


def _family(
    read: Callable[[Config], Blueprint],
    types: str,
    architectures: str,
    defaults: Mapping[str, int] | None = None,
) -> Family:
    return Family(tuple(types.split()), tuple(architectures.split()), read, defaults or {})


FAMILIES = (
    _family(dense.llama, "llama", "LlamaForCausalLM", LLAMA_DEFAULTS),
    _family(llama4.llama4, "llama4_text", "Llama4ForCausalLM"),
    _family(dense.mistral, "mistral", "MistralForCausalLM", MISTRAL_DEFAULTS),
    _family(dense.mistral, "ministral ministral3", "MinistralForCausalLM Ministral3ForCausalLM"),
    _family(mixture.mixtral, "mixtral", "MixtralForCausalLM"),
    _family(dense.qwen2, "qwen2", "Qwen2ForCausalLM"),
    _family(dense.qwen3, "qwen3", "Qwen3ForCausalLM"),
    _family(mixture.qwen2_moe, "qwen2_moe", "Qwen2MoeForCausalLM"),
    _family(mixture.qwen3_moe, "qwen3_moe", "Qwen3MoeForCausalLM"),
    _family(gemma.gemma, "gemma", "GemmaForCausalLM"),
    _family(gemma.gemma2, "gemma2", "Gemma2ForCausalLM"),
    _family(gemma.gemma3, "gemma3_text", "Gemma3ForCausalLM", gemma.GEMMA3_DEFAULTS),
    _family(dense.phi3, "phi3", "Phi3ForCausalLM"),
    _family(mixture.phimoe, "phimoe", "PhiMoEForCausalLM PhimoeForCausalLM"),
    _family(deepseek.deepseek_v2, "deepseek_v2", "DeepseekV2ForCausalLM"),
    _family(deepseek.deepseek_v3, "deepseek_v3", "DeepseekV3ForCausalLM"),
    _family(gpt_oss.gpt_oss, "gpt_oss", "GptOssForCausalLM"),
    _family(falcon.falcon, "falcon RefinedWeb RefinedWebModel", "FalconForCausalLM RWForCausalLM"),
    _family(learned.opt, "opt", "OPTForCausalLM"),
    _family(learned.gpt2, "gpt2", "GPT2LMHeadModel"),
    _family(chatglm.chatglm, "chatglm", "ChatGLMModel ChatGLMForConditionalGeneration"),
)
