"""The files of a native node: its mounts, and the configuration of containerd, the pods' network and the kubelet.

Pure: every function returns a file's content or a command line.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from uellm_devcluster.addresses import POD_RANGE, NodeAddress
from uellm_devcluster.archive import PAUSE_IMAGE

# The path of Debian's containernetworking-plugins.
CNI_PLUGINS = "/usr/lib/cni"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"

# Every node uses its programs' default paths, over which its own directories are mounted. Maps a path in the node to
# the part of the node's directory that is mounted there.
OWN_DIRECTORIES = {
    "/var/lib/kubelet": "kubelet",
    "/var/log/pods": "logs/pods",
    "/var/log/containers": "logs/containers",
    "/var/lib/containerd": "containerd",
    "/run/containerd": "run",
    "/var/lib/cni": "cni/state",
    "/etc/cni/net.d": "cni/conf",
    # Devices for containers, written by DRA drivers and read by containerd.
    "/run/cdi": "cdi",
    # Of UELLM's chart: what was measured on the node, and the models that are kept there.
    "/var/lib/uellm/measurements": "measurements",
    "/var/lib/uellm/copies": "copies",
}
# Kernel settings that a kubelet changes for itself. They apply to the whole machine, so files are mounted over them in
# the node: the kubelet reads back what it wrote, and the machine stays unchanged.
KERNEL_SETTINGS = (
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/keys/root_maxbytes",
)
# Network namespaces of the node's pods.
POD_NAMESPACES = "/run/netns"


class Mount(NamedTuple):
    """A directory of the host that every node shows read-only at `node_path`."""

    host_path: str
    node_path: str


def mount_points(mounts: list[Mount]) -> list[str]:
    """Paths that must exist on the host so that a node can mount over them."""
    return [*OWN_DIRECTORIES, POD_NAMESPACES, *(mount.node_path for mount in mounts)]


def hold_script(directory: Path, mounts: list[Mount], entered: Path) -> str:
    """The shell script of the process that holds a node's mount namespace: it mounts, reports, and sleeps."""
    binds = [
        f"mount --bind {shlex.quote(str(directory / part))} {shlex.quote(path)}"
        for path, part in OWN_DIRECTORIES.items()
    ]
    settings = []
    for path in KERNEL_SETTINGS:
        copy = shlex.quote(str(directory / "settings" / path.replace("/", ".").strip(".")))
        settings += [f"cat {path} > {copy}", f"mount --bind {copy} {path}"]
    given = [f"mount --bind -o ro {shlex.quote(each.host_path)} {shlex.quote(each.node_path)}" for each in mounts]
    return "\n".join(
        [
            "set -e",
            "mount --make-rprivate /",
            *given,
            *binds,
            *settings,
            f"mount -t tmpfs tmpfs {POD_NAMESPACES}",
            "mount --make-rshared /",
            f": > {shlex.quote(str(entered))}",
            "exec sleep infinity",
        ]
    )


def containerd_config(*, snapshotter: str) -> str:
    """containerd's configuration.

    `restrict_oom_score_adj` is needed because without CAP_SYS_RESOURCE no process may lower its OOM score. The sandbox
    image is imported, because there is no registry.
    """
    return f"""\
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{snapshotter}"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{CNI_PLUGINS}"]
    conf_dir = "/etc/cni/net.d"
# What would leave files outside the node's own directories.
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.transfer.v1.local"]
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux"
    snapshotter = "{snapshotter}"
"""


def network_config(node: NodeAddress) -> str:
    """The pods' network: point-to-point links.

    So traffic to a Service on the same node passes the node's rules in both directions. Over a bridge the answer would
    bypass them.
    """
    plugins: list[dict[str, Any]] = [
        {
            "type": "ptp",
            "ipMasq": False,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": node.pods}]], "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return json.dumps({"cniVersion": "1.0.0", "name": "uellm", "plugins": plugins}, indent=1)


def kubelet_config(*, cgroup_root: str, authority: Path, resolver: Path) -> str:
    """The kubelet's configuration."""
    return yaml.safe_dump(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup_root,
            "failCgroupV1": False,
            "failSwapOn": False,
            # The nodes share one machine, so no resources are reserved or enforced for a node.
            "enforceNodeAllocatable": [],
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority)},
            },
            "authorization": {"mode": "Webhook"},
            # There is no DNS server in the cluster. Loopback refuses at once; an unreachable server would cost
            # timeouts.
            "clusterDNS": ["127.0.0.1"],
            "clusterDomain": "cluster.local",
            "resolvConf": str(resolver),
            # A developer's disk is often nearly full, and images that were removed could not be pulled again.
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
                "nodefs.inodesFree": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        },
        sort_keys=False,
    )


def kubelet_argv(binaries: Path, node: NodeAddress, *, config: Path, kubeconfig: Path) -> list[str]:
    """The kubelet's command line."""
    return [
        str(binaries / "kubelet"),
        f"--config={config}",
        f"--kubeconfig={kubeconfig}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
    ]


def kube_proxy_argv(binaries: Path, node: NodeAddress, *, kubeconfig: Path) -> list[str]:
    """kube-proxy's command line. It leaves the machine's connection tracking sizes unchanged."""
    return [
        str(binaries / "kube-proxy"),
        f"--kubeconfig={kubeconfig}",
        "--proxy-mode=iptables",
        f"--hostname-override={node.name}",
        f"--cluster-cidr={POD_RANGE}",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
        "--metrics-bind-address=127.0.0.1:10249",
        "--healthz-bind-address=127.0.0.1:10256",
    ]
