"""The prompt of a request, by the kind of its route."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from uellm.prompt import found
from uellm.prompt.found import Prompt
from uellm.prompt.many import of_conversations, of_token_ids
from uellm.prompt.pooled import of_pooling
from uellm.vllm_routes import RouteKind


def of_request(kind: RouteKind, body: Mapping[str, Any]) -> Prompt:
    """The prompt of a request whose route is parsed (any kind but OTHER); `body`: the JSON object in its body."""
    prompt = _READERS[kind](body)
    names = _CUT if kind is _POOLING else _ELSEWHERE
    if body.keys().isdisjoint(names) or not any(body.get(name) for name in names):
        return prompt
    return replace(prompt, partial=True)


_POOLING = RouteKind.POOLING
_CUT = frozenset(("truncate_prompt_tokens",))
_ELSEWHERE = _CUT | {"previous_response_id", "conversation", "truncation", "documents", "chat_template"}
"""Fields that add to the prompt what is not counted, or cut it off."""

_READERS: Mapping[RouteKind, Callable[[Mapping[str, Any]], Prompt]] = {
    RouteKind.CHAT: found.of_chat,
    RouteKind.CONVERSATIONS: of_conversations,
    RouteKind.TOKEN_IDS: of_token_ids,
    RouteKind.MESSAGES: found.of_chat,
    RouteKind.RESPONSES: found.of_responses,
    RouteKind.COMPLETIONS: lambda body: found.of_text(body.get("prompt")),
    RouteKind.POOLING: of_pooling,
}
