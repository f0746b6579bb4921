"""The cluster of the end-to-end tests, for those that take longer, and the control plane of the cluster's tests."""

from cluster.conftest import apply_profile, control_plane, gpu_node, kube, kubeconfig
from e2e.conftest import installed, new_service, root

__all__ = ["apply_profile", "control_plane", "gpu_node", "installed", "kube", "kubeconfig", "new_service", "root"]
