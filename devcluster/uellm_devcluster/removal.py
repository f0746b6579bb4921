"""Removes a directory that a dying process may still fill or empty."""

from __future__ import annotations

import errno
import shutil
import time
from pathlib import Path

from uellm_devcluster.errors import ClusterError

_TIMEOUT_S = 10.0
_POLL_S = 0.02


def remove_tree(path: Path) -> None:
    """Remove `path` and all in it, if it is there. Raises ClusterError where something keeps filling it.

    A killed process finishes the call that it is in, so a file may go between our look and our removal of it, or come.
    """
    deadline_s = time.monotonic() + _TIMEOUT_S
    while path.is_dir():
        try:
            shutil.rmtree(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise
            if time.monotonic() > deadline_s:
                raise ClusterError(f"{path} does not go: some process still writes into it ({error})") from error
            time.sleep(_POLL_S)
