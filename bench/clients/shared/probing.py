"""What the probes in Python share: the questions, and a run of one client's cases.

Standard library only, because each probe runs in its client's own environment:

    python probe.py ENDPOINT ENGINE MODEL OUT

ENDPOINT is the address that the client talks to: the engine's or the sidecar's. ENGINE is always the engine's, for its
metrics. MODEL is the folder with the model's tokenizer. OUT is the file for what the client handed back, as JSON.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

QUESTION = "How does the import statement work?"
MESSAGES = [{"role": "user", "content": QUESTION}]
MODEL, NO_MODEL = "tiny", "missing"
TOKENS, LONG = 12, 900
"""Tokens of an answer, and of one that a client leaves."""
MANY = 16
TOO_LONG = "word " * 2000
"""A prompt that is longer than the model's context."""
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "celsius": {"type": "boolean"}},
    "required": ["city", "celsius"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": SCHEMA}}
TOOL_CHOICE = {"type": "function", "function": {"name": "weather"}}
REST_S = 1.0
"""An engine that has generated nothing for so long has nothing to do."""


def questions() -> list[str]:
    """As many different ones as are asked at once."""
    return [f"{QUESTION} {number}" for number in range(MANY)]


def at_once(ask: Callable[[str], Any]) -> list[Any]:
    """The answers to all questions, each asked from a thread of its own."""
    with ThreadPoolExecutor(MANY) as pool:
        return list(pool.map(ask, questions()))


def joined(pieces: Iterator[str | None]) -> str:
    """A streamed text. Where it is cut depends on the engine's pace, so only the whole is compared."""
    return "".join(piece for piece in pieces if piece)


class Probe:
    """One client's cases, by feature."""

    def __init__(self, package: str) -> None:
        self.endpoint, self.engine, self.model_folder, self._out = sys.argv[1:5]
        self._package = package
        self._cases: dict[str, Callable[[], Any]] = {}

    def case(self, feature: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
        """Declare a case: a function, async or not, that returns what the client hands back."""

        def declare(function: Callable[[], Any]) -> Callable[[], Any]:
            self._cases[feature] = function
            return function

        return declare

    def left(self, begin: Callable[[], Any]) -> dict[str, Any]:
        """Leave a stream that `begin` reads the beginning of: did text arrive, and was it aborted at the engine?"""
        before = self._tokens()
        return {"began": bool(begin()), "aborted": self._ended_early(before)}

    async def left_async(self, begin: Callable[[], Any]) -> dict[str, Any]:
        """The same, where `begin` is a coroutine function."""
        before = self._tokens()
        began = bool(await begin())
        return {"began": began, "aborted": await asyncio.to_thread(self._ended_early, before)}

    def run(self) -> None:
        """Run every case and write what came of it."""
        found = {feature: self._outcome(function) for feature, function in self._cases.items()}
        Path(self._out).write_text(json.dumps({"version": version(self._package), "cases": found}))

    def _outcome(self, function: Callable[[], Any]) -> Any:
        try:
            return plain(asyncio.run(function()) if iscoroutinefunction(function) else function())
        except Exception as error:  # what a client raises is what it hands back
            kind = type(error)
            raised = {"raised": f"{kind.__module__}.{kind.__qualname__}", "message": str(error)}
            status = getattr(error, "status_code", None)
            return raised if status is None else raised | {"status": status}

    def _tokens(self) -> float:
        """Tokens that the engine has generated since its start."""
        with urllib.request.urlopen(f"{self.engine}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return sum(map(float, re.findall(r"^vllm:generation_tokens_total\{[^}]*\} (\S+)$", text, re.MULTILINE)))

    def _ended_early(self, before: float) -> bool:
        """Whether the engine stopped before the whole answer was generated."""
        last = self._tokens()
        while True:
            time.sleep(REST_S)
            now = self._tokens()
            if now == last:
                return now - before < LONG
            last = now


def plain(value: Any) -> Any:
    """A client's own types as JSON."""
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json", warnings=False))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
