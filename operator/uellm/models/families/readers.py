"""The families whose layers the general reader cannot put together, by model_type."""

from __future__ import annotations

from collections.abc import Callable

from uellm.models.families.chatglm import chatglm
from uellm.models.families.deci import deci
from uellm.models.families.deepseek_v4 import deepseek_v4
from uellm.models.families.deepseek_v41 import deepseek_v41
from uellm.models.families.falcon import falcon
from uellm.models.families.gemma_edge import embedding_gemma2, gemma3n, gemma4
from uellm.models.families.hrm import hrm_text
from uellm.models.families.inkling import inkling
from uellm.models.families.learned import gpt2, opt
from uellm.models.families.llama4 import llama4
from uellm.models.families.longcat import longcat
from uellm.models.families.whisper import cohere_asr, whisper
from uellm.models.families.zamba2 import zamba2
from uellm.models.fields import Config
from uellm.models.weights import Blueprint

READERS: dict[str, Callable[[Config], Blueprint]] = {
    "chatglm": chatglm,
    "cohere_asr": cohere_asr,
    **dict.fromkeys(("nemotron-nas", "deci", "decilm"), deci),
    "deepseek_v4": deepseek_v4,
    **dict.fromkeys(("deepseek_v41", "deepseek_v41_text"), deepseek_v41),
    **dict.fromkeys(("falcon", "RefinedWeb", "RefinedWebModel"), falcon),
    **dict.fromkeys(("gemma3n", "gemma3n_text"), gemma3n),
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified_text"), gemma4),
    "embedding_gemma2_text": embedding_gemma2,
    "gpt2": gpt2,
    "hrm_text": hrm_text,
    **dict.fromkeys(("inkling_text", "inkling_model"), inkling),
    **dict.fromkeys(("llama4", "llama4_text"), llama4),
    **dict.fromkeys(("longcat_flash", "longcat_flash_ngram"), longcat),
    "opt": opt,
    "whisper": whisper,
    "zamba2": zamba2,
}
