"""`python -m uellm.measuring.build OUT.pyz`: the measuring program in one file, the same bytes every time."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from uellm.zipapp import write_zipapp

PACKAGES = ("measuring",)
MODULES = ("__init__.py", "documents.py", "errors.py")


def build(output: Path) -> int:
    """Write the zipapp and return its size in bytes."""
    return write_zipapp(output, PACKAGES, MODULES, "uellm.measuring.__main__")


def main() -> int:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(prog="uellm.measuring.build", description="Build the measuring program")
    parser.add_argument("output", type=Path, metavar="OUT.pyz")
    output: Path = parser.parse_args().output
    print(f"{output}: {build(output)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
