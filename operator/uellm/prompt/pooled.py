"""The prompts of a request for vectors, scores or classes, of which a body may hold many.

A reranker reads the query again with each document, so the query counts once for each pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from uellm.prompt import found
from uellm.prompt.found import Prompt

PAIRS = (
    *(("query", "documents"), ("queries", "documents"), ("queries", "items")),
    *(("text_1", "text_2"), ("data_1", "data_2")),
)
"""The fields of a pair's two sides on the routes /score and /rerank."""

INPUTS = ("input", "texts", "inputs")
"""The fields of one prompt or of several."""


def of_pooling(body: Mapping[str, Any]) -> Prompt:
    """All prompts of the body together: their characters, token ids and number."""
    for left, right in PAIRS:
        if left in body and right in body:
            return _pairs(body[left], body[right])
    for name in INPUTS:
        if name in body:
            return found.of_text(body[name])
    return found.of_anything(body)


def _pairs(left: Any, right: Any) -> Prompt:
    """One text on the left meets all on the right; as many on both sides are pairs in order."""
    lefts, rights = found.of_text(left), found.of_text(right)
    pairs = max(lefts.prompts, rights.prompts)
    times = rights.prompts if lefts.prompts == 1 else 1
    return replace(
        rights,
        characters=lefts.characters * times + rights.characters,
        token_ids=lefts.token_ids * times + rights.token_ids,
        media=lefts.media * times + rights.media,
        prompts=pairs,
        templates=pairs,
        prefix=(),
    )
