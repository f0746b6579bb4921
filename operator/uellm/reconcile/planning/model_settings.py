"""What a service says of its model's length, dtype and quantisation: in spec.model, or by the engine's flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.api.llmservice import LLMService
from uellm.models.schemes import TOOLS_NAMES
from uellm.planner.vllm import flags
from uellm.planner.vllm.flags import UserArgs
from uellm.planner.vllm.model_flags import ModelSettings, with_flags


def model_settings(service: LLMService, config: Mapping[str, Any]) -> ModelSettings:
    """The settings for a model with this config.json. Raises PlanError InvalidOverride."""
    model = service.spec.model
    method = TOOLS_NAMES.get(model.quantization, model.quantization)
    spec = ModelSettings(model.max_model_len, model.dtype, method)
    found = with_flags(spec, UserArgs(service.spec.engine.args))
    section = config.get("quantization_config")
    # A flag that repeats the checkpoint's own method says nothing new, also where only its headers tell the bytes.
    repeated = isinstance(section, Mapping) and section.get("quant_method") == found.quantization
    return found._replace(quantization=spec.quantization) if repeated else found


def is_lengthened(service: LLMService) -> bool:
    """Whether the engine is told to accept a length beyond that of the model's config.json (vllm/envs.py)."""
    values = [each.value for each in service.spec.engine.env if each.name == flags.ALLOW_LONG]
    return bool(values) and values[-1].strip().lower() in ("1", "true")  # of two of one name the last one counts


def is_by_flag(service: LLMService, field: str) -> bool:
    """Whether `dtype` or `quantization` comes from the engine's flags."""
    flag = f"--{field}"
    return flag in (flags.DTYPE, flags.QUANTIZATION) and flag in UserArgs(service.spec.engine.args).flags
