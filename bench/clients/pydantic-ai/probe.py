"""Pydantic AI's agents on its OpenAI model."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from probing import LONG, MODEL, NO_MODEL, QUESTION, TOKENS, TOO_LONG, Probe, questions
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

probe = Probe("pydantic-ai-slim")


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome"]
    celsius: bool


def agent(output: Any = str, *, model: str = MODEL, **settings: Any) -> Agent[None, Any]:
    provider = OpenAIProvider(base_url=f"{probe.endpoint}/v1", api_key="none")
    chosen: Any = {"temperature": 0, "max_tokens": TOKENS} | settings
    return Agent(OpenAIChatModel(model, provider=provider), output_type=output, model_settings=chosen, retries=0)


def told(run: Any) -> dict[str, Any]:
    last = run.all_messages()[-1]
    return {"output": run.output, "usage": last.usage, "finish": last.finish_reason, "details": last.provider_details}


async def streamed(ours: Agent[None, Any]) -> dict[str, Any]:
    async with ours.run_stream(QUESTION) as run:
        text = "".join([piece async for piece in run.stream_text(delta=True, debounce_by=None)])
        return {"text": text, "usage": run.usage, "finish": run.all_messages()[-1].finish_reason}


@probe.case("answer")
def answer() -> Any:
    return told(agent().run_sync(QUESTION))


@probe.case("stream, usage")
async def stream() -> Any:
    return await streamed(agent())


@probe.case("unknown model")
def unknown_model() -> Any:
    return told(agent(model=NO_MODEL).run_sync(QUESTION))


@probe.case("bad parameter")
def bad_parameter() -> Any:
    return told(agent(temperature=-1).run_sync(QUESTION))


@probe.case("prompt too long")
def too_long() -> Any:
    return told(agent().run_sync(TOO_LONG))


@probe.case("tool")
def tool() -> Any:
    return told(agent(Weather, max_tokens=64).run_sync(QUESTION))


@probe.case("structured")
def structured() -> Any:
    return told(agent(NativeOutput(Weather), max_tokens=64).run_sync(QUESTION))


@probe.case("many at once")
async def many() -> Any:
    ours = agent()
    return [told(run) for run in await asyncio.gather(*(ours.run(text) for text in questions()))]


@probe.case("left stream")
async def left() -> Any:
    async def begin() -> bool:
        async with agent(max_tokens=LONG).run_stream(QUESTION) as run:
            pieces = run.stream_text(delta=True, debounce_by=None)
            found = await anext(pieces)
            await pieces.aclose()
            await run.cancel()
        return bool(found)

    return [await probe.left_async(begin), told(await agent().run(QUESTION))]


probe.run()
