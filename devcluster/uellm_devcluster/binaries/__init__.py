"""The cluster's programs: taken from a directory, downloaded and checked, or built from pinned Go modules.

    ensure({"kubectl", "etcd"}) -> a directory that holds executables of these names
    module_files("sigs.k8s.io/gateway-api", "v1.3.0", "config/crd/standard/*.yaml") -> these files of a Go module

Results are cached by version in `$UELLM_CACHE/bin` (default `~/.cache/uellm/bin`), outside any checkout.
"""

from uellm_devcluster.binaries.catalogue import (
    GATEWAY_API_VERSION,
    INFERENCE_EXTENSION_VERSION,
    KEDA_VERSION,
    LEADER_WORKER_SET_VERSION,
    RELEASES,
    Release,
    releases_for,
)
from uellm_devcluster.binaries.ensure import ensure
from uellm_devcluster.binaries.gobuild import module_files

__all__ = [
    "GATEWAY_API_VERSION",
    "INFERENCE_EXTENSION_VERSION",
    "KEDA_VERSION",
    "LEADER_WORKER_SET_VERSION",
    "RELEASES",
    "Release",
    "ensure",
    "module_files",
    "releases_for",
]
