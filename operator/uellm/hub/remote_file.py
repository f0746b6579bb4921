"""A file of a repository, as the hub lists it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository."""

    path: str
    """Relative, with slashes; safe to be appended to a directory."""
    size_bytes: int
    sha256: str = ""
    """Of the content; empty where the hub does not tell it."""
    blob_sha1: str = ""
    """Of the git blob; empty where the hub does not tell it, or where the blob is only a pointer into LFS."""
