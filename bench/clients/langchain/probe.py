"""LangChain's ChatOpenAI."""

from __future__ import annotations

from typing import Any

from langchain_openai import ChatOpenAI
from probing import LONG, MODEL, NO_MODEL, QUESTION, SCHEMA, TOKENS, TOO_LONG, TOOL, Probe, joined, questions

probe = Probe("langchain-openai")


def model(**changed: Any) -> ChatOpenAI:
    base = {"model": MODEL, "temperature": 0, "max_tokens": TOKENS}
    return ChatOpenAI(base_url=f"{probe.endpoint}/v1", api_key="none", **base | changed)


def summary(chunks: list[Any]) -> dict[str, Any]:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return {"whole": whole, "several": len(chunks) > 2}


@probe.case("answer")
def answer() -> Any:
    return model().invoke(QUESTION)


@probe.case("stream")
def stream() -> Any:
    return summary(list(model(stream_usage=False).stream(QUESTION)))


@probe.case("stream, usage")
def stream_usage() -> Any:
    return summary(list(model(stream_usage=True).stream(QUESTION)))


@probe.case("unknown model")
def unknown_model() -> Any:
    return model(model=NO_MODEL).invoke(QUESTION)


@probe.case("bad parameter")
def bad_parameter() -> Any:
    return model(temperature=-1).invoke(QUESTION)


@probe.case("prompt too long")
def too_long() -> Any:
    return list(model().stream(TOO_LONG))


@probe.case("tool")
def tool() -> Any:
    return model(max_tokens=64).bind_tools([TOOL], tool_choice="weather").invoke(QUESTION)


@probe.case("structured")
def structured() -> Any:
    schema = SCHEMA | {"title": "weather"}
    return model(max_tokens=64).with_structured_output(schema, method="json_schema").invoke(QUESTION)


@probe.case("many at once")
def many() -> Any:
    return model().batch(questions(), config={"max_concurrency": len(questions())})


@probe.case("left stream")
def left() -> Any:
    ours = model(max_tokens=LONG)

    def begin() -> bool:
        chunks = ours.stream(QUESTION)
        found = joined(next(chunks).content for _ in range(3))
        chunks.close()
        return bool(found)

    return [probe.left(begin), model().invoke(QUESTION)]


@probe.case("async")
async def asynchronous() -> Any:
    ours = model(stream_usage=True)
    return [
        await ours.ainvoke(QUESTION),
        summary([chunk async for chunk in ours.astream(QUESTION)]),
        await ours.abatch(questions()),
    ]


probe.run()
