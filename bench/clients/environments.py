"""An environment for each client, made from its locked versions."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / "build" / "clients"
SHARED = HERE / "shared"
TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Environment:
    """How a client's probe is run."""

    command: list[str]
    folder: Path
    """Where it is run."""


@dataclass(frozen=True)
class Unavailable:
    """The client cannot be installed here."""

    reason: str


def prepared(client: str) -> Environment | Unavailable:
    """The client's environment; installed at first, and again when its lock or its probe changed."""
    source = HERE / client
    if (source / "package-lock.json").exists():
        return _node(client, source)
    if (source / "requirements.txt").exists():
        return _python(client, source)
    return Environment([sys.executable, str(source / "probe.py")], ENVIRONMENTS)


def _python(client: str, source: Path) -> Environment | Unavailable:
    folder, lock = ENVIRONMENTS / client, source / "requirements.txt"
    python = folder / "bin" / "python"
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        return Unavailable("uv is not there (make setup brings it)")
    steps = [
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder],
        [uv, "pip", "sync", "--quiet", "--python", python, lock],
    ]
    failure = install(folder, _digest(lock), steps)
    return failure or Environment([str(python), str(source / "probe.py")], ENVIRONMENTS)


def _node(client: str, source: Path) -> Environment | Unavailable:
    # Node looks for a module's packages beside the module, so the probe is copied to them.
    folder, npm, node = ENVIRONMENTS / client, shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        return Unavailable("Node is not installed (Debian: apt-get install nodejs npm)")
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*source.iterdir(), SHARED / "probing.mjs"):
        shutil.copy(file, folder)
    ours = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", folder]
    failure = install(folder, _digest(source / "package-lock.json"), [ours])
    return failure or Environment([node, "probe.mjs"], folder)


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def install(folder: Path, digest: str, steps: list[list[Any]]) -> Unavailable | None:
    """Run the steps, unless the folder was made from a lock of this digest."""
    stamp = folder / "installed.stamp"
    if stamp.exists() and stamp.read_text() == digest:
        return None
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    for step in steps:
        try:
            done = subprocess.run(list(map(str, step)), capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return Unavailable(f"not installed within {TIMEOUT_S:.0f} s")
        if done.returncode != 0:
            return Unavailable(last_line(done.stderr))
    stamp.write_text(digest)
    return None


def last_line(text: str) -> str:
    """What a failed command said last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it failed without a word"
