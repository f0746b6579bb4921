"""The engine's flags: those that the user set, and those that the plan adds. The user's take precedence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from uellm.errors import PlanError
from uellm.planner.vllm.refused_flags import flag_name, refused_args

# vLLM's human-readable numbers: lower case is decimal, upper case is binary (vllm/engine/arg_utils.py).
_NUMBER = re.compile(r"^(\d+(?:\.\d+)?)([kKmMgGtT]?)$")
_FACTORS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "K": 1 << 10,
    "M": 1 << 20,
    "G": 1 << 30,
    "T": 1 << 40,
}

BATCHED_TOKENS = "--max-num-batched-tokens"
SEQUENCES = "--max-num-seqs"
MODEL_LENGTH = "--max-model-len"
DTYPE = "--dtype"
QUANTIZATION = "--quantization"
ALLOW_DEPRECATED = "--allow-deprecated-quantization"
KV_CACHE_BYTES = "--kv-cache-memory-bytes"
UTILIZATION = "--gpu-memory-utilization"
SCHEDULING_POLICY = "--scheduling-policy"
ENABLE_ADAPTERS = "--enable-lora"
ADAPTER_SLOTS = "--max-loras"
ADAPTER_RANK = "--max-lora-rank"
HOST_ADAPTERS = "--max-cpu-loras"
LOAD_FORMAT = "--load-format"
ALLOW_LONG = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
"""The variable that lets --max-model-len go beyond the length of the model's config.json."""
STREAMING_FORMATS = ("runai_streamer", "runai_streamer_sharded", "modelexpress")
"""Those that load from an object store (vllm/config/vllm.py)."""


class UserArgs:
    """`spec.engine.args` by flag."""

    def __init__(self, args: Sequence[str]) -> None:
        self.args = tuple(args)
        self._long = tuple(long_form(argument) for argument in args)
        self.flags = frozenset(flag_name(argument) for argument in self._long)

    def text(self, flag: str) -> str | None:
        """The value of the last such flag; None if it is absent, "" if it has no value."""
        found = None
        for index, argument in enumerate(self._long):
            if flag_name(argument) == flag:
                following = self.args[index + 1 : index + 2]
                attached = argument.split("=", 1)[1] if "=" in argument else None
                found = attached if attached is not None else (following[0] if following else "")
        return found

    def number(self, flag: str) -> int | None:
        """A positive whole number as vLLM reads it (`8k` is 8000, `8K` 8192). Raises PlanError InvalidOverride."""
        text = self.text(flag)
        if text is None:
            return None
        match = _NUMBER.match(text)
        if match and "." in match.group(1) and match.group(2).isupper():
            match = None  # the engine takes fractions of decimal units only
        value = float(match.group(1)) * _FACTORS[match.group(2)] if match else 0.0
        if value < 1 or value != int(value):
            raise PlanError("InvalidOverride", f"spec.engine.args: {flag} {text!r} is not a positive whole number")
        return int(value)

    def share(self, flag: str) -> str | None:
        """A share between 0 and 1, as written. Raises PlanError InvalidOverride."""
        text = self.text(flag)
        if text is None:
            return None
        if not re.fullmatch(r"0?\.\d{1,9}|1(\.0{1,9})?", text) or float(text) == 0:
            raise PlanError("InvalidOverride", f"spec.engine.args: {flag} {text!r} is not a share above 0 and up to 1")
        return text


def long_form(argument: str) -> str:
    """An argument with `--quantization` for `-q`, whose value may follow without a space.

    >>> long_form("-q"), long_form("-qfp8"), long_form("-q=awq"), long_form("--seed")
    ('--quantization', '--quantization=fp8', '--quantization=awq', '--seed')
    """
    if not argument.startswith("-q"):
        return argument
    value = argument.removeprefix("-q").removeprefix("=")
    return f"{QUANTIZATION}={value}" if argument != "-q" else QUANTIZATION


def check_args(args: Sequence[str]) -> None:
    """Refuse flags that contradict the plan or the pod. Raises PlanError InvalidOverride with what to do instead."""
    for flag, instead in refused_args(args):
        raise PlanError("InvalidOverride", f"spec.engine.args: {flag} is not allowed: {instead}")


def resolve(user: UserArgs, planned: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The planner's flags that the user did not set, then the user's own flags. A flag may have no value: ""."""
    added = [part for flag, value in planned if flag not in user.flags for part in (flag, value) if part]
    return (*added, *user.args)
