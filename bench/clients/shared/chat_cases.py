"""The cases of every client whose chat call has the form of the official OpenAI one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from probing import NO_MODEL, TOOL, TOOL_CHOICE, Probe, at_once, joined


def about(asked: dict[str, Any], text: str) -> dict[str, Any]:
    """The arguments `asked` with another question."""
    return asked | {"messages": [{"role": "user", "content": text}]}


def summary(chunks: list[Any]) -> dict[str, Any]:
    """What a stream consists of, wherever it is cut."""
    choices = [choice for chunk in chunks for choice in chunk.choices]
    return {
        "text": joined(choice.delta.content for choice in choices),
        "arguments": joined(call.function.arguments for choice in choices for call in choice.delta.tool_calls or []),
        "finish": [choice.finish_reason for choice in choices if choice.finish_reason],
        "usage": [chunk.usage for chunk in chunks if chunk.usage],
        "several": len(chunks) > 2,
    }


def begins(events: Any) -> bool:
    """Read a stream up to its first text, and leave it."""
    with events:
        return any(chunk.choices and chunk.choices[0].delta.content for chunk in events)


def declare(probe: Probe, chat: Callable[..., Any], asked: dict[str, Any]) -> None:
    """Declare the cases. `chat` is the client's call, `asked` its arguments for a short answer."""

    @probe.case("stream")
    def stream() -> Any:
        return summary(list(chat(**asked, stream=True)))

    @probe.case("stream, usage")
    def stream_usage() -> Any:
        return summary(list(chat(**asked, stream=True, stream_options={"include_usage": True})))

    @probe.case("unknown model")
    def unknown_model() -> Any:
        return chat(**asked | {"model": NO_MODEL})

    @probe.case("bad parameter")
    def bad_parameter() -> Any:
        return chat(**asked | {"temperature": -1})

    @probe.case("tool")
    def tool() -> Any:
        calling = asked | {"max_tokens": 64, "tools": [TOOL], "tool_choice": TOOL_CHOICE}
        return [chat(**calling), summary(list(chat(**calling, stream=True)))]

    @probe.case("many at once")
    def many() -> Any:
        return at_once(lambda text: chat(**about(asked, text)))
