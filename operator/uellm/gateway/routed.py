"""What the choice of a replica depends on, read from a request. Pure."""

from __future__ import annotations

import json

from uellm.gateway.catalog import TargetClass
from uellm.prompt import Prompt, Ratio, of_request, with_adapter
from uellm.routing import RoutedRequest
from uellm.vllm_routes import SCHEDULED, RouteKind

MAX_PARSED_BYTES = 1024 * 1024
"""Longer bodies are not parsed, for that would hold up all streams; their prompts' lengths follow from their size."""


def routed_request(
    path: str, body: bytes, chosen: TargetClass | None, ratio: Ratio, now_s: float, adapter: str = ""
) -> RoutedRequest:
    """The request as the router sees it. `path`: one of `uellm.vllm_routes`; any other: the body is not parsed.

    `adapter`: the one that it names; empty for the model itself.
    """
    prompt = _prompt(path, body) or Prompt(characters=len(body))
    targets = chosen or TargetClass("")
    return RoutedRequest(
        now_s,
        ratio.tokens(prompt),
        ttft_s=targets.ttft_s,
        tpot_s=targets.tpot_s,
        e2e_s=targets.e2e_s,
        prefix=tuple(with_adapter(block, adapter) for block in prompt.prefix) if adapter else prompt.prefix,
    )


def _prompt(path: str, body: bytes) -> Prompt | None:
    kind = SCHEDULED.get(path, RouteKind.OTHER)
    if kind is RouteKind.OTHER or len(body) > MAX_PARSED_BYTES:
        return None
    try:
        document = json.loads(body)
        return of_request(kind, document) if isinstance(document, dict) else None
    except (ValueError, TypeError, RecursionError):
        return None
