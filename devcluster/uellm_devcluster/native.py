"""Provider `native`: real nodes in namespaces of this machine. It needs Linux and root, but no Docker and no systemd.

The control plane runs in the first node's network namespace. A forwarder on the host's loopback leads to it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from uellm_devcluster import addresses, control_plane, forward, packages, pki, processes
from uellm_devcluster.addresses import API_PORT, LOOPBACK, SERVICE_ADDRESS, NodeAddress
from uellm_devcluster.api import Api
from uellm_devcluster.archive import write_pause_image
from uellm_devcluster.binaries import ensure
from uellm_devcluster.cgroups import SYSTEM, Cgroups
from uellm_devcluster.components import ControlPlaneLayout
from uellm_devcluster.control_plane import Parts
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.local import free_ports, listens
from uellm_devcluster.network import Network
from uellm_devcluster.node import Node
from uellm_devcluster.nodefiles import Mount, mount_points
from uellm_devcluster.progress import step
from uellm_devcluster.state import Record, State, clusters

PROVIDER = "native"
_PROGRAMS = {"kubelet", "kube-proxy", "containerd", "containerd-shim-runc-v2", "ctr"}
_PACKAGES = ["runc", "containernetworking-plugins", "iptables", "iproute2", "conntrack"]
_ETCD_PORT = 2379
_FORWARDER_TIMEOUT_S = 20.0


def check(state: State) -> None:
    """Nodes need root, and the addresses suffice for one cluster."""
    _require_root()
    for other in clusters(state.directory.parent):
        record = other.read()
        if other.name != state.name and record and record.provider == PROVIDER:
            raise ClusterError(
                f"the native cluster {other.name!r} exists already, and a machine runs only one: "
                f"`uellm cluster down --name {other.name}`"
            )


def start(state: State, record: Record, *, images: list[Path], tied: bool) -> None:
    """Start the parts of the cluster that do not run. `tied` has no effect: containers end only with the cluster."""
    packages.ensure(_PACKAGES)
    parts = Parts(kwok_nodes=record.options["kwok_nodes"])
    directory = ensure(parts.programs() | _PROGRAMS, directory=record.binaries)
    members = addresses.nodes(record.options["nodes"])
    mounts = [Mount(*mount) for mount in record.options["mounts"]]
    nodes = [Node(state, member, directory) for member in members]

    if not record.ports:
        _prepare(state, record, members, mounts)
    with step(f"namespaces and containerd of {', '.join(node.name for node in nodes)}"):
        for node in nodes:
            node.hold(_network(state), mounts)
            node.start_containerd()
    api = _start_control_plane(state, record, parts, directory)
    with step(f"kubelet and kube-proxy of {', '.join(node.name for node in nodes)}"):
        for node in nodes:
            node.wait_for_containerd()
            node.start_kubelet()
    _import(nodes, [_pause_image(state), *images])
    control_plane.wait_for_nodes(state, api, len(nodes) + parts.kwok_nodes, blamed=f"{nodes[0].name}-kubelet")


def stop(state: State, *, keep_logs: bool = False) -> None:
    """End and remove everything of this name on the machine. The routes that isolate the cluster go last."""
    _require_root()
    cgroups = Cgroups(state.name)
    record = state.read()
    processes.end_all(lambda: cgroups.members() | processes.marked(state.directory))
    network = _network(state)
    network.remove_links()
    cgroups.remove()
    for directory in reversed(record.made_directories if record else []):
        with contextlib.suppress(OSError):  # another program uses it now
            Path(directory).rmdir()
    state.remove(keep_logs=keep_logs)
    network.remove_guard()


def lives(state: State) -> bool:
    """Whether any process of the cluster runs."""
    return bool(processes.marked(state.directory) or Cgroups(state.name).members())


def import_images(archives: Iterable[str | Path], *, state: State | None = None) -> None:
    """Import image archives into all nodes of a running cluster at once. The default cluster is the one in use."""
    _import(_running_nodes(state or State()), [Path(archive) for archive in archives])


def entering(node: str, argv: list[str], *, state: State | None = None) -> list[str]:
    """`argv` as a command in the mount and network namespaces of the node called `node`."""
    for each in _running_nodes(state or State()):
        if each.name == node:
            return each.entering(argv)
    raise ClusterError(f"the cluster has no node {node!r}")


def _running_nodes(state: State) -> list[Node]:
    record = state.read()
    if not record or record.provider != PROVIDER:
        raise ClusterError(f"no native cluster {state.name!r} runs: start it with `uellm cluster up`")
    directory = ensure({"ctr"}, directory=record.binaries)
    return [Node(state, member, directory) for member in addresses.nodes(record.options["nodes"])]


def _prepare(state: State, record: Record, members: list[NodeAddress], mounts: list[Mount]) -> None:
    """Create what the processes need: certificates, network, control groups, mount points."""
    record.ports = free_ports("api")
    record.made_directories = missing_directories(mount_points(mounts))
    # Recorded before it is done, so that a kill in between leaves nothing unrecorded.
    state.write(record)
    for directory in record.made_directories:
        Path(directory).mkdir(exist_ok=True)
    with step("certificates, network, control groups"):
        _network(state).create(members)
        Cgroups(state.name).create([SYSTEM, *(member.name for member in members)])
        server = members[0].address
        pki.write_cluster(
            state.pki,
            server=f"https://{server}:{API_PORT}",
            addresses=[LOOPBACK, server, SERVICE_ADDRESS],
            nodes=[member.name for member in members],
        )
        admin = (state.pki / "admin.kubeconfig").read_text()
        reached = pki.with_server(admin, f"https://{LOOPBACK}:{record.ports['api']}")
        pki.write_private(state.kubeconfig, reached.encode())


def missing_directories(paths: Iterable[str]) -> list[str]:
    """Those of `paths` and of their parents that do not exist, parents first."""
    missing: dict[str, None] = {}
    for path in map(Path, paths):
        for each in (*reversed(path.parents), path):
            if not each.exists():
                missing[str(each)] = None
    return list(missing)


def _start_control_plane(state: State, record: Record, parts: Parts, binaries: Path) -> Api:
    """Start the control plane in the first node's network namespace, and the forwarder from the host."""
    cgroups, network = Cgroups(state.name), _network(state)
    first = addresses.nodes(1)[0]

    def launch(name: str, argv: list[str]) -> None:
        command = cgroups.joining(network.entering(first.name, argv))
        processes.ensure(state, name, command, binaries=binaries)

    port = record.ports["api"]
    forwarder = [sys.executable, "-I", str(Path(forward.__file__)), str(port), first.address, str(API_PORT)]
    processes.ensure(state, "forwarder", cgroups.joining(forwarder), binaries=binaries)
    processes.wait_until(lambda: listens(port), state=state, names=["forwarder"], timeout_s=_FORWARDER_TIMEOUT_S)
    layout = ControlPlaneLayout(
        binaries=binaries,
        directory=state.directory,
        address=first.address,
        api_port=API_PORT,
        etcd_port=_ETCD_PORT,
        data_plane=True,
    )
    return control_plane.start(state, layout, parts, launch)


def _import(nodes: list[Node], archives: list[Path]) -> None:
    """Import each archive in turn into all nodes at once; the disk is the bottleneck."""
    with ThreadPoolExecutor(max_workers=len(nodes)) as pool:
        for archive in archives:
            with step(f"images of {archive.name} into {len(nodes)} nodes"):
                list(pool.map(lambda node, archive=archive: node.import_image(archive), nodes))


def _pause_image(state: State) -> Path:
    archive = state.directory / "pause.tar"
    write_pause_image(archive)
    return archive


def _network(state: State) -> Network:
    return Network(state.name, state.directory / "net")


def _require_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("a native cluster needs root: run it as root, or use `--control-plane-only`")
