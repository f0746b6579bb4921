"""Files below a directory."""

from __future__ import annotations

from pathlib import Path


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by its path there; those of the copy's own book-keeping left out."""
    found = (path for path in directory.rglob("*") if path.is_file() and path.name not in (".lock", ".complete"))
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}
