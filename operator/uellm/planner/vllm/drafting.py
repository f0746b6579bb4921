"""What speculation adds to a model's steps and memory, and which models and shapes the engine refuses it for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from uellm.errors import PlanError
from uellm.models import Architecture
from uellm.models.classes import is_tapped, is_tapped_across_stages
from uellm.models.drafts import WITHOUT_ATTENTION
from uellm.planner.units import size
from uellm.planner.vllm import cache_dtype
from uellm.planner.vllm.cache_dtype import relative_width
from uellm.planner.vllm.flags import UserArgs
from uellm.planner.vllm.speculation import (
    DRAFT_MODEL,
    FLAG,
    MTP,
    TAP_STATES,
    WITHOUT_WEIGHTS,
    Speculation,
    speculation_of,
)

PREDICTING = (
    *("DeepseekV3", "DeepseekV4", "GlmMoeDsa", "PanguUltraMoE", "KimiK3", "MiMo", "Glm4Moe", "GlmOcr", "Ernie4_5_Moe"),
    *("NemotronH", "Qwen3Next", "Qwen3_5", "Qwen4Exp", "BailingMoeV2_5", "BailingMoeV3", "Exaone4_5", "ExaoneMo"),
    *("InternS2", "LongCatFlash", "LongcatFlash", "Step3p", "HYV", "Inkling", "MiniMaxM3", "Glm5Next", "Dots3Note"),
)
"""Beginnings of the classes for whose layers for multi-token prediction vLLM has a class (hf_config_override)."""

OWN_DSPARK, DSPARK_ALONE = "DeepseekV4", "DeepseekV41"
"""Beginnings of the classes whose checkpoints hold a draft for DSpark, and of those that hold no other."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """The part of speculation that costs, whether or not a draft is accepted."""

    tokens: int
    """Drafted for each sequence in a step."""
    passes: int
    """Passes of the draft over each sequence in a step; 0: the drafts need no model."""
    model: Architecture | None
    """The draft, which is on the GPUs of the last stage; None: none, or one that is not known."""
    kv_width: Fraction = Fraction(1)
    """Bytes of the draft's KV cache, relative to its own."""
    is_own: bool = True
    """False for layers of the model's own checkpoint."""
    keeps_logits: bool = False
    """The engine keeps the probabilities of all drafted tokens."""


def rows_of(drafting: Drafting | None) -> int:
    """Tokens of each sequence in a step, each with its row of logits."""
    return 1 if drafting is None else 1 + drafting.tokens


def drafting_of(model: Architecture, user: UserArgs) -> Drafting | None:
    """What the user's speculation adds; None for none."""
    found = speculation_of(user)
    if found is None:
        return None
    draft = _predictor(model) if found.predicts_itself else model.draft if found.model else None
    tokens = max(1, found.tokens)
    if draft is None:
        return Drafting(tokens, 0, None)
    kept = found.text("draft_sample_method") == "probabilistic"
    passes = 1 if draft.name in WITHOUT_ATTENTION else found.passes
    return Drafting(tokens, passes, draft, _kv_width(model, draft, found, user), bool(found.model), kept)


def _kv_width(model: Architecture, draft: Architecture, found: Speculation, user: UserArgs) -> Fraction:
    asked = found.text("kv_cache_dtype") or user.text(cache_dtype.FLAG) or "auto"
    # What the model's checkpoint declares holds for the whole cache.
    return Fraction(model.kv_dtype_bytes, draft.kv_dtype_bytes) if asked == "auto" else relative_width(draft, asked)


def _predictor(model: Architecture) -> Architecture | None:
    """The model's own layers for multi-token prediction, which are built like its last one."""
    if not model.predicting_bytes:
        return None
    layers, last = max(1, model.predicting_layers), model.layers - 1
    expert_flops = model.layer_expert_flops_per_token
    widest = max(range(model.layers), key=lambda index: model.layer_kv_bytes_per_token[index])
    return replace(
        model,
        layers=layers,
        layer_weight_bytes=(model.predicting_bytes // layers,) * layers,
        layer_kv_bytes_per_token=(model.layer_kv_bytes_per_token[widest],) * layers,
        layer_fixed_kv_bytes=(model.layer_fixed_kv_bytes[widest],) * layers if model.layer_fixed_kv_bytes else (),
        layer_flops_per_token=(model.layer_flops_per_token[last] + 4.0 * model.hidden_size**2,) * layers,
        layer_attention_flops_per_token=(model.layer_attention_flops_per_token[widest],) * layers,
        layer_window_tokens=(model.layer_window_tokens[widest],) * layers,
        layer_state_bytes=(0,) * layers,
        layer_recent=(),
        layer_read_again_bytes=(),
        layer_expert_bytes=(min(model.layer_expert_bytes[last], model.predicting_bytes // layers),) * layers,
        layer_expert_flops_per_token=(expert_flops[last],) * layers if expert_flops else (),
        layer_adapter_widths=(),
        token_embedding_bytes=0,
        embedding_bytes=0,
        final_norm_bytes=0,
        lm_head_bytes=0,
        tower_bytes=0,
    )


def uncut_because(model: Architecture, user: UserArgs) -> str:
    """Why the engine cannot draft where the model is split into stages; empty where it can, or nothing is drafted."""
    found, draft = speculation_of(user), model.draft
    if found is None:
        return ""
    if found.method == DRAFT_MODEL and not (draft is not None and draft.name in WITHOUT_ATTENTION):
        return "vLLM would split the draft model into stages as well, and it runs on the last one alone"
    if found.method in TAP_STATES and not is_tapped_across_stages(model.name):
        return f"vLLM does not hand the inner states of {model.name} that {found.method} needs from stage to stage"
    needs_embedding = found.method in ("eagle", "eagle3", "dflash")
    if needs_embedding and draft is not None and draft.measured and not draft.token_embedding_bytes:
        return "the draft's checkpoint has no embedding of its own, and the model's is on the first stage"
    return ""


def check_drafting(model: Architecture, user: UserArgs) -> None:
    """Raise PlanError InvalidOverride where the engine would refuse the draft for this model."""
    found = speculation_of(user)
    if found is not None and (problem := _problem(found, model, model.draft)):
        raise PlanError("InvalidOverride", f"spec.engine.args: {FLAG}: {problem}")


def _problem(found: Speculation, model: Architecture, draft: Architecture | None) -> str:
    if found.method in TAP_STATES and not is_tapped(model.name):
        return f"vLLM does not draft by {found.method} for {model.name}: take another method"
    if found.predicts_itself:
        return _own_problem(found, model)
    if not found.model or draft is None:
        return ""
    if found.method == DRAFT_MODEL and draft.name not in WITHOUT_ATTENTION:
        mixed = found.given.get("use_heterogeneous_vocab") is True
        if draft.vocab_size != model.vocab_size and not mixed:
            return (
                f"the draft model {found.model} has a vocabulary of {draft.vocab_size}, and {model.name} one of "
                f"{model.vocab_size}: take one of the same family"
            )
    elif found.method in ("eagle", "medusa") and draft.hidden_size != model.hidden_size:
        return (
            f"{found.model} drafts from a hidden size of {draft.hidden_size}, and that of {model.name} is "
            f"{model.hidden_size}: take a head that was trained for this model"
        )
    return ""


def _own_problem(found: Speculation, model: Architecture) -> str:
    layers = model.predicting_layers
    if found.method == MTP and model.name.startswith(DSPARK_ALONE):
        return f"the layers of {model.name} draft by dspark alone: take that method"
    if not model.name.startswith(PREDICTING if found.method == MTP else OWN_DSPARK):
        return f"{model.name} has no layers of its own that draft by {found.method} in vLLM: name a `model` that does"
    if found.method != "dspark" and layers and found.tokens > layers and found.tokens % layers:
        return f"num_speculative_tokens {found.tokens} must be a multiple of the {layers} layers that draft"
    return ""


def drafting_note(model: Architecture, user: UserArgs) -> str:
    """What of the user's speculation is in the plan, as a sentence; empty for none."""
    found, drafting = speculation_of(user), drafting_of(model, user)
    if found is None or drafting is None:
        return ""
    cost = f"predictions count the verification of {drafting.tokens} drafted tokens in every step, and none as accepted"
    if found.method in WITHOUT_WEIGHTS:
        return f"speculation by {found.method} takes no weights; {cost}"
    if drafting.model is None:
        return (
            f"{FLAG} is set in engine.args, and the draft's model is not in the plan: its weights, cache and time come "
            f"on top; leave it room with --gpu-memory-utilization; {cost}"
        )
    draft = drafting.model
    weights = size(draft.weight_bytes) if draft is model.draft else size(model.predicting_bytes)
    whose = f"with {found.model}" if found.model else "by the model's own layers"
    cut = uncut_because(model, user)
    return (
        f"speculation by {found.method} {whose}: {weights} of weights and {draft.kv_bytes_per_token:,} bytes of KV "
        f"cache a token are counted on the last stage, and the time to draft; {cost}"
        + (f"; one stage alone: {cut}" if cut else "")
    )
