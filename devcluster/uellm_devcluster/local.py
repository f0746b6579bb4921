"""Provider `control-plane-only`: a control plane on free loopback ports, for tests; no kubelet, no root needed."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from uellm_devcluster import control_plane, pki, processes
from uellm_devcluster.addresses import LOOPBACK, SERVICE_ADDRESS
from uellm_devcluster.binaries import ensure
from uellm_devcluster.components import ControlPlaneLayout
from uellm_devcluster.control_plane import Parts
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.state import Record, State, base_directory, clusters

PROVIDER = "control-plane-only"
_EPHEMERAL = "plane-"
# Below those that the kernel gives to whoever asks for any port, and below a cluster's node ports. A process begins at
# a place of its own and goes on from there: what it chose stays free until it is used.
_PORTS = range(20_000, 30_000)
_BEGIN = os.getpid() * 101 % len(_PORTS)
_ports: Iterator[int] = itertools.cycle((*_PORTS[_BEGIN:], *_PORTS[:_BEGIN]))


def check(state: State) -> None:
    """Every user may run a control plane."""


def start(state: State, record: Record, *, images: list[Path], tied: bool) -> None:
    """Start the parts of the cluster that do not run. `images` has no effect: there is no real node."""
    parts = Parts(**record.options)
    directory = ensure(parts.programs(), directory=record.binaries)
    if not record.ports:
        record.ports = free_ports("api", "etcd")
        state.write(record)
    layout = ControlPlaneLayout(
        binaries=directory,
        directory=state.directory,
        address=LOOPBACK,
        api_port=record.ports["api"],
        etcd_port=record.ports["etcd"],
        data_plane=False,
    )
    if not state.kubeconfig.exists():
        pki.write_cluster(state.pki, server=layout.server, addresses=[LOOPBACK, SERVICE_ADDRESS], nodes=[])
        (state.pki / "admin.kubeconfig").rename(state.kubeconfig)

    def launch(name: str, argv: list[str]) -> None:
        command = processes.tied_to_parent(argv) if tied else argv
        processes.ensure(state, name, command, binaries=directory)

    api = control_plane.start(state, layout, parts, launch)
    if parts.kwok_nodes:
        control_plane.wait_for_nodes(state, api, parts.kwok_nodes, blamed="kwok")


def stop(state: State, *, keep_logs: bool = False) -> None:
    """End the cluster's processes and remove its files. Harmless where there are none."""
    processes.end_all(lambda: processes.marked(state.directory))
    state.remove(keep_logs=keep_logs)


def lives(state: State) -> bool:
    """Whether any process of the cluster runs."""
    return bool(processes.marked(state.directory))


def listens(port: int) -> bool:
    """Whether something on loopback accepts connections at `port`."""
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def free_ports(*purposes: str) -> dict[str, int]:
    """A different free loopback port for each purpose."""
    return {purpose: free_port() for purpose in purposes}


def free_port() -> int:
    """A free loopback port. Nobody gets it who asks for any."""
    for port in itertools.islice(_ports, len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
    raise ClusterError(f"none of the ports {_PORTS.start} to {_PORTS.stop - 1} is free")


class ControlPlane:
    """A real API server for the duration of a `with` block. Several can run side by side; each starts in a few seconds.

        with ControlPlane(kwok_nodes=3) as plane:
            client = connect(kubeconfig=plane.kubeconfig)

    kwok's nodes are named kwok-0, kwok-1, ... and are Ready when the block begins. Give them GPUs by patching
    `status.capacity` and `status.allocatable`. Their pods become Running at once, with addresses in 127.244.0.0/16.
    Nobody answers there unless a test listens in a pod's place. Service endpoints are not maintained.

    All of it ends with the block, and also with the thread that entered the block, even if that is killed.
    """

    def __init__(
        self,
        *,
        kwok_nodes: int = 0,
        controller_manager: bool = True,
        scheduler: bool = True,
        binaries: str | Path | None = None,
    ) -> None:
        self._parts = Parts(controller_manager=controller_manager, scheduler=scheduler, kwok_nodes=kwok_nodes)
        self._binaries = str(binaries) if binaries else None
        self._state = State(f"{_EPHEMERAL}{os.getpid()}-{os.urandom(3).hex()}")
        self._held = ExitStack()

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self._state.kubeconfig

    def log(self, component: str) -> Path:
        """The log of `etcd`, `kube-apiserver`, `kube-controller-manager`, `kube-scheduler` or `kwok`."""
        return self._state.log(component)

    def __enter__(self) -> ControlPlane:
        sweep()
        with ExitStack() as undo:
            undo.enter_context(self._state.locked())
            undo.callback(stop, self._state)
            self._state.make()
            record = Record(PROVIDER, vars(self._parts).copy(), binaries=self._binaries)
            self._state.write(record)
            start(self._state, record, images=[], tied=True)
            record.phase = "running"
            self._state.write(record)
            self._held = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()


def sweep() -> None:
    """Remove the remains of ControlPlanes whose process was killed. A living one holds its lock, which ends with it."""
    for state in clusters(base_directory()):
        if not state.name.startswith(_EPHEMERAL):
            continue
        try:
            with state.locked():
                stop(state)
        except ClusterError:
            continue
