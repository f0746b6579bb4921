"""Deletes copies that nobody needs where the next one lacks room, the least recently used first.

A copy is a directory OWNER/NAME/COMMIT with a lock file. Its time of use is that of the lock file. What is locked is
being written, what is held is in use, and what was found since it was decided what stays is about to be used: all stay.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from uellm.hub.copy_directory import MARKER, check_room, promised_bytes, still_to_come
from uellm.hub.copy_locks import LOCK, is_in_use, is_written
from uellm.hub.facts import LookUpRefusal
from uellm.hub.reading import RefusedError
from uellm.text import decimal_size

logger = logging.getLogger("uellm.fetch")

SPARED_S = 600.0
"""Between the use of a copy and the word of its service that it needs it; clocks may differ by as much."""


@dataclass(frozen=True)
class Kept:
    """What stays."""

    places: frozenset[str]
    """Directories below that of the volume."""
    as_of_s: float
    """When that was decided, in seconds since 1970: what was used later stays, too."""
    limit_bytes: int | None = None
    """What all copies together may take; None: as much as the volume holds."""
    reserve_share: float = 0.0
    """Of the volume, which stays free for others."""


def secure_room(volume: Path, own: str, missing_bytes: int, kept: Kept | None, where: str) -> None:
    """See that there is room for `missing_bytes` more in the copy `own`, beside what others still take.

    Where room is lacking other copies are deleted; None of `kept`: nothing is. Raises RefusedError where there is none.
    """
    coming_bytes = to_come(volume, own)
    if kept is not None:
        kept = replace(kept, places=kept.places | {own})
        make_room(volume, missing_bytes + coming_bytes, kept)
        check_limit(volume, missing_bytes, kept, where, coming_bytes)
    check_room(volume, missing_bytes, where, coming_bytes)


def to_come(volume: Path, own: str) -> int:
    """Bytes that copies will still take which others are writing."""
    others = (each for each in _copies(volume) if each.relative_to(volume).as_posix() != own and is_written(each))
    return sum(max(0, promised_bytes(each) - _size(each)) for each in others)


def make_room(volume: Path, missing_bytes: int, kept: Kept) -> None:
    """Delete copies until there is room for `missing_bytes`; none where all that may go are too small."""
    found = [each for each in _by_last_use(volume, kept.places) if _may_go(each, kept.as_of_s - SPARED_S)]
    if _room(volume, kept) + sum(map(_size, found)) < missing_bytes:
        return  # it would be in vain, and a rollback would not find its copy
    for directory in found:
        if _room(volume, kept) >= missing_bytes:
            return
        if _delete(directory, kept.as_of_s - SPARED_S):
            logger.info("deleted the copy %s, which nothing needs", directory.relative_to(volume))


def check_limit(volume: Path, missing_bytes: int, kept: Kept, where: str, coming_bytes: int = 0) -> None:
    """Raise RefusedError where so many bytes more would exceed the limit, or use up the reserve.

    `coming_bytes`: what copies will still take that others are writing.
    """
    coming = still_to_come(missing_bytes, coming_bytes)
    whole = missing_bytes + coming_bytes
    if kept.limit_bytes is not None and (left := _below(volume, kept.limit_bytes)) < whole:
        free = decimal_size(max(0, left))
        said = f"may hold {decimal_size(kept.limit_bytes)}, of which {free} are free, and {coming}"
        remedy = "raise the limit (modelCache.limit of the chart)"
    elif kept.reserve_share and (left := _free(volume, kept.reserve_share)) < whole:
        free = decimal_size(max(0, left))
        said = f"has {free} beside the {kept.reserve_share:.0%} of its disk that stay free for the node, and {coming}"
        remedy = "enlarge the disk"
    else:
        return
    raise RefusedError(LookUpRefusal("VolumeFull", f"{where} {said}: {remedy}, or end services of other models there"))


def _room(volume: Path, kept: Kept) -> int:
    free = _free(volume, kept.reserve_share)
    return free if kept.limit_bytes is None else min(free, _below(volume, kept.limit_bytes))


def _below(volume: Path, limit_bytes: int) -> int:
    return limit_bytes - sum(map(_size, _copies(volume)))


def _by_last_use(volume: Path, kept: Collection[str]) -> list[Path]:
    """Copies that may go, the least recently used first; those that are not complete before all others."""
    found = [each for each in _copies(volume) if each.relative_to(volume).as_posix() not in kept]
    return sorted(found, key=lambda each: ((each / MARKER).exists(), _used(each)))


def _copies(volume: Path) -> Iterator[Path]:
    for owner in _directories(volume):
        for name in _directories(owner):
            yield from (each for each in _directories(name) if _used(each))


def _directories(parent: Path) -> list[Path]:
    """Directories of a directory; links are none, wherever they lead."""
    try:
        with os.scandir(parent) as entries:
            return [Path(each.path) for each in entries if each.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _used(directory: Path) -> float:
    """When the copy was used last, in seconds since 1970; 0 for what is no copy."""
    try:
        return (directory / LOCK).lstat().st_mtime
    except OSError:
        return 0.0


def _size(directory: Path) -> int:
    """Bytes on the disk that its files take. Some may get other names meanwhile, or be deleted."""
    names = (os.path.join(parent, each) for parent, *found in os.walk(directory) for each in chain(*found))
    return sum(map(_taken_bytes, names))


def _taken_bytes(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0


def _free(volume: Path, reserve_share: float = 0.0) -> int:
    found = os.statvfs(volume)
    reserved = int(reserve_share * found.f_blocks) if reserve_share else 0
    return (found.f_bavail - reserved) * found.f_frsize


def _may_go(directory: Path, unused_since_s: float) -> bool:
    return _used(directory) <= unused_since_s and not is_in_use(directory) and not is_written(directory)


def _delete(directory: Path, unused_since_s: float) -> bool:
    """Delete a copy, the lock file excepted, on which others may wait. Returns False where it stays."""
    try:
        number = os.open(directory / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(number).st_mtime > unused_since_s or is_in_use(directory):
            return False
        # First, so that what is left of it after a crash is no complete copy.
        (directory / MARKER).unlink(missing_ok=True)
        rest = [each for each in directory.iterdir() if each.name != LOCK]
        for each in rest:
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()
        return bool(rest)
    except OSError:
        return False  # locked, or not ours to delete
    finally:
        os.close(number)
