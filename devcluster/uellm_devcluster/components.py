"""Command lines of the control plane's components. Pure: the callers decide what runs where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uellm_devcluster.addresses import LOOPBACK, POD_RANGE, SERVICE_RANGE
from uellm_devcluster.pki import KUBELET_CLIENT

ISSUER = "https://kubernetes.default.svc.cluster.local"


@dataclass(frozen=True)
class ControlPlaneLayout:
    """Where the control plane's files are and its components listen. etcd listens on loopback."""

    binaries: Path
    directory: Path
    address: str
    api_port: int
    etcd_port: int
    # Without a data plane the API server's own Service has no address to lead to.
    data_plane: bool

    @property
    def etcd_url(self) -> str:
        """etcd's address for its only client, the API server."""
        return f"http://{LOOPBACK}:{self.etcd_port}"

    @property
    def server(self) -> str:
        """The API server's address for the other components."""
        return f"https://{self.address}:{self.api_port}"

    def pki(self, name: str) -> str:
        """Path of a file in pki/."""
        return str(self.directory / "pki" / name)


def etcd(layout: ControlPlaneLayout) -> list[str]:
    """One member without durability: a development cluster need not survive a crash."""
    return [
        str(layout.binaries / "etcd"),
        f"--data-dir={layout.directory / 'etcd'}",
        f"--listen-client-urls={layout.etcd_url}",
        f"--advertise-client-urls={layout.etcd_url}",
        # It has no peers. Port 0 avoids conflicts between clusters.
        f"--listen-peer-urls=http://{LOOPBACK}:0",
        "--log-level=warn",
        "--unsafe-no-fsync",
    ]


def apiserver(layout: ControlPlaneLayout) -> list[str]:
    """kube-apiserver with node and RBAC authorisation and an issuer of service account tokens."""
    return [
        str(layout.binaries / "kube-apiserver"),
        f"--etcd-servers={layout.etcd_url}",
        f"--bind-address={layout.address}",
        f"--advertise-address={layout.address}",
        f"--secure-port={layout.api_port}",
        f"--tls-cert-file={layout.pki('apiserver.crt')}",
        f"--tls-private-key-file={layout.pki('apiserver.key')}",
        f"--client-ca-file={layout.pki('ca.crt')}",
        f"--service-account-key-file={layout.pki('service-account.pub')}",
        f"--service-account-signing-key-file={layout.pki('service-account.key')}",
        f"--service-account-issuer={ISSUER}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--kubelet-client-certificate={layout.pki('kubelet-client.crt')}",
        f"--kubelet-client-key={layout.pki('kubelet-client.key')}",
        *_aggregation(layout),
        "--kubelet-preferred-address-types=InternalIP,Hostname",
        # The default reconciler counts API servers by flags. Without a data plane none is needed, because loopback is
        # not a valid endpoint.
        f"--endpoint-reconciler-type={'lease' if layout.data_plane else 'none'}",
    ]


def _aggregation(layout: ControlPlaneLayout) -> list[str]:
    """Servers of further APIs, as of metrics, believe the API server who asks: it proves itself as to kubelets."""
    return [
        f"--proxy-client-cert-file={layout.pki('kubelet-client.crt')}",
        f"--proxy-client-key-file={layout.pki('kubelet-client.key')}",
        f"--requestheader-client-ca-file={layout.pki('ca.crt')}",
        f"--requestheader-allowed-names={KUBELET_CLIENT}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
    ]


def controller_manager(layout: ControlPlaneLayout) -> list[str]:
    """kube-controller-manager. Start it when the API server is ready; before that it lacks its roles and exits."""
    return [
        str(layout.binaries / "kube-controller-manager"),
        *_client(layout, "controller-manager"),
        "--use-service-account-credentials",
        f"--service-account-private-key-file={layout.pki('service-account.key')}",
        f"--root-ca-file={layout.pki('ca.crt')}",
        f"--cluster-signing-cert-file={layout.pki('ca.crt')}",
        f"--cluster-signing-key-file={layout.pki('ca.key')}",
        f"--cluster-cidr={POD_RANGE}",
        "--allocate-node-cidrs=false",
        # Its default directory would be created on the host.
        f"--flex-volume-plugin-dir={layout.directory / 'flexvolume'}",
        # Loopback addresses, as kwok's pods have, are not valid endpoints, and nothing would route to them anyway.
        f"--controllers=*{'' if layout.data_plane else ',-endpoints-controller,-endpointslice-controller'}",
    ]


def scheduler(layout: ControlPlaneLayout) -> list[str]:
    """kube-scheduler, the stock one."""
    return [str(layout.binaries / "kube-scheduler"), *_client(layout, "scheduler")]


def kwok(binaries: Path, *, kubeconfig: Path, stages: Path, pods: str) -> list[str]:
    """kwok simulates the nodes that carry its annotation and their pods, whose addresses come from `pods`."""
    return [
        str(binaries / "kwok"),
        f"--kubeconfig={kubeconfig}",
        f"--config={stages}",
        "--manage-all-nodes=false",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        "--node-lease-duration-seconds=40",
        f"--node-ip={LOOPBACK}",
        f"--cidr={pods}",
    ]


def _client(layout: ControlPlaneLayout, name: str) -> list[str]:
    kubeconfig = layout.pki(f"{name}.kubeconfig")
    return [
        f"--kubeconfig={kubeconfig}",
        # There is only one instance, and an election would cost seconds at each start.
        "--leader-elect=false",
        # It serves no requests, so it takes no port.
        "--secure-port=0",
        # The default limit of 20 requests a second is meant for a shared server; it alone costs 4 s at each start.
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    ]
