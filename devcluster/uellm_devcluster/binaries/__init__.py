"""The cluster's programs: taken from a directory, downloaded and checked, or built from pinned Go modules.

    ensure({"kubectl", "etcd"}) -> a directory that holds executables of these names

Results are cached by version in `$UELLM_CACHE/bin` (default `~/.cache/uellm/bin`), outside any checkout.
"""

from uellm_devcluster.binaries.catalogue import RELEASES, Release, releases_for
from uellm_devcluster.binaries.ensure import ensure

__all__ = ["RELEASES", "Release", "ensure", "releases_for"]
