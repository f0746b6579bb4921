"""Instructor on top of the OpenAI client: answers as pydantic types."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import instructor
import openai
from probing import MESSAGES, MODEL, NO_MODEL, TOO_LONG, Probe, at_once, questions
from pydantic import BaseModel

probe = Probe("instructor")
ASKED: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 64, "max_retries": 1, "messages": MESSAGES}
ADDRESS = {"base_url": f"{probe.endpoint}/v1", "api_key": "none"}


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome"]
    celsius: bool


tools = instructor.from_openai(openai.OpenAI(**ADDRESS), mode=instructor.Mode.TOOLS)
schema = instructor.from_openai(openai.OpenAI(**ADDRESS), mode=instructor.Mode.JSON_SCHEMA)


def about(text: str) -> dict[str, Any]:
    return ASKED | {"messages": [{"role": "user", "content": text}]}


@probe.case("stream")
def stream() -> Any:
    pieces = list(schema.create_partial(response_model=Weather, **ASKED))
    return [pieces[-1], len(pieces) > 2]


@probe.case("unknown model")
def unknown_model() -> Any:
    return tools.create(response_model=Weather, **ASKED | {"model": NO_MODEL})


@probe.case("bad parameter")
def bad_parameter() -> Any:
    return tools.create(response_model=Weather, **ASKED | {"temperature": -1})


@probe.case("prompt too long")
def too_long() -> Any:
    return tools.create(response_model=Weather, **about(TOO_LONG))


@probe.case("tool")
def tool() -> Any:
    return list(tools.create_with_completion(response_model=Weather, **ASKED))


@probe.case("structured")
def structured() -> Any:
    return list(schema.create_with_completion(response_model=Weather, **ASKED))


@probe.case("many at once")
def many() -> Any:
    return at_once(lambda text: tools.create(response_model=Weather, **about(text)))


@probe.case("async")
async def asynchronous() -> Any:
    ours = instructor.from_openai(openai.AsyncOpenAI(**ADDRESS), mode=instructor.Mode.TOOLS)
    return await asyncio.gather(*(ours.create(response_model=Weather, **about(text)) for text in questions()))


probe.run()
