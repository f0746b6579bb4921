"""Why the engine failed, out of what it printed. Pure.

vLLM's processes fail from the inside out: a worker raises, the engine core reports that a worker failed, the API server
that the engine core failed, and libraries complain at exit. So the first error of the innermost process is the cause.
Consequences ("See root cause above") and noise at exit never are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

LONGEST = 1000
"""Characters of a cause."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# (Worker_TP0 pid=12), (VllmWorker rank=5 pid=12), (EngineCore_DP0 pid=12), (APIServer pid=12)
_PROCESS = re.compile(r"^\((?P<name>[A-Za-z]+)[^()]*? pid=\d+\) ?")
# ERROR 11-28 10:00:00 [core.py:1224] text
_LOGGED = re.compile(r"^(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ \[[^\]]*\] ?")
_EXCEPTION = re.compile(
    r"^(?P<name>[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Failure|Unavailable|Timeout))(?:: (?P<text>.*))?$"
)
_USAGE = re.compile(r"^[\w./ -]*\w: error: (?P<text>.+)$")
_CRASH = re.compile(
    r"^(?:Fatal Python error: |terminate called after|.*Segmentation fault|Illegal instruction|\*\*\* stack smashing)"
)

# Consequences of a failure somewhere else, in any process.
_CONSEQUENCES = re.compile(
    r"see (?:the )?(?:root cause|stack trace)"
    r"|Engine core initialization failed"
    r"|EngineCore (?:failed to start|encountered)"
    r"|WorkerProc (?:failed to start|initialization failed|hit an exception)"
    r"|died unexpectedly"
    r"|Engine core proc .* died"
    r"|EngineDeadError"
    r"|cancelled"
    r"|resource_tracker"
    r"|leaked (?:semaphore|shared_memory)"
    r"|^(?:SystemExit|KeyboardInterrupt|BrokenPipeError|ConnectionResetError|EOFError|asyncio\.exceptions\.CancelledError)\b",
    re.IGNORECASE,
)
# A library's message for people at the end of a chain of errors, the first of which only shows how it found out.
_PLAINER = re.compile(
    r"access a gated repo|specific connection error when trying to load|is not a valid model identifier"
    r"|outgoing traffic has been disabled|couldn't connect to"
)
_NO_SUCH_PATH = re.compile(r"^[\w.]+: Repo id must .*'(?P<path>/[^']*)'")
_DEPTH = {"APIServer": 0, "": 0, "DPCoordinator": 0, "EngineCore": 1}
_WORKER_DEPTH = 2


class OutputLine(NamedTuple):
    """A line of the engine's output, taken apart."""

    process: str
    """Kind of the process that printed it: APIServer, EngineCore, Worker ...; empty where the line does not name it."""
    level: str
    """Level of a logged line, else empty."""
    text: str


def parse(line: str) -> OutputLine:
    """Take a line apart; the text keeps its indentation."""
    text = _COLOURS.sub("", line).rstrip()
    process = ""
    if match := _PROCESS.match(text):
        process, text = match["name"], text[match.end() :]
    level = ""
    if match := _LOGGED.match(text):
        level, text = match["level"], text[match.end() :]
    return OutputLine(process, level, text)


def find_cause(lines: Iterable[str]) -> str:
    """The cause in one line; empty where the output shows none."""
    parsed = [parse(line) for line in lines]
    errors = [(line.process, text) for line, text in _errors(parsed)]
    causes = [(process, text) for process, text in errors if not _CONSEQUENCES.search(text)]
    if causes:
        deepest = max(_depth(process) for process, _ in causes)
        innermost = [text for process, text in causes if _depth(process) == deepest]
        plainer = [text for text in innermost if _PLAINER.search(text)]
        return _clipped(_plainly(plainer[-1] if plainer else innermost[0]))
    if crashes := [line.text for line in parsed if _CRASH.match(line.text)]:
        return _clipped(crashes[0])
    logged = [line.text.strip() for line in parsed if line.level in ("ERROR", "CRITICAL") and line.text.strip()]
    own = [text for text in logged if not _CONSEQUENCES.search(text) and not _is_of_traceback(text)]
    return _clipped((own or [text for _, text in errors] or [""])[0])


def _errors(lines: Sequence[OutputLine]) -> Iterable[tuple[OutputLine, str]]:
    """Lines that name an error: exceptions at the end of a traceback, and errors of an argument parser."""
    for index, line in enumerate(lines):
        if match := _EXCEPTION.match(line.text):
            yield line, _with_continuation(lines, index, match)
        elif match := _USAGE.match(line.text):
            yield line, match["text"]


def _with_continuation(lines: Sequence[OutputLine], index: int, match: re.Match[str]) -> str:
    """The exception; its message's second line where the first is only a heading (pydantic, Hugging Face)."""
    text = (match["text"] or "").strip()
    if text and not _is_heading(text):
        return f"{match['name']}: {text}"
    following = [line.text.strip() for line in lines[index + 1 : index + 4] if line.process == lines[index].process]
    more = " ".join(part for part in following if part and not part.startswith(("Traceback", "The above exception")))
    # Pydantic shows the whole input after its message.
    return f"{match['name']}: {text} {more.split(' [type=')[0]}".replace(":  ", ": ").strip()


def _plainly(text: str) -> str:
    """Hugging Face takes a path that is not there for the name of a repository."""
    if "HFValidationError" in text and (match := _NO_SUCH_PATH.search(text)):
        return f"the model's path {match['path']} does not exist in the engine's container"
    return text


def _is_heading(text: str) -> bool:
    return re.search(r"validation errors? for \w+$|:$|gated repo\.$|\(Request ID: .*\)$", text) is not None


def _is_of_traceback(text: str) -> bool:
    return text.startswith(("Traceback ", "File ", "^", "~", "The above exception", "During handling"))


def _depth(process: str) -> int:
    return _DEPTH.get(process.split("_")[0], _WORKER_DEPTH)


def _clipped(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
