"""The cluster of the end-to-end tests, for those that take longer, and the control plane of the cluster's tests."""

from pathlib import Path

import pytest

from cluster.conftest import apply_profile, control_plane, gpu_node, kube, kubeconfig
from e2e.conftest import installed, new_service, root

__all__ = ["apply_profile", "control_plane", "gpu_node", "installed", "kube", "kubeconfig", "new_service", "root"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test of this directory takes minutes, unless it says itself how long.

    A machine runs one cluster of real nodes, so those that need another one than the rest come last.
    """
    items.sort(key=lambda item: "three_nodes" in getattr(item, "fixturenames", ()))
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(900))
