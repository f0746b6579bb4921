"""LlamaIndex's OpenAILike."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from probing import LONG, MODEL, NO_MODEL, QUESTION, TOKENS, TOO_LONG, Probe, at_once, joined, questions

probe = Probe("llama-index-llms-openai-like")


def model(**changed: Any) -> OpenAILike:
    settings = {"model": MODEL, "temperature": 0, "max_tokens": TOKENS, "is_chat_model": True}
    settings |= {"is_function_calling_model": True, "context_window": 1024}
    return OpenAILike(api_base=f"{probe.endpoint}/v1", api_key="none", **settings | changed)


def asked(text: str = QUESTION) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return city


# LlamaIndex makes a pydantic model of them and does not know this module's names.
weather.__annotations__ = {"city": Literal["Paris", "Rome"], "return": str}


def told(answer: Any) -> dict[str, Any]:
    return {"message": answer.message, "raw": answer.raw}


def summary(chunks: list[Any]) -> dict[str, Any]:
    return {"text": joined(chunk.delta for chunk in chunks), "last": chunks[-1].raw, "several": len(chunks) > 2}


@probe.case("answer")
def answer() -> Any:
    return [told(model().chat(asked())), model(is_chat_model=False).complete(QUESTION)]


@probe.case("stream")
def stream() -> Any:
    return summary(list(model().stream_chat(asked())))


@probe.case("stream, usage")
def stream_usage() -> Any:
    return summary(list(model().stream_chat(asked(), stream_options={"include_usage": True})))


@probe.case("unknown model")
def unknown_model() -> Any:
    return told(model(model=NO_MODEL).chat(asked()))


@probe.case("bad parameter")
def bad_parameter() -> Any:
    return told(model(temperature=-1).chat(asked()))


@probe.case("prompt too long")
def too_long() -> Any:
    return summary(list(model().stream_chat(asked(TOO_LONG))))


@probe.case("tool")
def tool() -> Any:
    ours = model(max_tokens=64)
    tools = [FunctionTool.from_defaults(weather)]
    return told(ours.chat_with_tools(tools, user_msg=QUESTION, tool_required=True))


@probe.case("many at once")
def many() -> Any:
    ours = model()
    return at_once(lambda text: told(ours.chat(asked(text))))


@probe.case("left stream")
def left() -> Any:
    ours = model(max_tokens=LONG)

    def begin() -> bool:
        chunks = ours.stream_chat(asked())
        found = joined(next(chunks).delta for _ in range(3))
        chunks.close()
        return bool(found)

    return [probe.left(begin), told(ours.chat(asked(), max_tokens=TOKENS))]


@probe.case("async")
async def asynchronous() -> Any:
    ours = model()
    chunks = [chunk async for chunk in await ours.astream_chat(asked())]
    answers = await asyncio.gather(*(ours.achat(asked(text)) for text in questions()))
    return [summary(chunks), [told(each) for each in answers]]


probe.run()
