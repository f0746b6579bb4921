"""Which LoRA slots a service's engines need, and whether its adapters fit its model. Pure."""

from __future__ import annotations

from uellm.api import LLMService
from uellm.errors import ReloadError
from uellm.hub import ModelFacts
from uellm.hub.adapter import AdapterFacts
from uellm.models import Architecture
from uellm.models.classes import adapter_ends
from uellm.planner.adapter_slots import AdapterSlots, covers, slots_for
from uellm.planner.vllm import flags
from uellm.planner.vllm.flags import UserArgs

ASSUMED_RANK = 16
"""Of an adapter that nobody can look up; vLLM's own default for the largest."""
MOST_VOCABULARY = 258_048
"""Of a model whose LM head takes LoRA weights (vllm/lora/layers/logits_processor.py)."""
_OF_HIDDEN = frozenset(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
_TO_HIDDEN = frozenset(("o_proj", "down_proj"))
_OWN_FLAGS = ("--lora-modules", flags.ENABLE_ADAPTERS, f"--no-{flags.ENABLE_ADAPTERS.removeprefix('--')}")


def adapter_slots(service: LLMService, facts: ModelFacts | None, there: AdapterSlots | None) -> AdapterSlots | None:
    """The slots to start engines with; None for none. `there`: those of running engines, which are kept if they do."""
    adapters = service.spec.model.adapters
    if not adapters:
        return there
    found = facts.adapters if facts is not None else ()
    user = UserArgs(service.spec.engine.args)
    least = slots_for(len(adapters), max((each.rank for each in found), default=ASSUMED_RANK))
    wanted = AdapterSlots(
        user.number(flags.ADAPTER_SLOTS) or least.slots, user.number(flags.ADAPTER_RANK) or least.rank
    )
    return there if covers(there, wanted) else wanted


def check_adapters(service: LLMService, facts: ModelFacts | None, model: Architecture) -> None:
    """Raise ReloadError InvalidAdapter or InvalidOverride where the engine could not serve the service's adapters."""
    if not service.spec.model.adapters:
        return
    user = UserArgs(service.spec.engine.args)
    if own := next((flag for flag in _OWN_FLAGS if flag in user.flags), ""):
        raise ReloadError(
            "InvalidOverride", f"spec.engine.args: {own} is not allowed beside spec.model.adapters, which decides it"
        )
    if "--api-server-count" in user.flags:
        raise ReloadError(
            "InvalidOverride",
            "spec.engine.args: --api-server-count is not allowed beside spec.model.adapters: each of the engine's "
            "servers would know other adapters",
        )
    ends = adapter_ends(model.name)
    if ends is None:
        raise ReloadError("InvalidAdapter", f"the engine serves no LoRA adapters for {model.name}: merge them into it")
    if model.writes and "lm_head" in ends and model.vocab_size > MOST_VOCABULARY:
        raise ReloadError(
            "InvalidAdapter",
            f"the engine serves no LoRA adapters for {model.name} with a vocabulary of {model.vocab_size}: at most "
            f"{MOST_VOCABULARY}",
        )
    largest = user.number(flags.ADAPTER_RANK)
    for each in facts.adapters if facts is not None else ():
        if problem := _misfit(each, model):
            raise ReloadError("InvalidAdapter", f"adapter {each.name} ({each.source}) is not of this model: {problem}")
        if largest is not None and each.rank > largest:
            raise ReloadError(
                "InvalidOverride",
                f"spec.engine.args: {flags.ADAPTER_RANK} {largest} is below the rank of adapter {each.name}, "
                f"{each.rank}: raise it or leave it out",
            )


def _misfit(adapter: AdapterFacts, model: Architecture) -> str:
    """What shows that an adapter was made for another model; empty where nothing does.

    The engine would copy weights that are too narrow into part of its own, and answer nonsense.
    """
    if adapter.layers > model.layers:
        return f"it has weights for layer {adapter.layers - 1}, and the model has {model.layers} layers"
    for module, inputs, outputs in adapter.widths:
        width = inputs if module in _OF_HIDDEN else outputs if module in _TO_HIDDEN else 0
        if width and width != model.hidden_size:
            return f"its {module} is for a hidden size of {width}, and the model's is {model.hidden_size}"
    return ""


def adapter_notes(service: LLMService, facts: ModelFacts | None) -> tuple[str, ...]:
    """Sentences about adapters for the plan's assumptions."""
    found = {each.name: each for each in (facts.adapters if facts is not None else ())}
    unknown = [each.name for each in service.spec.model.adapters if each.name not in found]
    notes = [f"adapter {name}: rank {ASSUMED_RANK}, because it was not looked up" for name in unknown]
    return (*notes, *base_warnings(service, facts))


def base_warnings(service: LLMService, facts: ModelFacts | None) -> tuple[str, ...]:
    """Adapters that name another base model than the service's, where both have a name."""
    uri = service.spec.model.uri
    if facts is None or not uri.startswith("hf://"):
        return ()
    return tuple(
        f"adapter {each.name} says that it was trained on {each.base}, and the model is {uri.removeprefix('hf://')}"
        for each in facts.adapters
        if each.base and not each.base.startswith(("/", ".")) and _plain(each.base) != _plain(uri)
    )


def _plain(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()
