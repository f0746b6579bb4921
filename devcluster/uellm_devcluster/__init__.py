"""A real Kubernetes cluster on this machine: without Docker, or with kind.

uellm cluster up|status|kubeconfig|down     see `cli`
up(nodes=2), kubeconfig(), down()           the same from Python; import_images([...]) into a native cluster's nodes
with ControlPlane(kwok_nodes=3) as plane:   a real API server for tests, no root needed
    plane.kubeconfig
"""

from uellm_devcluster.cluster import down, kubeconfig, status, up
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.local import ControlPlane
from uellm_devcluster.native import import_images

__all__ = ["ClusterError", "ControlPlane", "down", "import_images", "kubeconfig", "status", "up"]
