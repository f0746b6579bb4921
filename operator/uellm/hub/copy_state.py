"""Where a copy of a model is, how far it is, and what it holds in the end."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote

from uellm.text import decimal_size

COMPILED = ".compiled"
"""The directory of a volume that holds what engines compile, by service."""


class Copied(NamedTuple):
    """A complete copy."""

    commit: str
    directory: str
    """Below that of the volume."""
    files: int
    bytes: int
    compiled: str = ""
    """Where an engine may write what it compiles, below the directory of the volume; empty for nowhere."""


class Progress(NamedTuple):
    """How far a copy is."""

    bytes: int
    of_bytes: int
    """0 while it is not known."""
    left_s: float | None
    """Seconds to the end at the speed so far; None where it is not known."""
    waits: bool
    """Another process copies the same model, and this one waits for it."""


def copy_path(repository: str, commit: str) -> str:
    """The directory of a copy below that of the volume; `_` stands for the owner of a model that has none.

    >>> copy_path("org/model", "refs/pr/1"), copy_path("gpt2", "main")
    ('org/model/refs%2Fpr%2F1', '_/gpt2/main')
    """
    owner, _, name = repository.rpartition("/")
    return f"{owner or '_'}/{name}/{quote(commit, safe='')}"


def described(progress: Progress) -> str:
    """How far a copy is, for a person.

    >>> described(Progress(52_200_000_000, 141_000_000_000, 238.0, False))
    '37 % of 141 GB, about 4 min'
    >>> described(Progress(0, 0, None, False))
    'its list of files is being read'
    """
    if not progress.of_bytes:
        return "its list of files is being read"
    share = f"{100 * progress.bytes // progress.of_bytes} % of {decimal_size(progress.of_bytes)}"
    if progress.waits:
        return f"{share}, by another pod that has begun before"
    return share if progress.left_s is None else f"{share}, about {_time(progress.left_s)}"


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "1 min"
    return f"{minutes} min" if minutes < 120 else f"{round(minutes / 60)} h"
