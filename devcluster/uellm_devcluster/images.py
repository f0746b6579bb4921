"""Builds the images of `images/Dockerfile` without Docker: a Debian base, buildah, one OCI archive.

`build()` returns the path of an archive for `ctr images import` that contains every image. The base layer is shared, so
it is stored and imported only once. The archive is cached by a digest of everything that went into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from uellm_devcluster import binaries, packages
from uellm_devcluster.cache import cache_directory, locked
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.progress import step

CHECKOUT = Path(__file__).resolve().parents[2]
TARGETS = ("operator", "sidecar", "profiler", "launcher", "kube-scheduler", "engine-cpu")
PREFIX = "uellm.local"
TAG = "dev"

# The packages in the images and the development engine's hostPath need Python 3.11. vLLM's CPU build links to numa and
# gomp.
_SUITE = "bookworm"
_BASE_PACKAGES = ("ca-certificates", "libgomp1", "libnuma1", "python3", "python3.11")
_BASE_EXCLUDES = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")


def build() -> Path:
    """Build what changed and return the archive. Raises ClusterError with the last output of the tool that failed."""
    packages.ensure(["buildah", "mmdebstrap", "debian-archive-keyring"])
    # The packages are collected into the checkout, so that two builds there would mix theirs.
    with locked(CHECKOUT / "build" / "images.lock"):
        return _built()


def _built() -> Path:
    _collect()
    base = _base_archive()
    home = cache_directory() / "images"
    archive = home / f"uellm-{_digest(base)}.tar"
    with locked(home / "images.lock"):
        if not archive.exists():
            with step(f"images: {', '.join(TARGETS)}"):
                _build_archive(base, archive)
            _forget_older(home, archive)
    return archive


def _collect() -> None:
    context = CHECKOUT / "build" / "images"
    with step("images: packages of each role, from the lock"):
        _run(["sh", str(CHECKOUT / "images" / "collect.sh")])
    scheduler = binaries.ensure({"kube-scheduler"}) / "kube-scheduler"
    shutil.copyfile(scheduler, context / "kube-scheduler")
    (context / "kube-scheduler").chmod(0o755)


def _base_archive() -> Path:
    recipe = hashlib.sha256(repr((_SUITE, _BASE_PACKAGES, _BASE_EXCLUDES)).encode()).hexdigest()[:12]
    base = cache_directory() / "images" / f"base-{recipe}.tar"
    with locked(base.with_suffix(".lock")):
        if not base.exists():
            with step(f"images: a Debian {_SUITE} base with Python 3.11"):
                unfinished = base.with_suffix(".unfinished.tar")
                excludes = [f"--dpkgopt=path-exclude={pattern}" for pattern in _BASE_EXCLUDES]
                include = f"--include={','.join(_BASE_PACKAGES)}"
                _run(["mmdebstrap", "--quiet", "--variant=minbase", include, *excludes, _SUITE, str(unfinished)])
                unfinished.rename(base)
    return base


def _digest(base: Path) -> str:
    """Digest of everything that goes into the images. Time stamps do not count."""
    digest = hashlib.sha256(base.name.encode())
    for path in _inputs():
        relative = path.relative_to(CHECKOUT)
        digest.update(f"{relative}\0{path.stat().st_mode & 0o111}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _inputs() -> Iterator[Path]:
    yield CHECKOUT / "images" / "Dockerfile"
    context = CHECKOUT / "build" / "images"
    yield from sorted(path for path in context.rglob("*") if path.is_file() and not _says_where(path))


def _says_where(path: Path) -> bool:
    """Files of the installer that differ between checkouts and that no program reads."""
    return path.name in {"direct_url.json", "REQUESTED", "uv_cache.json"} or path.suffix == ".txt"


def _build_archive(base: Path, archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix="build-") as scratch:
        layout = Path(scratch) / "oci"
        buildah = _Buildah(Path(scratch))
        try:
            buildah.import_base(base)
            for target in TARGETS:
                buildah.build(target)
                buildah.push(target, layout)
        finally:
            buildah.forget()
        _name_images(layout)
        unfinished = archive.with_suffix(".unfinished.tar")
        with tarfile.open(unfinished, "w") as tar:
            for path in sorted(layout.rglob("*")):
                tar.add(path, arcname=str(path.relative_to(layout)), recursive=False)
        unfinished.rename(archive)


def _name_images(layout: Path) -> None:
    """Add the annotation to each manifest by which containerd names an image on import."""
    index_file = layout / "index.json"
    index = json.loads(index_file.read_text())
    for manifest in index["manifests"]:
        annotations = manifest["annotations"]
        annotations["io.containerd.image.name"] = annotations["org.opencontainers.image.ref.name"]
    index_file.write_text(json.dumps(index))


def _forget_older(home: Path, newest: Path) -> None:
    for path in home.glob("uellm-*.tar"):
        if path != newest:
            path.unlink()


class _Buildah:
    """buildah with its own store and settings, independent of the machine's."""

    BASE = "localhost/uellm-base"

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._driver = self._choose_driver()

    def import_base(self, base: Path) -> None:
        container = self._call("from", "scratch")
        self._call("add", container, str(base), "/")
        self._call("commit", container, self.BASE)
        self._call("rm", container)

    def build(self, target: str) -> None:
        tag = f"{PREFIX}/{target}:{TAG}"
        options = ["--isolation", "chroot", "--layers=false", "--build-arg", f"BASE={self.BASE}"]
        dockerfile = str(CHECKOUT / "images" / "Dockerfile")
        self._call("bud", *options, "--target", target, "-t", tag, "-f", dockerfile, str(CHECKOUT))

    def push(self, target: str, layout: Path) -> None:
        tag = f"{PREFIX}/{target}:{TAG}"
        # Uncompressed, because the archive is only read by a containerd on this machine.
        self._call("push", "--disable-compression", tag, f"oci:{layout}:{tag}")

    def forget(self) -> None:
        """Unmount what overlay may have left, so that the scratch directory can be removed."""
        subprocess.run([*self._command(self._driver), "rm", "--all"], capture_output=True, check=False)

    def _choose_driver(self) -> str:
        """overlay where this file system supports it (it takes half the time), else vfs, which works everywhere."""
        probe = subprocess.run([*self._command("overlay"), "images"], capture_output=True, check=False)
        return "vfs" if probe.returncode else "overlay"

    def _command(self, driver: str) -> list[str]:
        store = self._scratch / driver
        return ["buildah", "--root", str(store / "root"), "--runroot", str(store / "run"), "--storage-driver", driver]

    def _call(self, verb: str, *arguments: str) -> str:
        quiet = [] if verb in {"rm", "from"} else ["--quiet"]
        return _run([*self._command(self._driver), verb, *quiet, *arguments]).strip()


def _run(command: list[str]) -> str:
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        output = " | ".join(done.stderr.strip().splitlines()[-4:]) or "no output"
        raise ClusterError(f"{' '.join(command[:2])} failed: {output}")
    return done.stdout
