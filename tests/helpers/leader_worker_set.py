"""The real LeaderWorkerSet on real nodes, by its own chart, and CoreDNS, by which the pods of a set find each other.

The pods of a set look up the leader's name. The development cluster has no DNS server otherwise: `DNS_OF_POD` belongs
into the spec of each pod that looks up names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from uellm_devcluster import import_images
from uellm_devcluster.archive import write_image
from uellm_devcluster.binaries import LEADER_WORKER_SET_VERSION, ensure, module_files
from uellm_devcluster.demo.shell import Shell

NAMESPACE = "lws-system"
DNS_ADDRESS = "10.96.0.10"
# What the kubelet writes for `dnsPolicy: ClusterFirst` in a cluster whose kubelets are told of the DNS server.
DNS_OF_POD: dict[str, Any] = {
    "dnsPolicy": "None",
    "dnsConfig": {
        "nameservers": [DNS_ADDRESS],
        "searches": ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"],
        "options": [{"name": "ndots", "value": "5"}],
    },
}
# As kubeadm writes it, without what leads out of the cluster.
_COREFILE = """\
.:53 {
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    reload
    loadbalance
}
"""
_DNS, _KUBE_SYSTEM = {"name": "coredns", "namespace": "kube-system"}, "kube-system"
_IMAGES = {"lws-manager": ("/manager", "65532"), "coredns": ("/coredns", "0")}


def install(shell: Shell, directory: Path) -> None:
    """CoreDNS, then LeaderWorkerSet with its webhooks. The control plane itself asks no DNS."""
    programs = ensure(set(_IMAGES))
    archives = []
    for name, (entrypoint, user) in _IMAGES.items():
        archives.append(directory / f"{name}.tar")
        content = {entrypoint.strip("/"): (programs / name).read_bytes()}
        write_image(archives[-1], f"uellm.local/{name}:dev", content, entrypoint=[entrypoint], user=user)
    import_images(archives)
    manifests = directory / "coredns.yaml"
    manifests.write_text(yaml.safe_dump_all(_coredns()))
    shell.run(f"kubectl apply -f {manifests}")
    shell.run("kubectl rollout status deployment/coredns --namespace kube-system --timeout=120s", timeout_s=150)
    (chart,) = module_files("sigs.k8s.io/lws", LEADER_WORKER_SET_VERSION, "charts/lws")
    values = {
        "image": {"manager": {"repository": "uellm.local/lws-manager", "tag": "dev", "pullPolicy": "Never"}},
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
    }
    (directory / "lws.yaml").write_text(yaml.safe_dump(values))
    options = f"--namespace {NAMESPACE} --create-namespace --values {directory / 'lws.yaml'} --wait --timeout 3m"
    shell.show(f"helm upgrade --install lws {chart} {options}", timeout_s=240)


def _coredns() -> list[dict[str, Any]]:
    labels = {"k8s-app": "kube-dns"}
    role = {
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ]
    }
    binding = {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
        "subjects": [{"kind": "ServiceAccount", **_DNS}],
    }
    container = {
        "name": "coredns",
        "image": "uellm.local/coredns:dev",
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [{"containerPort": 53, "protocol": protocol} for protocol in ("UDP", "TCP")],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": True}],
    }
    pod = {
        "serviceAccountName": "coredns",
        "dnsPolicy": "Default",
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    }
    ports = [{"name": each.lower(), "port": 53, "protocol": each} for each in ("UDP", "TCP")]
    cluster_wide = {"metadata": {"name": "system:coredns"}}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _DNS},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", **cluster_wide, **role},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", **cluster_wide, **binding},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _DNS, "data": {"Corefile": _COREFILE}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": _DNS,
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": _KUBE_SYSTEM},
            "spec": {"clusterIP": DNS_ADDRESS, "selector": labels, "ports": ports},
        },
    ]
