"""Processes of a pod on the development cluster, whose nodes share this machine's process table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def processes(pod: Mapping[str, Any], word: str) -> list[int]:
    """Those whose command line has this word."""
    uid, found = pod["metadata"]["uid"], []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            if word.encode() in words and uid in (directory / "cgroup").read_text().replace("_", "-"):
                found.append(int(directory.name))
        except OSError:
            continue  # it ended meanwhile
    return found
