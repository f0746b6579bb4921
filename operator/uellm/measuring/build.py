"""`python -m uellm.measuring.build OUT.pyz`: the measuring program in one file, the same bytes every time."""

from __future__ import annotations

import sys
from pathlib import Path

from uellm.zipapp import build_command, write_zipapp

PACKAGES = ("measuring",)
MODULES = ("__init__.py", "documents.py", "errors.py")


def build(output: Path) -> int:
    """Write the zipapp and return its size in bytes."""
    return write_zipapp(output, PACKAGES, MODULES, "uellm.measuring.__main__")


def main() -> int:
    """Build what the command line asks for."""
    return build_command("uellm.measuring.build", "Build the measuring program", build)


if __name__ == "__main__":
    sys.exit(main())
