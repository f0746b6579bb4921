"""The official Anthropic client in Python."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
from probing import LONG, MESSAGES, MODEL, NO_MODEL, SCHEMA, TOKENS, TOO_LONG, Probe, at_once, joined, questions

probe = Probe("anthropic")
client = anthropic.Anthropic(base_url=probe.endpoint, api_key="none")
# Version 2 has no argument for a temperature.
GREEDY = {"temperature": 0}
ASKED: dict[str, Any] = {"model": MODEL, "max_tokens": TOKENS, "messages": MESSAGES, "extra_body": GREEDY}
TOOLS = {
    "tools": [{"name": "weather", "description": "The weather.", "input_schema": SCHEMA}],
    "tool_choice": {"type": "tool", "name": "weather"},
    "max_tokens": 64,
}
create = client.messages.create


def about(text: str) -> dict[str, Any]:
    return ASKED | {"messages": [{"role": "user", "content": text}]}


@probe.case("answer")
def answer() -> Any:
    return create(**ASKED)


@probe.case("other routes")
def other_routes() -> Any:
    return client.messages.count_tokens(model=MODEL, messages=MESSAGES)


@probe.case("stream")
def stream() -> Any:
    with client.messages.stream(**ASKED) as events:
        return [joined(events.text_stream), events.get_final_message()]


@probe.case("stream, usage")
def stream_usage() -> Any:
    return [event.usage for event in create(**ASKED, stream=True) if event.type == "message_delta"]


@probe.case("unknown model")
def unknown_model() -> Any:
    return create(**ASKED | {"model": NO_MODEL})


@probe.case("bad parameter")
def bad_parameter() -> Any:
    return create(**ASKED | {"max_tokens": -1})


@probe.case("prompt too long")
def too_long() -> Any:
    return create(**about(TOO_LONG), stream=True)


@probe.case("tool")
def tool() -> Any:
    with client.messages.stream(**ASKED | TOOLS) as events:
        streamed = events.get_final_message()
    return [create(**ASKED | TOOLS), streamed]


@probe.case("many at once")
def many() -> Any:
    return at_once(lambda text: create(**about(text)))


@probe.case("left stream")
def left() -> Any:
    def begin() -> bool:
        with client.messages.stream(**ASKED | {"max_tokens": LONG}) as events:
            return any(events.text_stream)

    return [probe.left(begin), create(**ASKED)]


@probe.case("async")
async def asynchronous() -> Any:
    async with anthropic.AsyncAnthropic(base_url=probe.endpoint, api_key="none") as ours:
        async with ours.messages.stream(**ASKED) as events:
            streamed = await events.get_final_message()
        return [streamed, await asyncio.gather(*(ours.messages.create(**about(text)) for text in questions()))]


probe.run()
