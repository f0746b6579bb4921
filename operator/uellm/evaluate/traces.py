"""Reads request traces in their publishers' formats: Azure, ServeGen and VTC (CSV), Mooncake (JSON lines).

The format is detected from the content: a first line that begins with `{` is Mooncake's, everything else is CSV with
known column names in its header; plain or gzip. Rows that cannot be read are left out and counted, and the first one
is reported.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from uellm.errors import BadInput

PREFIX_BLOCK_TOKENS = 512
"""Tokens per entry of Mooncake's `hash_ids`."""

_GZIP = b"\x1f\x8b"
_ARRIVAL = ("timestamp", "arrival_s", "arrival_time", "arrival")
_PROMPT = ("contexttokens", "input_tokens", "prompt_tokens", "input_length")
_OUTPUT = ("generatedtokens", "output_tokens", "output_length")
_CLIENT = ("client", "client_id", "tenant")
_MAX_TOKENS = 100_000_000


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace. `blocks` are ids of its prompt's prefix blocks; equal ids mean equal prefixes."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    client: str = ""
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace in order of arrival. `left_out` rows could not be read; `problem` says what is wrong with the first."""

    name: str
    requests: tuple[TraceRequest, ...]
    left_out: int = 0
    problem: str = ""

    @property
    def complaint(self) -> str:
        """One line about rows that were left out; empty where all could be read."""
        rows = "row was" if self.left_out == 1 else "rows were"
        return f"{self.name}: {self.left_out} {rows} left out; the first: {self.problem}" if self.left_out else ""


def read_trace(path: Path) -> Trace:
    """The requests of a file. Raises BadInput if it is not a trace or has no row that can be read."""
    text = _text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise BadInput(str(path), "is empty: give a trace in Azure's, ServeGen's or Mooncake's form")
    rows = _json_rows(text) if first.lstrip().startswith("{") else _csv_rows(path, text)
    requests, problems = [], []
    for line, read in rows:
        try:
            requests.append(read())
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            problems.append(f"line {line}: {_reason(error)}")
    if not requests:
        why = problems[0] if problems else "it has only a header"
        raise BadInput(str(path), f"has no request that can be read: {why}")
    requests.sort(key=lambda request: request.arrival_s)
    return Trace(path.name, tuple(requests), len(problems), problems[0] if problems else "")


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data[:2] == _GZIP else data).decode("utf-8-sig")
    except OSError as error:
        raise BadInput(str(path), f"cannot be read: {error.strerror or error}") from error
    except (EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BadInput(str(path), "is neither gzip nor UTF-8 text, or is truncated") from error


Rows = Iterator[tuple[int, Callable[[], TraceRequest]]]


def _json_rows(text: str) -> Rows:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, lambda line=line: _mooncake(json.loads(line))  # type: ignore[misc]


def _mooncake(row: Any) -> TraceRequest:
    if not isinstance(row, Mapping):
        raise ValueError("is not a JSON object")
    prompt_tokens, output_tokens = _tokens(row["input_length"]), _tokens(row["output_length"])
    blocks = tuple(int(block) for block in row.get("hash_ids") or ())
    arrival_s = _seconds(row["timestamp"]) / 1e3
    return TraceRequest(arrival_s, prompt_tokens, output_tokens, str(row.get("client", "")), blocks)


def _csv_rows(path: Path, text: str) -> Rows:
    lines = _csv_lines(path, text)
    header = [name.strip().lower() for name in next(lines)[1]]
    columns = [_column(header, names) for names in (_ARRIVAL, _PROMPT, _OUTPUT)]
    if None in columns:
        missing = next(
            names for names, column in zip((_ARRIVAL, _PROMPT, _OUTPUT), columns, strict=True) if column is None
        )
        raise BadInput(str(path), f"its header has no column {missing[0]!r} (or {', '.join(missing[1:])})")
    arrival, prompt, output = (column for column in columns if column is not None)
    client = _column(header, _CLIENT)

    def read(row: list[str]) -> TraceRequest:
        if len(row) < len(header):
            raise ValueError(f"has {len(row)} of {len(header)} columns")
        who = "" if client is None else row[client]
        return TraceRequest(_arrival_s(row[arrival]), _tokens(row[prompt]), _tokens(row[output]), who)

    for number, row in lines:
        yield number, lambda row=row: read(row)  # type: ignore[misc]


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of every line that is not empty. Raises BadInput if the CSV is malformed."""
    reader = csv.reader(io.StringIO(text))
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise BadInput(str(path), f"line {reader.line_num}: {error}") from error


def _column(header: list[str], names: tuple[str, ...]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _arrival_s(text: str) -> float:
    """Seconds, or a date and time as Azure writes it (UTC where it names no zone)."""
    try:
        return _seconds(text)
    except ValueError:
        moment = datetime.fromisoformat(text.strip())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _seconds(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a time")
    return number


def _tokens(value: Any) -> int:
    number = float(value)
    if not number.is_integer() or not 1 <= number <= _MAX_TOKENS:
        raise ValueError(f"{value!r} is not a number of tokens of 1 or more")
    return int(number)


def _reason(error: Exception) -> str:
    return f"has no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
