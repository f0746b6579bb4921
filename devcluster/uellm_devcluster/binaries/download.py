"""Downloads official releases and checks them against the SHA-256 that their project publishes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from uellm_devcluster.binaries.catalogue import Release
from uellm_devcluster.errors import ClusterError

_PROBE_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 20


def reachable(url: str) -> bool:
    """Whether the host of `url` answers a HEAD request quickly. If so, a download is faster than a build."""
    request = urllib.request.Request(url.format(program="kubectl"), method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT_S) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def fetch(release: Release, directory: Path) -> None:
    """Download `release` into `directory`. Raises ClusterError for a wrong checksum or a missing program."""
    source = release.download
    if source is None:
        raise ClusterError(f"{release.name} publishes no checked release")
    if source.archive:
        archive = directory / "archive.tar.gz"
        _fetch_checked(source.url, source.checksum_url, archive)
        _unpack(archive, release, directory)
        archive.unlink()
        return
    for program in release.programs:
        target = directory / program
        _fetch_checked(source.url.format(program=program), source.checksum_url.format(program=program), target)
        target.chmod(0o755)


def published_sha256(listing: str, file_name: str) -> str:
    """The digest of `file_name` in a checksum file, which is either a bare digest or lines of `digest  name`."""
    lines = [line.split() for line in listing.splitlines() if line.strip()]
    for fields in lines:
        if len(fields) == 1 and len(lines) == 1:
            return fields[0].lower()
        if len(fields) == 2 and os.path.basename(fields[1].lstrip("*")) == file_name:
            return fields[0].lower()
    raise ClusterError(f"the published checksums do not name {file_name}")


def _fetch_checked(url: str, checksum_url: str, target: Path) -> None:
    try:
        with urllib.request.urlopen(checksum_url, timeout=_READ_TIMEOUT_S) as response:
            expected = published_sha256(response.read().decode(), os.path.basename(url))
        digest = hashlib.sha256()
        with urllib.request.urlopen(url, timeout=_READ_TIMEOUT_S) as response, target.open("wb") as out:
            while chunk := response.read(_CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
    except OSError as error:
        raise ClusterError(f"{url}: {error}; try again, or name a directory of binaries by --binaries") from error
    if digest.hexdigest() != expected:
        raise ClusterError(
            f"{url}: its SHA-256 is {digest.hexdigest()}, published is {expected}; nothing was installed"
        )


def _unpack(archive: Path, release: Release, directory: Path) -> None:
    with tarfile.open(archive) as tar:
        members = {os.path.basename(member.name): member for member in tar.getmembers() if member.isfile()}
        for program in release.programs:
            source = tar.extractfile(members[program]) if program in members else None
            if source is None:
                raise ClusterError(f"{archive.name} of {release.name} {release.version} holds no {program}")
            with (directory / program).open("wb") as out:
                shutil.copyfileobj(source, out)
            (directory / program).chmod(0o755)
