"""`python -m uellm.launcher.build OUT.pyz`: the launcher and what it imports in one file, the same bytes every time."""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path

import uellm

PACKAGES = ("hardware", "models", "planner", "launcher")
MODULES = (
    "__init__.py",
    "documents.py",
    "errors.py",
    "placement_policies.py",
    "placement_report.py",
    "pod_interface.py",
    "drain_token.py",
    "step_time.py",
    "text.py",
)
SHEBANG = b"#!/usr/bin/env python3\n"
# ZIP's earliest time stamp: the file's bytes depend on the sources alone.
EPOCH = (1980, 1, 1, 0, 0, 0)
MAIN = "import sys\n\nfrom uellm.launcher.__main__ import main\n\nsys.exit(main())\n"


def build(output: Path) -> int:
    """Write the zipapp and return its size in bytes."""
    root = Path(uellm.__file__).parent
    files = [root / name for name in MODULES]
    files += [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("wb") as stream:
        stream.write(SHEBANG)
        with zipfile.ZipFile(stream, "w") as archive:
            _add(archive, "__main__.py", MAIN.encode())
            for path in sorted(files):
                _add(archive, f"uellm/{path.relative_to(root).as_posix()}", path.read_bytes())
    output.chmod(0o755)
    return output.stat().st_size


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, date_time=EPOCH)
    # Stored, not deflated: zlib's versions differ in their output.
    entry.compress_type = zipfile.ZIP_STORED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)


def main() -> int:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(prog="uellm.launcher.build", description="Build the launcher's zipapp")
    parser.add_argument("output", type=Path, metavar="OUT.pyz")
    output: Path = parser.parse_args().output
    print(f"{output}: {build(output)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
