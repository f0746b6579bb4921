"""The files of a native node: its mounts, and the configuration of containerd, of the pods' network and of the kubelet.

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

# Where Debian's containernetworking-plugins puts them.
CNI_PLUGINS = "/usr/lib/cni"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"

# Every node uses the default paths of all its programs; each has its own directory behind them. By path in the node:
# the part of the node's directory that is bound over it.
OWN_DIRECTORIES = {
    "/var/lib/kubelet": "kubelet",
    "/var/log/pods": "logs/pods",
    "/var/log/containers": "logs/containers",
    "/var/lib/containerd": "containerd",
    "/run/containerd": "run",
    "/var/lib/cni": "cni/state",
    "/etc/cni/net.d": "cni/conf",
}
# Settings of the kernel that a kubelet makes for itself. They are the whole machine's, so the node gets files in their
# place: the kubelet finds what it wrote, and the machine stays as it was.
KERNEL_SETTINGS = (
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/keys/root_maxbytes",
)
# The network namespaces of the node's pods.
POD_NAMESPACES = "/run/netns"


class Mount(NamedTuple):
    """A directory of the host that every node shows, read-only, at `node_path`."""

    host_path: str
    node_path: str


def mount_points(mounts: list[Mount]) -> list[str]:
    """Paths that must exist on the host for a node to mount over."""
    return [*OWN_DIRECTORIES, POD_NAMESPACES, *(mount.node_path for mount in mounts)]


def hold_script(directory: Path, mounts: list[Mount], entered: Path) -> str:
    """The shell script of the process that holds a node's mount namespace: it mounts, says so, and sleeps.

    Propagation is cut first, so that the host sees none of it; inside, mounts are shared, as kubelets expect.
    """
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
    """containerd's configuration. Without CAP_SYS_RESOURCE no process may lower its score of being killed first, hence
    `restrict_oom_score_adj`; the sandbox's image is imported, for there is no registry to take it from."""
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
    """The pods' network: point-to-point links, so that what goes to a Service on the same node passes the node's rules
    both ways (over a bridge the answer would take a shortcut)."""
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
            # The nodes share one machine, so nothing is reserved or enforced for a node as a whole.
            "enforceNodeAllocatable": [],
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority)},
            },
            "authorization": {"mode": "Webhook"},
            # There is no DNS server in the cluster. Loopback refuses at once, where a missing server costs timeouts.
            "clusterDNS": ["127.0.0.1"],
            "clusterDomain": "cluster.local",
            "resolvConf": str(resolver),
            # A developer's disk is often nearly full, and its images are the only ones there are.
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
    """kube-proxy's command line; the machine's connection tracking keeps the sizes it has."""
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
