"""The official OpenAI client in Python."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
from probing import (
    LONG,
    MESSAGES,
    MODEL,
    NO_MODEL,
    QUESTION,
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

probe = Probe("openai")
client = openai.OpenAI(base_url=f"{probe.endpoint}/v1", api_key="none")
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": TOKENS}
CHAT = GREEDY | {"messages": MESSAGES}
chat = client.chat.completions.create
FORMAT = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}


def a_client() -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{probe.endpoint}/v1", api_key="none")


def summary(chunks: list[Any]) -> dict[str, Any]:
    choices = [choice for chunk in chunks for choice in chunk.choices]
    return {
        "text": joined(choice.delta.content for choice in choices),
        "arguments": joined(call.function.arguments for choice in choices for call in choice.delta.tool_calls or []),
        "finish": [choice.finish_reason for choice in choices if choice.finish_reason],
        "usage": [chunk.usage for chunk in chunks if chunk.usage],
        "several": len(chunks) > 2,
    }


@probe.case("answer")
def answer() -> Any:
    return [chat(**CHAT), client.completions.create(**GREEDY, prompt=QUESTION)]


@probe.case("other routes")
def other_routes() -> Any:
    asked = {"model": MODEL, "temperature": 0, "max_output_tokens": TOKENS, "input": QUESTION}
    events = [event.type for event in client.responses.create(**asked, stream=True)]
    return [client.models.list(), client.responses.create(**asked), sorted(set(events)), events[-1]]


@probe.case("stream")
def stream() -> Any:
    return summary(list(chat(**CHAT, stream=True)))


@probe.case("stream, usage")
def stream_usage() -> Any:
    return summary(list(chat(**CHAT, stream=True, stream_options={"include_usage": True})))


@probe.case("unknown model")
def unknown_model() -> Any:
    return chat(**CHAT | {"model": NO_MODEL})


@probe.case("bad parameter")
def bad_parameter() -> Any:
    return chat(**CHAT | {"temperature": -1})


@probe.case("prompt too long")
def too_long() -> Any:
    return chat(**CHAT | {"messages": [{"role": "user", "content": TOO_LONG}]}, stream=True)


@probe.case("tool")
def tool() -> Any:
    asked = CHAT | {"max_tokens": 64, "tools": [TOOL], "tool_choice": TOOL_CHOICE}
    return [chat(**asked), summary(list(chat(**asked, stream=True)))]


@probe.case("structured")
def structured() -> Any:
    return chat(**CHAT | {"max_tokens": 64, "response_format": FORMAT})


@probe.case("many at once")
def many() -> Any:
    return at_once(lambda text: chat(**CHAT | {"messages": [{"role": "user", "content": text}]}))


@probe.case("left stream")
def left() -> Any:
    def begin() -> bool:
        with chat(**CHAT | {"max_tokens": LONG}, stream=True, extra_body={"ignore_eos": True}) as events:
            return any(chunk.choices and chunk.choices[0].delta.content for chunk in events)

    return [probe.left(begin), chat(**CHAT)]


@probe.case("async")
async def asynchronous() -> Any:
    async with a_client() as ours:
        chunks = [chunk async for chunk in await ours.chat.completions.create(**CHAT, stream=True)]
        asked = [
            ours.chat.completions.create(**CHAT | {"messages": [{"role": "user", "content": text}]})
            for text in questions()
        ]
        return [summary(chunks), await asyncio.gather(*asked)]


probe.run()
