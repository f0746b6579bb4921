"""A network namespace with no other addresses than loopback's and one of IPv6."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

ADDRESS = "fd00:75::2"
_CLONE_NEWNET = 0x40000000
_LINKS = "link set lo up\nlink add eth0 type veth peer name far\n"
_LINKS += f"addr add {ADDRESS}/64 dev eth0 nodad\nlink set eth0 up\nlink set far up\n"
T = TypeVar("T")


class Ipv6Namespace:
    """The namespace, held by a file until `remove`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.touch()
        _run(["unshare", f"--net={file}", "--", "true"])
        try:
            _run(self.entering(["ip", "-batch", "-"]), given=_LINKS)
        except BaseException:
            self.remove()
            raise

    def entering(self, argv: list[str]) -> list[str]:
        """`argv` as a command in the namespace."""
        return ["nsenter", f"--net={self._file}", "--", *argv]

    def inside(self, make: Callable[[], T]) -> T:
        """What `make` returns, such as a socket, made in the namespace. A socket stays where it was made."""
        with ThreadPoolExecutor(1, initializer=self._enter) as thread:
            return thread.submit(make).result()

    def _enter(self) -> None:
        """Move this thread alone."""
        handle = os.open(self._file, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(handle)

    def remove(self) -> None:
        _run(["umount", "--lazy", str(self._file)])
        self._file.unlink()


def _run(argv: list[str], given: str = "") -> None:
    subprocess.run(argv, input=given, text=True, capture_output=True, check=True)
