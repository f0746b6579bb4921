"""How a request is handled, by its route."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

from uellm.proxying.outcome import Refusal, RequestOutcome
from uellm.vllm_routes import SCHEDULED, administrative


class Way(Enum):
    """How a request is handled."""

    SCHEDULE = "schedule"
    PASS = "pass"
    METRICS = "metrics"


_SCHEDULE = Way.SCHEDULE


def way_of(method: str, path: str, allowed: Collection[str] = ()) -> Way:
    """How to handle a path from `path_of`. `allowed`: administrative routes that are open. Raises Refusal."""
    if method == "POST" and path in SCHEDULED:  # first, for most requests are; none of these is administrative
        return _SCHEDULE
    if administrative(path) and path not in allowed:
        raise Refusal(
            RequestOutcome.FORBIDDEN, f"{path} is an administrative route of the engine; it is not served here"
        )
    return Way.METRICS if method == "GET" and path == "/metrics" else Way.PASS
