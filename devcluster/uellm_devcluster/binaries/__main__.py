"""`python -m uellm_devcluster.binaries [PROGRAM ...]`: provide the programs and show progress.

Without names, those that `make test` needs.
"""

from __future__ import annotations

import sys

from uellm_devcluster.binaries import RELEASES, ensure
from uellm_devcluster.errors import ClusterError


def main(programs: list[str]) -> int:
    """Provide the programs and print the directory that holds them."""
    try:
        needed = [program for release in RELEASES if not release.optional for program in release.programs]
        print(ensure(programs or needed))
    except (ClusterError, KeyError) as error:
        print(f"binaries: {error.args[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
