"""The prompts of vLLM's routes for programs: many conversations in one body, and token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from uellm.prompt import found
from uellm.prompt.found import Prompt


def of_conversations(body: Mapping[str, Any]) -> Prompt:
    """All conversations of the body together. What they share is taken from the first."""
    given = body.get("messages")
    conversations = [each for each in given if isinstance(each, list)] if isinstance(given, list) else []
    if not conversations:
        return Prompt()
    first = found.of_chat({"messages": conversations[0]})
    every = found.of_chat({"messages": [turn for each in conversations for turn in each]})
    number = len(conversations)
    return replace(every, prompts=number, templates=number, template=first.template, text=first.text, prefix=())


def of_token_ids(body: Mapping[str, Any]) -> Prompt:
    """A list of token ids, and media in parts of their own."""
    ids, parts = body.get("token_ids"), body.get("content_parts")
    prompt = found.of_text(ids) if isinstance(ids, list) else Prompt()
    return replace(prompt, media=len(parts)) if isinstance(parts, list) else prompt
