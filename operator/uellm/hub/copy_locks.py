"""The locks of copies on a volume that others may share. The kernel releases them when a process ends, however it ends.

OWNER/NAME/COMMIT/.lock     held by who writes the copy
OWNER/NAME/COMMIT/.in-use   held, with others, by who has the copy in use
.lock                       held by who finds out whether there is room for a copy
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK, IN_USE = ".lock", ".in-use"


def hold(directory: Path) -> int | None:
    """Say that the copy is in use, until the returned descriptor is closed or the process has ended.

    None where that cannot be said, because others have made the copy, or the volume cannot be written.
    """
    try:
        number = os.open(directory / IN_USE, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        fcntl.flock(number, fcntl.LOCK_SH)
    except OSError:
        return None
    return number


def note_use(directory: Path) -> None:
    """Say that the copy is used now, so that it is among the last to be deleted once nobody holds it."""
    with suppress(OSError):
        os.utime(directory / LOCK)


def is_in_use(directory: Path) -> bool:
    """Whether some process holds the copy."""
    try:
        number = os.open(directory / IN_USE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(number)
    return False


def is_written(directory: Path) -> bool:
    """Whether some process writes the copy."""
    try:
        number = _opened(directory / LOCK)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without such locks
    finally:
        os.close(number)
    return False


def _opened(path: Path) -> int:
    """A lock file that there is, for writing where that is allowed: NFS locks no other."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except PermissionError:
        # A pipe that another user put there makes nobody wait.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


@contextmanager
def locked(directory: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a directory, which the kernel releases when the process ends, however it ends.

    `on_wait` is called if another process holds it. Raises OSError where the file system has no locks.
    """
    number = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        _lock(number, on_wait)
        yield
    finally:
        os.close(number)


def _lock(number: int, on_wait: Callable[[], None]) -> None:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(number, fcntl.LOCK_EX)


@contextmanager
def locked_volume(volume: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a volume while it is found out whether there is room. Its file may be another user's.

    Where there can be none, this goes on without it: NFS does not lock a file that may only be read.
    """
    number = _volume_lock(volume / LOCK)
    try:
        if number is not None:
            with suppress(OSError):
                _lock(number, on_wait)
        yield
    finally:
        if number is not None:
            os.close(number)


def _volume_lock(path: Path) -> int | None:
    with suppress(FileExistsError, PermissionError):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        return _opened(path)
    except (FileNotFoundError, PermissionError):
        return None
