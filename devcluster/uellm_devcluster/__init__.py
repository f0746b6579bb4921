"""A real Kubernetes cluster on this machine: without Docker, or with kind.

uellm cluster up|status|kubeconfig|down     see cli
with ControlPlane(kwok_nodes=3) as plane:   a real API server for tests, no root needed
    plane.kubeconfig
"""

from uellm_devcluster.errors import ClusterError
from uellm_devcluster.local import ControlPlane

__all__ = ["ClusterError", "ControlPlane"]
