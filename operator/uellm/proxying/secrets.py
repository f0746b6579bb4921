"""API keys from the files of a directory, such as a mounted Secret: one key per line, any file names."""

from __future__ import annotations

import os
from pathlib import Path

from uellm.proxying.keys import Keys

_Version = tuple[tuple[str, str, int, int], ...]


class KeyDirectory:
    """The directory and its changes. `path` None: no key is required."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._seen: _Version | None = None
        self.keys = Keys()
        self.poll()

    def poll(self) -> bool:
        """Whether `keys` changed. If nothing can be read there are no keys, and every request is refused."""
        if self.path is None:
            return False
        files = _files(self.path)
        version = tuple(_version(file) for file in files)
        if version == self._seen:
            return False
        self._seen = version
        self.keys = Keys(key for file in files for key in _read(file))
        return True


def _files(directory: Path) -> list[Path]:
    # A Secret's volume also holds `..data` and the directory that it points to.
    try:
        return sorted(path for path in directory.iterdir() if not path.name.startswith(".") and path.is_file())
    except OSError:
        return []


def _version(path: Path) -> tuple[str, str, int, int]:
    real = os.path.realpath(path)
    try:
        status = os.stat(real)
    except OSError:
        return path.name, real, 0, 0
    return path.name, real, status.st_mtime_ns, status.st_size


def _read(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return []
    return [key for line in lines if (key := line.strip())]
