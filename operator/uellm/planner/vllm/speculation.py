"""Speculation that the user set with `--speculative-config`: how it is read, and what the engine refuses of it.

Drafts are found in the prompt (ngram, suffix), or made by the layers for multi-token prediction that the checkpoint has
beside the model (mtp), or by a model or head of its own (models/drafts.py). The engine verifies all drafted tokens of a
sequence in one step, so each sequence brings that many more tokens to a step, and has a row of logits for each of them
(vllm/config/speculative.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from uellm.errors import PlanError
from uellm.models.shown import shown
from uellm.planner import constants as c
from uellm.planner.vllm.flags import UserArgs
from uellm.planner.vllm.refused_flags import flag_name

FLAG = "--speculative-config"
FLAGS = (FLAG, "-sc")
SHORT = {"--spec-method": "method", "--spec-model": "model", "--spec-tokens": "num_speculative_tokens"}
"""Flags for single fields of it."""
NGRAM, SUFFIX, MTP, DRAFT_MODEL = "ngram", "suffix", "mtp", "draft_model"
WITHOUT_WEIGHTS = (NGRAM, "ngram_gpu", SUFFIX)
OWN_CODE = ("custom_class", "extract_hidden_states")
"""Methods whose drafts nothing is known of."""
NEED_MODEL = (DRAFT_MODEL, "eagle", "eagle3", "medusa", "mlp_speculator", "dflash")
TAP_STATES = ("eagle3", "dflash", "dspark", "extract_hidden_states")
"""Methods that need the states of the model's inner layers."""
MTP_METHODS = frozenset(
    {
        *("deepseek_mtp", "dots3_note_mtp", "mimo_mtp", "mimo_v2_mtp", "glm4_moe_mtp", "glm4_moe_lite_mtp", "mtp"),
        *("glm_ocr_mtp", "ernie_mtp", "nemotron_h_mtp", "exaone_moe_mtp", "exaone4_5_mtp", "qwen3_next_mtp"),
        *("qwen4_exp_mtp", "qwen3_5_mtp", "longcat_flash_mtp", "bailing_hybrid_v3_mtp", "minimax_m3_mtp"),
        *("bailing_hybrid_mtp", "kimi_k3_mtp", "pangu_ultra_moe_mtp", "step3p5_mtp", "hy_v3_mtp", "hy_v4_mtp"),
        *("gemma4_mtp", "inkling_mtp", "glm5_next_mtp"),
    }
)
"""Older names of one method."""
METHODS = (*WITHOUT_WEIGHTS, MTP, *NEED_MODEL, "dspark", *OWN_CODE)
FIELDS = frozenset(
    {
        *("enforce_eager", "num_speculative_tokens", "model", "method", "draft_tensor_parallel_size", "quantization"),
        *("moe_backend", "attention_backend", "kv_cache_dtype", "max_model_len", "revision", "code_revision"),
        *("index_share_for_mtp_iteration", "disable_padded_drafter_batch", "disable_eagle_block_drop"),
        *("use_local_argmax_reduction", "use_heterogeneous_vocab", "prompt_lookup_max", "prompt_lookup_min"),
        *("parallel_drafting", "num_speculative_tokens_per_batch_size", "suffix_decoding_max_tree_depth"),
        *("suffix_decoding_max_cached_requests", "suffix_decoding_max_spec_factor", "suffix_decoding_min_token_prob"),
        *("draft_load_config", "rejection_sample_method", "synthetic_acceptance_rates", "synthetic_acceptance_length"),
        *("enable_adaptive_verification", "draft_sample_method", "dspark_draft_topk", "tensor_parallel_size"),
    }
)
"""Those of the engine's SpeculativeConfig that a user may set."""
# Names of draft models by which the engine finds their method, in its order.
_BY_NAME = (("eagle-", "eagle"), ("eagle3", "eagle3"), ("dflash", "dflash"), ("dspark", "dspark"))


@dataclass(frozen=True, slots=True)
class Speculation:
    """How drafts are made."""

    method: str
    tokens: int
    """Drafted for each sequence in a step; 0: as many as the draft is made for."""
    model: str = ""
    """The draft's model, as the user names it; empty: the drafts need none, or the model's own layers make them."""
    revision: str = ""
    parallel: bool = False
    """All tokens are drafted in one pass."""
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def predicts_itself(self) -> bool:
        """Whether the model's own layers for multi-token prediction draft."""
        return self.method in (MTP, "dspark") and not self.model

    @property
    def passes(self) -> int:
        """Passes of the draft over each sequence in a step."""
        at_once = self.parallel or self.method in ("dflash", "dspark", "medusa")
        return 1 if at_once else max(1, self.tokens)

    def text(self, name: str) -> str:
        """A field that is a text; empty where it is not given."""
        value = self.given.get(name)
        return value if isinstance(value, str) else ""


def speculation_of(user: UserArgs) -> Speculation | None:
    """What the user set; None for none. Raises PlanError InvalidOverride for what the engine refuses."""
    given = _given(user)
    if given is None:
        return None
    if unknown := sorted(set(given) - FIELDS):
        _refuse(f"has no field {shown(unknown[0])}", "leave it out")
    if given.get("tensor_parallel_size") is not None:
        _refuse("has no use for tensor_parallel_size", "give draft_tensor_parallel_size")
    name, revision = given.get("model"), given.get("revision")
    for text, found in (("model", name), ("method", given.get("method")), ("revision", revision)):
        if found is not None and (not isinstance(found, str) or not found):
            _refuse(f"has a {text} that is no name, {shown(found)}", "give a text")
    method = _method(given.get("method"), name or "")
    has_model = bool(name) and method not in (*WITHOUT_WEIGHTS, *OWN_CODE)
    if method in NEED_MODEL and not has_model:
        _refuse(f"names no model that drafts by {method}", "add `model`")
    tokens = _tokens(given.get("num_speculative_tokens"), method, has_model=has_model)
    return Speculation(
        method,
        tokens,
        str(name) if has_model else "",
        str(revision or "") if has_model else "",
        parallel=given.get("parallel_drafting") is True,
        given=given,
    )


def method_by_config(speculation: Speculation, config: Mapping[str, Any]) -> str:
    """The method once the draft's config.json is known, as the engine finds it."""
    if speculation.method != DRAFT_MODEL:
        return speculation.method
    kind = str(config.get("model_type") or "")
    if kind in ("medusa", "mlp_speculator"):
        return kind
    speculators = str(config.get("speculators_model_type") or "")
    if speculators:
        return {"peagle": "eagle3", "dflash2": "dflash"}.get(speculators, speculators)
    return MTP if kind.endswith(("_mtp", "_assistant")) else DRAFT_MODEL


def with_draft(args: tuple[str, ...], model: str, revision: str) -> tuple[str, ...]:
    """The arguments with the draft's model in another place: at a commit, or at a path in the container."""
    user = UserArgs(args)
    found = speculation_of(user)
    if found is None or not found.model:
        return args
    fields = {name: value for name, value in found.given.items() if name not in ("model", "revision")}
    told = {**fields, "model": model, **({"revision": revision} if revision else {})}
    rest, skipped = [], False
    for index, argument in enumerate(args):
        is_ours = flag_name(argument) in (*FLAGS, *SHORT)
        if not is_ours and not skipped:
            rest.append(argument)
        skipped = is_ours and "=" not in argument and index + 1 < len(args)
    return (*rest, FLAG, json.dumps(told, sort_keys=True))


def _given(user: UserArgs) -> dict[str, Any] | None:
    """The fields that the user gave, in all the forms that vLLM's parser takes; None for none."""
    found: dict[str, Any] | None = None
    for argument, flag, text in _ours(user):
        field_path = argument.split("=", 1)[0].split(".", 1)[1:]
        if flag in SHORT:
            given = {SHORT[flag]: _value(text)}
        elif field_path:
            given = {field_path[0].split(".", 1)[0]: _value(text)}
        else:
            given = _object(text)
        found = {**(found or {}), **{name.replace("-", "_"): value for name, value in given.items()}}
    return found


def _ours(user: UserArgs) -> Iterator[tuple[str, str, str]]:
    """Of the arguments those about speculation, with their flags and values."""
    for index, argument in enumerate(user.args):
        flag = flag_name(argument)
        if flag in (*FLAGS, *SHORT):
            attached = argument.split("=", 1)[1] if "=" in argument else None
            yield argument, flag, attached if attached is not None else "".join(user.args[index + 1 : index + 2])


def _object(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise PlanError("InvalidOverride", f"spec.engine.args: {FLAG} {shown(text)} is no JSON object")
    return given


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _method(given: str | None, model: str) -> str:
    if given is not None:
        method = MTP if given in MTP_METHODS else NGRAM if given == "[ngram]" else given
        if method not in METHODS:
            _refuse(f"names the method {shown(given)}, which the engine does not have", f"take {', '.join(METHODS)}")
        if method != DRAFT_MODEL:
            return method
    if model in (NGRAM, "[ngram]"):
        return NGRAM
    parts = model.split(".")
    if given is None and "/" not in model and len(parts) > 1 and all(part.isidentifier() for part in parts):
        return "custom_class"
    return next((method for part, method in _BY_NAME if part in model.lower()), DRAFT_MODEL)


def _tokens(given: Any, method: str, *, has_model: bool) -> int:
    if given is None and method == SUFFIX:
        return c.SUFFIX_TOKENS
    if given is None and has_model:
        return 0  # the draft's own configuration may say it
    if given is None:
        _refuse("does not say how many tokens are drafted", "add `num_speculative_tokens`")
    if type(given) is not int or not 0 < given < c.MOST_DRAFTED_TOKENS:
        most = c.MOST_DRAFTED_TOKENS - 1
        _refuse(f"has num_speculative_tokens {shown(given)}, which is no whole number from 1 to {most}", "")
    return int(given)


def _refuse(what: str, remedy: str) -> None:
    raise PlanError("InvalidOverride", f"spec.engine.args: {FLAG} {what}{': ' if remedy else ''}{remedy}")
