"""Reads documents: those of people as text, and those that pass between components.

The latter carry a version, which is checked before anything else is read. Fields are only ever added to a version:
readers ignore those that they do not know. Documents without a version were written before there was one, and are of
version 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uellm.errors import BadInput

VERSION = 1


class UnreadableDocument(BadInput):
    """A document of another version, or one that is not what its version says."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__("", f"{name} cannot be read: {why}")


@contextmanager
def reading(name: str, document: Any) -> Iterator[Mapping[str, Any]]:
    """The document, if it is of our version; whatever is wrong with its fields becomes UnreadableDocument."""
    if not isinstance(document, Mapping):
        raise UnreadableDocument(name, "it is not a JSON object")
    version = document.get("version", VERSION)
    if version != VERSION:
        raise UnreadableDocument(name, f"it has version {version!r}, and this release reads version {VERSION}")
    try:
        yield document
    except KeyError as error:
        raise UnreadableDocument(name, f"it has no field {error}") from error
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise UnreadableDocument(name, f"{type(error).__name__}: {error}") from error


def parsed(name: str, text: str | bytes) -> Any:
    """The JSON of a text. Raises UnreadableDocument."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableDocument(name, f"it is not JSON: {error}") from error


def read_text(name: str) -> str:
    """A file's text; `-` is standard input. Raises BadInput naming the file."""
    try:
        return _read(name).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise BadInput(name, f"cannot be read: {reason}") from error


def _read(name: str) -> bytes:
    if name != "-":
        return Path(name).read_bytes()
    if sys.stdin is None:
        raise BadInput(name, "cannot be read: standard input is closed")
    # Its own decoder lets bytes pass that are no text.
    return sys.stdin.buffer.read()
