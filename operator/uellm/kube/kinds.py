"""The kinds that UELLM reads or writes, and their paths on the API server.

They are listed here and not discovered: discovery costs a dozen requests at each start and a cache that can be wrong,
and RBAC has to grant the same list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote


class Kind(NamedTuple):
    """A kind of object."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool

    def path(self, *, namespace: str | None = None, name: str | None = None, subresource: str = "") -> str:
        """The path of an object, or of a collection where `name` is None; all namespaces where `namespace` is None.

        >>> Kind("apps/v1", "Deployment", "deployments", True).path(namespace="a", name="b", subresource="scale")
        '/apis/apps/v1/namespaces/a/deployments/b/scale'
        """
        if self.namespaced and name is not None and not namespace:
            raise ValueError(f"{self.kind} {name!r} lives in a namespace, and none was given")
        prefix = "/apis/" if "/" in self.api_version else "/api/"
        parts = [prefix + self.api_version]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            # An empty name would turn the object's path into that of its collection: a delete of all of them.
            if not name:
                raise ValueError(f"{self.kind} without a name")
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


LLMSERVICE = Kind("uellm.io/v1alpha1", "LLMService", "llmservices", True)
GPUNODEPROFILE = Kind("uellm.io/v1alpha1", "GPUNodeProfile", "gpunodeprofiles", False)
GPUNODECLASS = Kind("uellm.io/v1alpha1", "GPUNodeClass", "gpunodeclasses", False)
NODE = Kind("v1", "Node", "nodes", False)
NAMESPACE = Kind("v1", "Namespace", "namespaces", False)
POD = Kind("v1", "Pod", "pods", True)
SERVICE = Kind("v1", "Service", "services", True)
ENDPOINTSLICE = Kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", True)
SECRET = Kind("v1", "Secret", "secrets", True)
"""Read by the gateway alone, and only where a namespace lets it."""
PVC = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims", True)
CONFIGMAP = Kind("v1", "ConfigMap", "configmaps", True)
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments", True)
REPLICASET = Kind("apps/v1", "ReplicaSet", "replicasets", True)
PDB = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", True)
EVENT = Kind("events.k8s.io/v1", "Event", "events", True)
CORE_EVENT = Kind("v1", "Event", "events", True)
"""The same objects by their older name, by which they can be selected by the object that they are about."""
NODEPOOL = Kind("karpenter.sh/v1", "NodePool", "nodepools", False)
"""Karpenter's, where it is installed."""
INFERENCEPOOL = Kind("inference.networking.k8s.io/v1", "InferencePool", "inferencepools", True)
"""Of the Gateway API inference extension, where it is installed."""
HTTPROUTE = Kind("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes", True)
"""Of the Gateway API, where it is installed."""
LEADERWORKERSET = Kind("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "leaderworkersets", True)
"""Of the project of the same name, where it is installed."""
DEVICECLASS = Kind("resource.k8s.io/v1", "DeviceClass", "deviceclasses", False)
"""This and the next ones are served from Kubernetes 1.34 on."""
RESOURCECLAIMTEMPLATE = Kind("resource.k8s.io/v1", "ResourceClaimTemplate", "resourceclaimtemplates", True)
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases", True)
RESOURCECLAIM = Kind("resource.k8s.io/v1", "ResourceClaim", "resourceclaims", True)
RESOURCESLICE = Kind("resource.k8s.io/v1", "ResourceSlice", "resourceslices", False)
WORKLOAD = Kind("kueue.x-k8s.io/v1beta2", "Workload", "workloads", True)
"""Kueue's, where it is installed."""
FORMER_WORKLOAD = Kind("kueue.x-k8s.io/v1beta1", "Workload", "workloads", True)
"""The same in releases of Kueue that do not serve the newer version."""
CLUSTERROLEBINDING = Kind("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings", False)
CRD = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", False)

KINDS: Mapping[tuple[str, str], Kind] = {
    (kind.api_version, kind.kind): kind
    for kind in (
        LLMSERVICE,
        GPUNODEPROFILE,
        GPUNODECLASS,
        NODE,
        NAMESPACE,
        POD,
        SERVICE,
        ENDPOINTSLICE,
        SECRET,
        PVC,
        CONFIGMAP,
        DEPLOYMENT,
        REPLICASET,
        PDB,
        EVENT,
        CORE_EVENT,
        NODEPOOL,
        INFERENCEPOOL,
        HTTPROUTE,
        LEADERWORKERSET,
        DEVICECLASS,
        RESOURCECLAIMTEMPLATE,
        LEASE,
        RESOURCECLAIM,
        RESOURCESLICE,
        WORKLOAD,
        FORMER_WORKLOAD,
        CLUSTERROLEBINDING,
        CRD,
    )
}


def kind_of(obj: Mapping[str, Any]) -> Kind:
    """The kind of an object. Raises ValueError for one that is not in `KINDS`."""
    key = (str(obj.get("apiVersion", "")), str(obj.get("kind", "")))
    if key not in KINDS:
        raise ValueError(f"uellm.kube knows no kind {key[1]!r} of {key[0]!r}: add it to uellm.kube.kinds")
    return KINDS[key]
