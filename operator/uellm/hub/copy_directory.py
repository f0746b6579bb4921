"""The directory of a copy, on a volume that others may share.

OWNER/NAME/COMMIT/          `_` stands for the owner of a model that has none
    config.json ...         files that are whole: renamed to their names after their checksums were compared
    NAME.part               the beginning of a file
    .lock                   locked by who writes
    .promised               how many bytes the copy has once it is complete, while it is written
    .in-use                 locked, with others, by who has the copy in use, where a directory of a node is shared
    .complete               written last: which files are there, and of how many bytes
.compiled/SERVICE/          what the engines of a service compile
.lock                       locked by who finds out whether there is room for a copy, and promises its bytes
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from threading import Event

from uellm.documents import VERSION, UnreadableDocument, parsed, reading
from uellm.hub.copy_locks import LOCK, locked
from uellm.hub.copy_state import COMPILED, Copied
from uellm.hub.facts import LookUpRefusal
from uellm.hub.reading import RefusedError
from uellm.hub.remote_file import RemoteFile
from uellm.text import decimal_size

MARKER, PART, PROMISED = ".complete", ".part", ".promised"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ESPIPE, errno.ENXIO)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""To write a file anew. Others write to the volume, too: a link or a pipe of its name is an error, and nobody waits."""
_READ_BYTES = 8 << 20
_MARKER_BYTES = 16 << 20
_PROMISED_BYTES = 20


def read_marker(directory: Path, commit: str, place: str) -> Copied | None:
    """The copy in a directory; None where it is not complete, or where files were taken from it since."""
    try:
        with reading(MARKER, parsed(MARKER, _content(directory / MARKER, _MARKER_BYTES))) as read:
            files = [RemoteFile(path, size) for path, size in read["sizes"].items()]
    except (OSError, UnreadableDocument):
        return None
    if not files or not all(is_whole(directory, each) for each in files):
        return None
    return Copied(commit, place, len(files), sum(each.size_bytes for each in files))


def found_in_use(directory: Path, commit: str, place: str) -> Copied | None:
    """The same, for somebody who is going to use the copy: for a while nobody deletes it then."""
    found = read_marker(directory, commit, place)
    if found is None:
        return None
    try:
        with locked(directory, lambda: None):
            os.utime(directory / LOCK)
            return read_marker(directory, commit, place)
    except OSError:
        return found  # a volume that cannot be written: nobody deletes from it, either


def _content(path: Path, limit: int) -> bytes:
    """Others write to the volume, too: neither does a link lead out of it, nor does a pipe make anybody wait."""
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(number, "rb") as stream:
        return stream.read(limit) if stat.S_ISREG(os.fstat(number).st_mode) else b""


def write_marker(directory: Path, files: Sequence[RemoteFile]) -> None:
    """Say that all files are there."""
    whole = {"version": VERSION, "sizes": {each.path: each.size_bytes for each in files}}
    draft = directory / f"{MARKER}{PART}"
    number = os.open(draft, _NEW, 0o644)
    with open(number, "w") as stream:
        json.dump(whole, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(draft, directory / MARKER)
    sync_directory(directory)


def promise(directory: Path, whole_bytes: int) -> None:
    """Say how many bytes the copy has once it is complete."""
    number = os.open(directory / PROMISED, _NEW, 0o644)
    with open(number, "w") as stream:
        stream.write(str(whole_bytes))


def promised_bytes(directory: Path) -> int:
    """How many bytes the copy has once it is complete; 0 where nobody says."""
    try:
        text = _content(directory / PROMISED, _PROMISED_BYTES)
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


def end_promise(directory: Path) -> None:
    """The copy is complete."""
    (directory / PROMISED).unlink(missing_ok=True)


def make_parent(directory: Path, path: str) -> Path:
    """The file `path` of a copy, in a directory that is there. Raises OSError where a link leads out of the copy."""
    target = directory / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.parent.resolve() != directory.resolve() / PurePosixPath(path).parent:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(target.parent))
    return target


def make_compiled(volume: Path, name: str) -> str:
    """The directory below `volume` that engines of the service `name` may write to; empty where there can be none."""
    place = f"{COMPILED}/{name}"
    try:
        (volume / place).mkdir(parents=True, exist_ok=True)
        if (volume / place).resolve() != volume.resolve() / place:
            return ""
        os.chmod(volume / place, 0o770)
    except OSError:
        return ""
    return place


def sync_directory(directory: Path) -> None:
    """Make the names of a directory last through a power failure."""
    number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def present_bytes(directory: Path, files: Iterable[RemoteFile]) -> int:
    """How much of the files is there, whole or in part."""
    return sum(min(_length(directory, each), each.size_bytes) for each in files)


def is_whole(directory: Path, file: RemoteFile) -> bool:
    """Whether a file is there under its own name."""
    try:
        found = (directory / file.path).lstat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == file.size_bytes


def _length(directory: Path, file: RemoteFile) -> int:
    for name in (file.path, file.path + PART):
        try:
            return (directory / name).lstat().st_size
        except OSError:
            continue
    return 0


class Checksum:
    """The checksum of a file as it grows."""

    def __init__(self, file: RemoteFile) -> None:
        self._wanted = file.sha256 or file.blob_sha1
        self._sum = hashlib.sha256() if file.sha256 else hashlib.sha1(usedforsecurity=False)
        if not file.sha256:
            self._sum.update(b"blob %d\0" % file.size_bytes)

    def update(self, piece: bytes) -> None:
        """The next bytes of the file."""
        self._sum.update(piece)

    def read(self, number: int, ended: Event) -> None:
        """All that an open file holds, unless it is ended meanwhile."""
        os.lseek(number, 0, os.SEEK_SET)
        while not ended.is_set() and (piece := os.read(number, _READ_BYTES)):
            self.update(piece)

    @property
    def matches(self) -> bool:
        """Whether it is the one that the hub tells; True where it tells none."""
        return not self._wanted or self._sum.hexdigest() == self._wanted


def check_room(directory: Path, missing_bytes: int, where: str, coming_bytes: int = 0) -> None:
    """Raise RefusedError where so many bytes more cannot fit. `coming_bytes`: what others will still write there."""
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    if free < missing_bytes + coming_bytes:
        raise RefusedError(
            _full(where, f"{decimal_size(free)} are free, and {still_to_come(missing_bytes, coming_bytes)}")
        )


def still_to_come(missing_bytes: int, coming_bytes: int) -> str:
    """What a copy lacks, as the end of a sentence, and what others do that are being written."""
    others = f", beside {decimal_size(coming_bytes)} of copies that are under way" if coming_bytes else ""
    return f"{decimal_size(missing_bytes)} are still to come{others}"


def disk_refusal(error: OSError, where: str) -> LookUpRefusal:
    """What an error of the volume means."""
    if error.errno in _FULL:
        return _full(where, str(error.strerror))
    groups = ", ".join(str(group) for group in sorted({os.getegid(), *os.getgroups()}))
    name = error.filename2 or error.filename
    what = f"{error.strerror} ({Path(name).name})" if isinstance(name, str) else str(error.strerror)
    remedy = f"let uid {os.geteuid()} or one of the groups {groups} write there (fsGroup of the pod, or chown)"
    if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
        remedy = "use a file system with locks (flock)"
    elif error.errno == errno.EROFS:
        remedy = "use a volume that can be mounted for writing"
    elif error.errno in _IN_THE_WAY:
        remedy = "remove it from the volume"
    elif error.errno not in (errno.EACCES, errno.EPERM):
        remedy = "look at the volume's storage"
    return LookUpRefusal("Unwritable", f"{where} cannot be written: {what}: {remedy}")


def _full(where: str, what: str) -> LookUpRefusal:
    remedy = "enlarge it (spec.model.cache.size where the operator has made it), or remove what is not needed from it"
    return LookUpRefusal("VolumeFull", f"{where} is too small: {what}: {remedy}")
