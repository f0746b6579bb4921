"""The official OpenAI client in Python."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
from chat_cases import about, begins, declare, summary
from probing import LONG, MESSAGES, MODEL, QUESTION, SCHEMA, TOKENS, TOO_LONG, Probe, questions

probe = Probe("openai")
client = openai.OpenAI(base_url=f"{probe.endpoint}/v1", api_key="none")
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": TOKENS}
CHAT = GREEDY | {"messages": MESSAGES}
chat = client.chat.completions.create
FORMAT = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}


def a_client() -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{probe.endpoint}/v1", api_key="none")


@probe.case("answer")
def answer() -> Any:
    return [chat(**CHAT), client.completions.create(**GREEDY, prompt=QUESTION)]


@probe.case("other routes")
def other_routes() -> Any:
    asked = {"model": MODEL, "temperature": 0, "max_output_tokens": TOKENS, "input": QUESTION}
    events = [event.type for event in client.responses.create(**asked, stream=True)]
    return [client.models.list(), client.responses.create(**asked), sorted(set(events)), events[-1]]


@probe.case("prompt too long")
def too_long() -> Any:
    return chat(**about(CHAT, TOO_LONG), stream=True)


@probe.case("structured")
def structured() -> Any:
    return chat(**CHAT | {"max_tokens": 64, "response_format": FORMAT})


@probe.case("left stream")
def left() -> Any:
    def begin() -> bool:
        return begins(chat(**CHAT | {"max_tokens": LONG}, stream=True, extra_body={"ignore_eos": True}))

    return [probe.left(begin), chat(**CHAT)]


@probe.case("async")
async def asynchronous() -> Any:
    async with a_client() as ours:
        chunks = [chunk async for chunk in await ours.chat.completions.create(**CHAT, stream=True)]
        asked = [ours.chat.completions.create(**about(CHAT, text)) for text in questions()]
        return [summary(chunks), await asyncio.gather(*asked)]


declare(probe, chat, CHAT)
probe.run()
