"""Targets that a request brings itself, in llm-d's headers and the older ones that it took over."""

from __future__ import annotations

import math
import re

from uellm.proxying.outcome import Refusal, RequestOutcome
from uellm.proxying.routes import HeaderLookup

TTFT_MS = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
TPOT_MS = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")

MAX_MS = 24 * 3600 * 1000.0
# What clients in Go write; Python's own numbers would also have underscores, blanks and other digits.
_NUMBER = re.compile(r"[0-9]{1,16}(\.[0-9]{1,16})?([eE][+-]?[0-9]{1,3})?")


def target_s(headers: HeaderLookup, names: tuple[str, ...]) -> float | None:
    """The target in the first of these headers that is there; None: there is none. Raises Refusal."""
    name = next((each for each in names if headers.get(each) is not None), names[0])
    text = headers.get(name)
    if text is None:
        return None
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not 0 < value <= MAX_MS:
        raise Refusal(
            RequestOutcome.BAD_REQUEST, f"{name} must be a number of milliseconds above 0 and at most {MAX_MS:.0f}"
        )
    return value / 1e3
