"""Writes parts of this package as one file that python3 runs: the same bytes for the same sources."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import uellm

SHEBANG = b"#!/usr/bin/env python3\n"
# ZIP's earliest time stamp: the file's bytes depend on the sources alone.
EPOCH = (1980, 1, 1, 0, 0, 0)


# A container's first process ignores what it has no handler for, and the imports take a moment. Without this one, a
# container that is ended just after its start uses up its whole grace period.
_MAIN = """\
import os
import signal
import sys

signal.signal(signal.SIGTERM, lambda *_: os._exit(143))

from {main} import main

sys.exit(main())
"""


def write_zipapp(output: Path, packages: Iterable[str], modules: Iterable[str], main: str) -> int:
    """Write a zipapp that runs `main` of the module of that name, and return its size in bytes.

    SIGTERM ends it from its first moment on.
    """
    root = Path(uellm.__file__).parent
    files = [root / name for name in modules]
    files += [path for package in packages for path in (root / package).rglob("*.py")]
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("wb") as stream:
        stream.write(SHEBANG)
        with zipfile.ZipFile(stream, "w") as archive:
            _add(archive, "__main__.py", _MAIN.format(main=main).encode())
            for path in sorted(files):
                _add(archive, f"uellm/{path.relative_to(root).as_posix()}", path.read_bytes())
    output.chmod(0o755)
    return output.stat().st_size


def build_command(prog: str, description: str, build: Callable[[Path], int]) -> int:
    """The command `python -m PROG OUT.pyz`. `build` writes the file and returns its size in bytes."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("output", type=Path, metavar="OUT.pyz")
    output: Path = parser.parse_args().output
    print(f"{output}: {build(output)} bytes")
    return 0


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, date_time=EPOCH)
    # Stored, not deflated: zlib's versions differ in their output.
    entry.compress_type = zipfile.ZIP_STORED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)
