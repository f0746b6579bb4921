"""API keys from the files of a directory, as a Secret is mounted: one key a line, whatever the files' names."""

from __future__ import annotations

import os
from pathlib import Path

from uellm.sidecar.wire.keys import Keys

_Version = tuple[tuple[str, str, int, int], ...]


class KeyDirectory:
    """The directory through its versions. None: no keys are asked for."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._seen: _Version | None = None
        self.keys = Keys()
        self.poll()

    def poll(self) -> bool:
        """Whether `keys` are new ones. While nothing can be read there are none, and nobody may ask."""
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
    # A Secret's volume holds `..data` and what it points to besides the keys' own names.
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
