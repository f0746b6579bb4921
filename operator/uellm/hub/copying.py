"""Copies the files of a model that the engine reads from a hub to a directory.

It can be ended at any moment, and goes on where it was: a file grows as `NAME.part`, the rest of it is asked for by its
range, and it gets its name once its checksum is the hub's. Several processes may copy the same model to the same
directory: one writes, the others wait for it and find the copy complete.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from uellm.hub.adapter import CONFIG as ADAPTER_CONFIG
from uellm.hub.connection import HubConnection, HubSettings, InterruptedStreamError, Stream
from uellm.hub.copy_directory import (
    PART,
    Checksum,
    disk_refusal,
    end_promise,
    found_in_use,
    is_whole,
    make_parent,
    present_bytes,
    promise,
    read_marker,
    sync_directory,
    write_marker,
)
from uellm.hub.copy_locks import LOCK, locked, locked_volume
from uellm.hub.copy_state import Copied, Progress, copy_path
from uellm.hub.facts import LookUpRefusal
from uellm.hub.freeing import Kept, secure_room
from uellm.hub.listing import needed_files
from uellm.hub.lookup import COMMIT, file_path
from uellm.hub.reading import CONFIG, RefusedError
from uellm.hub.refusals import refusal_of
from uellm.hub.remote_file import RemoteFile

PARALLEL = 4
"""Files at a time."""
TRIES = 5
"""How often in a row a file is asked for without a further byte."""
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
"""The longest that a hub's own wait is sat out here; after a longer one the caller asks again."""


_ENDED = LookUpRefusal("Unreachable", "the copy was ended before it was complete: it goes on when it is begun again")


class _EndedError(RefusedError):
    """The copy was ended from outside, or by another of its files."""


class _RefusedAnswerError(RefusedError):
    """An answer without the file. Some are asked for again."""


@dataclass
class CopyWatch:
    """What a copy lets others see of it. `progress` may be called from any thread."""

    clock: Callable[[], float] = time.monotonic
    ended: threading.Event = field(default_factory=threading.Event)
    """Set by whoever wants the copy to end."""
    waits: bool = False
    _seen: tuple[Path, list[RemoteFile], int, float] | None = None

    def begin(self, directory: Path, files: list[RemoteFile]) -> None:
        """From now on there is something to see."""
        self._seen = directory, files, present_bytes(directory, files), self.clock()

    def progress(self) -> Progress:
        """How far it is, by what lies in the directory."""
        if self._seen is None:
            return Progress(0, 0, None, self.waits)
        directory, files, before, since_s = self._seen
        present, whole = present_bytes(directory, files), sum(each.size_bytes for each in files)
        gained, took_s = present - before, self.clock() - since_s
        left_s = (whole - present) * took_s / gained if gained > 0 and took_s > 0 else None
        return Progress(present, whole, left_s, self.waits)


def copy_model(
    repository: str,
    revision: str,
    volume: Path,
    settings: HubSettings,
    watch: CopyWatch,
    *,
    where: str = "",
    kept: Kept | None = None,
) -> Copied | LookUpRefusal:
    """Copy a model below the directory `volume`, which `where` names in sentences. Blocks until it is done.

    A copy of a commit that is complete is found without asking the hub. `kept`: where room is lacking, other copies
    than these are deleted; None: nothing is.
    """
    where = where or str(volume)
    try:
        if COMMIT.fullmatch(revision) and (found := _complete(volume, repository, revision)) is not None:
            return found
        with HubConnection(settings, None) as connection:
            return _Copying(
                connection, repository, _pinned(connection, repository, revision), volume, watch, where, kept
            ).go()
    except RefusedError as error:
        return error.refusal
    except OSError as error:
        return disk_refusal(error, where)


def _complete(volume: Path, repository: str, commit: str) -> Copied | None:
    place = copy_path(repository, commit)
    return found_in_use(volume / place, commit, place)


def _pinned(connection: HubConnection, repository: str, revision: str) -> str:
    """The commit that a branch or tag stands for now; the revision itself where the hub does not tell."""
    if COMMIT.fullmatch(revision):
        return revision
    for name in (CONFIG, ADAPTER_CONFIG):
        answer = connection.get(file_path(repository, revision, name), limit=1)
        if isinstance(answer, LookUpRefusal):
            raise RefusedError(answer)
        missing = answer.headers.get("x-error-code") == "EntryNotFound"
        if answer.status not in (200, 206) and not missing:
            raise RefusedError(refusal_of(answer, repository, revision, connection.settings))
        if COMMIT.fullmatch(told := answer.headers.get("x-repo-commit", "")):
            return told
        if not missing:
            break
    return revision


class _Copying:
    def __init__(
        self,
        connection: HubConnection,
        repository: str,
        commit: str,
        volume: Path,
        watch: CopyWatch,
        where: str,
        kept: Kept | None,
    ) -> None:
        self.kept = kept
        self.connection, self.repository, self.commit = connection, repository, commit
        self.volume, self.watch, self.where = volume, watch, where
        self.directory = volume / copy_path(repository, commit)
        self.page = f"{connection.settings.endpoint}/{repository}"

    def go(self) -> Copied:
        if (found := _complete(self.volume, self.repository, self.commit)) is not None:
            return found
        files = needed_files(self.connection, self.repository, self.commit)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.watch.begin(self.directory, files)
        with locked(self.directory, self._wait):
            self.watch.waits = False
            if read_marker(self.directory, self.commit, "") is None:
                self._secure_room(files)
                self._all(files)
                write_marker(self.directory, files)
                end_promise(self.directory)
                os.utime(self.directory / LOCK)  # it was begun long ago, and is used from now on
        found = _complete(self.volume, self.repository, self.commit)
        if found is None:
            raise RefusedError(LookUpRefusal("Unwritable", f"{self.where} does not keep what is written to it"))
        return found

    def _secure_room(self, files: list[RemoteFile]) -> None:
        """See that the copy fits, and promise its bytes, while no other copy there does the same."""
        whole = sum(each.size_bytes for each in files)
        with locked_volume(self.volume, self._wait):
            self.watch.waits = False
            missing = whole - present_bytes(self.directory, files)
            secure_room(self.volume, copy_path(self.repository, self.commit), missing, self.kept, self.where)
            promise(self.directory, whole)

    def _wait(self) -> None:
        self.watch.waits = True

    def _all(self, files: list[RemoteFile]) -> None:
        """Copy every file that is not there. The first failure ends the others."""
        with ThreadPoolExecutor(PARALLEL) as pool:
            jobs = [pool.submit(self._file, each) for each in files if not is_whole(self.directory, each)]
            wait(jobs, return_when=FIRST_EXCEPTION)
            if any(job.done() and job.exception() is not None for job in jobs):
                self.watch.ended.set()
                pool.shutdown(cancel_futures=True)
        errors = [error for job in jobs if not job.cancelled() and (error := job.exception()) is not None]
        if errors:
            # Those that were ended come after the one that ended them.
            raise min(errors, key=lambda error: isinstance(error, _EndedError))
        for place in {(self.directory / each.path).parent for each in files}:
            sync_directory(place)

    def _file(self, file: RemoteFile) -> None:
        target = make_parent(self.directory, file.path)
        part = target.with_name(target.name + PART)
        number = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            if not self._grow(file, number):
                # What a crash of the node has left may be damaged: once more, from the beginning.
                os.ftruncate(number, 0)
                if not self._grow(file, number):
                    os.ftruncate(number, 0)
                    raise RefusedError(self._damaged(file))
            os.fsync(number)
        finally:
            os.close(number)
        os.replace(part, target)

    def _grow(self, file: RemoteFile, number: int) -> bool:
        """Append to an open file until it is as long as the hub's; whether its checksum is the hub's then."""
        if os.fstat(number).st_size > file.size_bytes:
            os.ftruncate(number, 0)
        checksum = Checksum(file)
        checksum.read(number, self.watch.ended)
        if self.watch.ended.is_set():
            raise _EndedError(_ENDED)
        length = os.lseek(number, 0, os.SEEK_END)
        tries = 0
        while length < file.size_bytes:
            before = length
            try:
                for piece in self._rest(file, length):
                    _write(number, piece)
                    checksum.update(piece)
                    length += len(piece)
                    if self.watch.ended.is_set():
                        raise _EndedError(_ENDED)
                problem = LookUpRefusal("Unreachable", f"{self.page}: {file.path} ends early: try again later")
            except (InterruptedStreamError, _RefusedAnswerError) as error:
                problem = error.refusal
            tries = 1 if length > before else tries + 1
            if length < file.size_bytes:
                self._pause(problem, tries)
        return checksum.matches

    def _rest(self, file: RemoteFile, first: int) -> Iterator[bytes]:
        """The bytes of a file from `first` on. Raises _RefusedAnswerError and InterruptedStreamError."""
        path = file_path(self.repository, self.commit, file.path)
        with self.connection.stream(path, first=first, last=file.size_bytes - 1) as stream:
            if isinstance(stream, LookUpRefusal):
                raise _RefusedAnswerError(stream)
            if (answer := stream.answer).status not in (200, 206):
                raise _RefusedAnswerError(refusal_of(answer, self.repository, self.commit, self.connection.settings))
            yield from _cut(stream, first, file.size_bytes - first)

    def _pause(self, problem: LookUpRefusal, tries: int) -> None:
        """Wait before a file is asked for again. Raises RefusedError where that is no use."""
        wait_s = problem.retry_after_s or FIRST_WAIT_S * 2 ** (tries - 1)
        if problem.reason not in ("Unreachable", "RateLimited") or tries >= TRIES or wait_s > LONGEST_WAIT_S:
            raise RefusedError(problem)
        if self.watch.ended.wait(wait_s):
            raise _EndedError(_ENDED)

    def _damaged(self, file: RemoteFile) -> LookUpRefusal:
        cause = f"{file.path} has another checksum than the hub says, which a proxy or a mirror may cause"
        return LookUpRefusal("ChecksumMismatch", f"{self.page} cannot be copied: {cause}: ask the hub itself")


def _cut(stream: Stream, first: int, wanted: int) -> Iterator[bytes]:
    """Of a body the `wanted` bytes from offset `first` of the file on."""
    skip = first - stream.first
    for piece in stream.pieces:
        kept = piece[skip:][:wanted]
        skip = max(0, skip - len(piece))
        wanted -= len(kept)
        if kept:
            yield kept
        if wanted <= 0:
            return


def _write(number: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(number, view) :]
