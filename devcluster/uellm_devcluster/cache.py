"""The cache directory for slow results, outside any checkout."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uellm_devcluster.progress import step


def cache_directory() -> Path:
    """`$UELLM_CACHE`, else `$XDG_CACHE_HOME/uellm`, else `~/.cache/uellm`."""
    named = os.environ.get("UELLM_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uellm"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` (created if missing) as a lock between processes, and announce when there is a wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step(f"another process is making {path.stem}; waiting for it"):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
