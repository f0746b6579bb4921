"""Debian packages that a node needs. Root installs them after naming them; other users are asked to."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from uellm_devcluster.cache import cache_directory, locked
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.progress import step

# A package counts as installed if this program is on PATH or this file exists.
PROOFS = {
    "buildah": "buildah",
    "busybox-static": "/bin/busybox",
    "conntrack": "conntrack",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "debian-archive-keyring": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "iproute2": "ip",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "runc": "runc",
}
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing(packages: Iterable[str]) -> list[str]:
    """Those of `packages` that are not on this machine."""
    return sorted(package for package in packages if not _present(PROOFS[package]))


def ensure(packages: Iterable[str]) -> None:
    """Install what is missing. Raises ClusterError with the command to type where that is not possible."""
    lacking = missing(packages)
    if not lacking:
        return
    by_hand = f"apt-get install {' '.join(lacking)}"
    if not shutil.which("apt-get"):
        raise ClusterError(f"missing: {', '.join(lacking)}; this machine has no apt-get: install their equivalents")
    if os.geteuid() != 0:
        raise ClusterError(f"missing: {', '.join(lacking)}; as root: {by_hand}")
    with step(f"Debian packages: {', '.join(lacking)}"):
        _apt("update")
        _apt("install", "--yes", "--no-install-recommends", *lacking)
    still = missing(lacking)
    if still:
        raise ClusterError(f"apt-get installed {', '.join(still)}, but their files are not where they are expected")


def unpacked(package: str) -> Path:
    """The files of a package, unpacked into a directory without installing it, so without root.

    Raises ClusterError if this machine has no apt-get or cannot download packages.
    """
    home = cache_directory() / "debian" / package
    if home.is_dir():
        return home
    if not shutil.which("apt-get"):
        raise ClusterError(f"missing: {package}; this machine has no apt-get: install its equivalent")
    with locked(home.with_name(f"{package}.lock")), tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        if home.is_dir():  # another process made it in the meantime
            return home
        if os.geteuid() == 0:
            _apt("update")
        _run(["apt-get", "--quiet", "--quiet", "download", package], "download", directory=scratch)
        (archive,) = Path(scratch).glob("*.deb")
        _run(["dpkg-deb", "--extract", str(archive), f"{scratch}/files"], "extract", directory=scratch)
        Path(scratch, "files").rename(home)
    return home


def _present(proof: str) -> bool:
    if proof.startswith("/"):
        return os.path.exists(proof)
    path = f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"
    return shutil.which(proof, path=path) is not None


def _apt(*arguments: str) -> None:
    _run(["apt-get", "--quiet", "--quiet", *arguments], arguments[0])


def _run(command: list[str], what: str, *, directory: str | None = None) -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=env, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ClusterError(f"{command[0]} {what} failed: {last}")
