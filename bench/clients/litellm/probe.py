"""LiteLLM's SDK."""

from __future__ import annotations

import asyncio
from typing import Any

import litellm
from probing import (
    LONG,
    MESSAGES,
    MODEL,
    NO_MODEL,
    SCHEMA,
    TOKENS,
    TOO_LONG,
    TOOL,
    TOOL_CHOICE,
    Probe,
    at_once,
    joined,
    questions,
)

litellm.suppress_debug_info = True
litellm.telemetry = False
probe = Probe("litellm")
ASKED: dict[str, Any] = {
    "model": f"hosted_vllm/{MODEL}",
    "api_base": f"{probe.endpoint}/v1",
    "api_key": "none",
    "temperature": 0,
    "max_tokens": TOKENS,
    "messages": MESSAGES,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}


def about(text: str) -> dict[str, Any]:
    return ASKED | {"messages": [{"role": "user", "content": text}]}


def summary(chunks: list[Any]) -> dict[str, Any]:
    whole = litellm.stream_chunk_builder(chunks)
    return {"whole": whole, "several": len(chunks) > 2}


@probe.case("answer")
def answer() -> Any:
    return litellm.completion(**ASKED)


@probe.case("stream")
def stream() -> Any:
    return summary(list(litellm.completion(**ASKED, stream=True)))


@probe.case("stream, usage")
def stream_usage() -> Any:
    chunks = list(litellm.completion(**ASKED, stream=True, stream_options={"include_usage": True}))
    return [summary(chunks), [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]]


@probe.case("unknown model")
def unknown_model() -> Any:
    return litellm.completion(**ASKED | {"model": f"hosted_vllm/{NO_MODEL}"})


@probe.case("bad parameter")
def bad_parameter() -> Any:
    return litellm.completion(**ASKED | {"temperature": -1})


@probe.case("prompt too long")
def too_long() -> Any:
    return list(litellm.completion(**about(TOO_LONG), stream=True))


@probe.case("tool")
def tool() -> Any:
    asked = ASKED | {"max_tokens": 64, "tools": [TOOL], "tool_choice": TOOL_CHOICE}
    return [litellm.completion(**asked), summary(list(litellm.completion(**asked, stream=True)))]


@probe.case("structured")
def structured() -> Any:
    return litellm.completion(**ASKED | {"max_tokens": 64, "response_format": FORMAT})


@probe.case("many at once")
def many() -> Any:
    return at_once(lambda text: litellm.completion(**about(text)))


@probe.case("left stream")
async def left() -> Any:
    async def begin() -> bool:
        chunks = await litellm.acompletion(**ASKED | {"max_tokens": LONG}, stream=True)
        found = joined([(await anext(chunks)).choices[0].delta.content for _ in range(3)])
        await chunks.aclose()
        return bool(found)

    return [await probe.left_async(begin), await litellm.acompletion(**ASKED)]


@probe.case("async")
async def asynchronous() -> Any:
    chunks = [chunk async for chunk in await litellm.acompletion(**ASKED, stream=True)]
    answers = await asyncio.gather(*(litellm.acompletion(**about(text)) for text in questions()))
    return [summary(chunks), answers]


probe.run()
