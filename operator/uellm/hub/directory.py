"""The facts of a model in a directory of a volume.

The volume is somebody else's, too: a file is read only where it is in the volume, wherever links lead.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from uellm.hub.adapter import AdapterFacts
from uellm.hub.facts import LookUpRefusal, ModelFacts
from uellm.hub.reading import Part, RefusedError, read_adapter, read_facts
from uellm.models.safetensors import CONSOLIDATED


def read_directory_facts(directory: Path, volume: Path, where: str) -> ModelFacts | LookUpRefusal:
    """The facts of the model in `directory`, a part of `volume`; `where` names it in sentences. Blocks."""
    return read_facts(_Directory(directory, volume, where))


def read_directory_adapter(name: str, directory: Path, volume: Path, where: str) -> AdapterFacts | LookUpRefusal:
    """The same of a LoRA adapter that is served as `name`; `where` is its URI."""
    return read_adapter(_Directory(directory, volume, where), name, where)


class _Directory:
    """The files of a directory."""

    def __init__(self, directory: Path, volume: Path, where: str) -> None:
        self.where = where
        self._directory = directory
        self._volume = Path(os.path.realpath(volume))

    def read(self, name: str, *, first: int = 0, limit: int) -> Part | None:
        try:
            # Opening a pipe would otherwise wait for its writer.
            number = os.open(self._directory / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unreadable(name, error) from error
        with os.fdopen(number, "rb") as stream:
            self._check(number, name)
            try:
                file_bytes = os.fstat(number).st_size
                stream.seek(first)
                body = stream.read(limit)
            except OSError as error:
                raise self._unreadable(name, error) from error
        return Part(body, first + len(body) >= file_bytes, file_bytes)

    def pin(self) -> str:
        return ""

    def tensor_files(self) -> Sequence[str]:
        try:
            found = sorted(name for name in os.listdir(self._directory) if name.endswith(".safetensors"))
        except OSError as error:
            raise self._unreadable(".", error) from error
        return [name for name in found if not name.startswith(CONSOLIDATED)] or found

    def _check(self, number: int, name: str) -> None:
        """Raise RefusedError unless the open file is a regular one of the volume.

        It is asked of the open file, because a link could be exchanged between a check and the opening.
        """
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise RefusedError(LookUpRefusal("InvalidAnswer", f"{self.where} cannot be read: {name} is no file"))
        place = Path(os.readlink(f"/proc/self/fd/{number}"))
        if not place.is_relative_to(self._volume):
            cause = f"{name} is a link that leads out of the volume"
            raise RefusedError(LookUpRefusal("InvalidAnswer", f"{self.where} cannot be read: {cause}"))

    def _unreadable(self, name: str, error: OSError) -> RefusedError:
        what = f"{name}: {error.strerror}; let the user of the pods (uid {os.getuid()}) read it"
        return RefusedError(LookUpRefusal("Unreadable", f"{self.where} cannot be read: {what}"))
