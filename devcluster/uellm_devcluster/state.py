"""The files of a cluster: a directory with its name, its record, and the lock that commands take.

<base>/<name>/cluster.json   what runs here and with which options (Record)
              kubeconfig     the administrator's
              pki/ log/ pid/ etcd/ node-1/ ...
<base>/<name>.lock           held while a command starts or ends the cluster
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from uellm_devcluster.errors import ClusterError
from uellm_devcluster.removal import remove_tree

DEFAULT_NAME = "uellm"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")


def base_directory() -> Path:
    """`$UELLM_CLUSTER_DIR`, else /var/lib/uellm-devcluster for root, else `$XDG_STATE_HOME/uellm/cluster`."""
    named = os.environ.get("UELLM_CLUSTER_DIR")
    if named:
        return Path(named).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/uellm-devcluster")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "uellm" / "cluster"


def cluster_name(name: str | None = None) -> str:
    """`name`, else `$UELLM_CLUSTER_NAME`, else `uellm`. It must be a DNS label, because it names Kubernetes objects."""
    chosen = name or os.environ.get("UELLM_CLUSTER_NAME") or DEFAULT_NAME
    if not _NAME.fullmatch(chosen):
        raise ClusterError(f"cluster name {chosen!r}: give lower case letters, digits and dashes, 40 at most")
    return chosen


@dataclass
class Record:
    """What a cluster consists of. `phase` is `starting` until all of it has run once, also if the start is killed."""

    provider: str
    options: dict[str, Any]
    # The directory of programs that the user named, or nothing.
    binaries: str | None = None
    phase: str = "starting"
    # Ports on the host's loopback, by the service that listens there.
    ports: dict[str, int] = field(default_factory=dict)
    # Directories of the host that were created as mount points. They are removed at the end if empty.
    made_directories: list[str] = field(default_factory=list)


class State:
    """The files of one cluster."""

    def __init__(self, name: str | None = None, *, base: Path | None = None) -> None:
        self.name = cluster_name(name)
        self.directory = (base or base_directory()) / self.name

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig, for clients on this machine."""
        return self.directory / "kubeconfig"

    @property
    def pki(self) -> Path:
        """Keys, certificates and the components' kubeconfigs."""
        return self.directory / "pki"

    def log(self, component: str) -> Path:
        """The log file of `component`."""
        return self.directory / "log" / f"{component}.log"

    def pid_file(self, component: str) -> Path:
        """The file that records the process of `component`."""
        return self.directory / "pid" / component

    def make(self) -> None:
        """Create the directories. Only their owner can read them, because they contain keys."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        for part in ("log", "pid", "pki"):
            (self.directory / part).mkdir(exist_ok=True)

    def remove(self, *, keep_logs: bool = False) -> None:
        """Remove the cluster's files. Its processes, which needed them, have ended.

        `keep_logs` keeps the logs, so that a failed start can be explained.
        """
        for path in self.directory.iterdir() if self.directory.is_dir() else ():
            if keep_logs and path.name == "log" and any(path.iterdir()):
                continue
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # does not exist, or still holds the logs
            self.directory.rmdir()
        self._lock_path.unlink(missing_ok=True)

    def read(self) -> Record | None:
        """The record, or None where no cluster of this name is recorded."""
        try:
            return Record(**json.loads((self.directory / "cluster.json").read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            # Written by another version. Its parts can still be found by name and ended.
            return Record(provider="", options={})

    def write(self, record: Record) -> None:
        """Replace the record atomically."""
        fresh = self.directory / "cluster.json.new"
        fresh.write_text(json.dumps(asdict(record), indent=1) + "\n")
        fresh.replace(self.directory / "cluster.json")

    @property
    def _lock_path(self) -> Path:
        return self.directory.with_name(self.name + ".lock")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the cluster for one command. Raises ClusterError while another command holds the lock."""
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with self._lock_path.open("a") as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ClusterError(
                        f"another command is working on cluster {self.name!r}: wait for it, or end it"
                    ) from None
                if _is_still(self._lock_path, handle.fileno()):
                    yield
                    return


def clusters(base: Path) -> list[State]:
    """The clusters in `base`."""
    return [State(path.parent.name, base=base) for path in sorted(base.glob("*/cluster.json"))]


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the locked file is still the one at `path`: the previous holder may have removed it with the cluster."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
