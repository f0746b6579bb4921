"""vLLM's flags for what spec.model.maxModelLen, dtype and quantization say: the plan counts them, too."""

from __future__ import annotations

import re
from typing import NamedTuple

from uellm.errors import PlanError
from uellm.models.precision import ALIASES
from uellm.models.schemes import SAME, TOOLS_NAMES
from uellm.models.shown import shown
from uellm.planner.vllm.flags import DTYPE, MODEL_LENGTH, QUANTIZATION, UserArgs
from uellm.planner.vllm.refused_flags import flag_name

DTYPES = ("auto", "bfloat16", "float16", "half", "float32", "float")
LONGEST = 100_000_000
"""Tokens, as in spec.model.maxModelLen."""
SHORTEST_FORMS = {MODEL_LENGTH: "--max-m", DTYPE: "--dt", QUANTIZATION: "--q"}
"""From these on, vLLM's parser completes the flags."""
_AUTO = ("auto", "-1")
_METHOD = re.compile(r"[a-z][a-z0-9_-]{0,31}")


class ModelSettings(NamedTuple):
    """What spec.model and the engine's flags say together."""

    max_model_len: int | None
    """Tokens; None: as the model allows."""
    dtype: str
    quantization: str


def with_flags(spec: ModelSettings, user: UserArgs) -> ModelSettings:
    """The settings of spec.model, and those of the user's flags where the spec leaves them open.

    Raises PlanError InvalidOverride for a value that the engine does not take, and for one that contradicts the spec.
    """
    _check_spelling(user)
    return ModelSettings(
        _length(spec.max_model_len, user), _dtype(spec.dtype, user), _quantization(spec.quantization, user)
    )


def _check_spelling(user: UserArgs) -> None:
    for argument in user.args:
        flag = flag_name(argument)
        for full, shortest in SHORTEST_FORMS.items():
            if flag != full and full.startswith(flag) and flag.startswith(shortest):
                raise _refused(f"{flag} is short for {full}: write it in full")


def _length(spec: int | None, user: UserArgs) -> int | None:
    text = user.text(MODEL_LENGTH)
    if text is None:
        return spec
    if text.lower() in _AUTO:
        if spec is not None:
            raise _contradiction(MODEL_LENGTH, text, "maxModelLen", spec)
        return None  # planned for the longest, which the engine then has room for
    own = user.number(MODEL_LENGTH)
    if own is not None and own > LONGEST:
        raise _refused(f"{MODEL_LENGTH} {text} is more than {LONGEST} tokens")
    if spec is not None and own != spec:
        raise _contradiction(MODEL_LENGTH, text, "maxModelLen", spec)
    return own


def _dtype(spec: str, user: UserArgs) -> str:
    text = user.text(DTYPE)
    if text is None:
        return spec
    if text not in DTYPES:
        raise _refused(f"{DTYPE} {shown(text)} is not one of {', '.join(DTYPES)}")
    own = ALIASES.get(text, text)
    if spec not in ("auto", own):
        raise _contradiction(DTYPE, text, "dtype", spec)
    return own


def _quantization(spec: str, user: UserArgs) -> str:
    text = user.text(QUANTIZATION)
    if text is None:
        return spec
    if text in ("", "None"):  # vLLM reads both as none given, and takes that of config.json
        if text == "" or spec != "auto":
            raise _refused(f"{QUANTIZATION} {shown(text)} names no method: use spec.model.quantization")
        return spec
    if text in ("auto", "none") or not _METHOD.fullmatch(text):
        raise _refused(f"{QUANTIZATION} {shown(text)} is no method of the engine: use spec.model.quantization")
    if text in TOOLS_NAMES:
        raise _refused(f"{QUANTIZATION} {shown(text)} is no method of the engine: use {TOOLS_NAMES[text]}")
    if spec != "auto" and SAME.get(spec, spec) != SAME.get(text, text):
        raise _contradiction(QUANTIZATION, text, "quantization", spec)
    return text


def _contradiction(flag: str, text: str, field: str, spec: object) -> PlanError:
    return _refused(f"{flag} {text} contradicts spec.model.{field} {spec}: leave one of them out")


def _refused(message: str) -> PlanError:
    return PlanError("InvalidOverride", f"spec.engine.args: {message}")
