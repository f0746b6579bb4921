"""The control plane of every cluster that this package creates itself: etcd, API server, controllers, kwok's nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uellm_devcluster import components, kwok
from uellm_devcluster.addresses import KWOK_LOOPBACK_PODS, KWOK_PODS
from uellm_devcluster.api import Api, unready_nodes
from uellm_devcluster.components import ControlPlaneLayout
from uellm_devcluster.processes import components as components_of
from uellm_devcluster.processes import wait_until
from uellm_devcluster.progress import step
from uellm_devcluster.state import State

_API_TIMEOUT_S = 90.0
_CONTROLLERS_TIMEOUT_S = 60.0
_NODES_TIMEOUT_S = 90.0

# Starts a component in its namespace and control group, unless it runs already.
Launch = Callable[[str, list[str]], None]


@dataclass(frozen=True)
class Parts:
    """The components that run beside etcd and the API server."""

    controller_manager: bool = True
    scheduler: bool = True
    kwok_nodes: int = 0

    def programs(self) -> set[str]:
        """The programs that all of this needs."""
        optional = {
            "kube-controller-manager": self.controller_manager,
            "kube-scheduler": self.scheduler,
            "kwok": self.kwok_nodes > 0,
        }
        return {"etcd", "kube-apiserver"} | {name for name, wanted in optional.items() if wanted}


def start(state: State, layout: ControlPlaneLayout, parts: Parts, launch: Launch) -> Api:
    """Start the components that do not run, wait until the API server is ready, and return a client of it."""
    api = Api(state.kubeconfig)
    with step("control plane: etcd and kube-apiserver"):
        launch("etcd", components.etcd(layout))
        launch("kube-apiserver", components.apiserver(layout))
        wait_until(api.ready, state=state, names=["kube-apiserver", "etcd"], timeout_s=_API_TIMEOUT_S)
    with step("controllers"):
        if parts.scheduler:
            launch("kube-scheduler", components.scheduler(layout))
        if parts.kwok_nodes:
            _start_kwok(state, layout, launch)
            kwok.create_nodes(api, parts.kwok_nodes, tainted=layout.data_plane)
        if parts.controller_manager:
            launch("kube-controller-manager", components.controller_manager(layout))
            wait_until(
                # Without this account, which the controller manager creates, no pod is admitted.
                lambda: bool(api.list("/api/v1/namespaces/default/serviceaccounts")),
                state=state,
                names=["kube-controller-manager"],
                timeout_s=_CONTROLLERS_TIMEOUT_S,
            )
    return api


def _start_kwok(state: State, layout: ControlPlaneLayout, launch: Launch) -> None:
    stages = state.directory / "kwok-stages.yaml"
    kwok.write_stages(stages)
    kubeconfig = state.pki / "kwok.kubeconfig"
    pods = KWOK_PODS if layout.data_plane else KWOK_LOOPBACK_PODS
    launch("kwok", components.kwok(layout.binaries, kubeconfig=kubeconfig, stages=stages, pods=pods))


def wait_for_nodes(state: State, api: Api, count: int, *, blamed: str) -> None:
    """Wait until `count` nodes exist and all are Ready. `blamed` is the component whose log explains a failure."""

    def all_ready() -> bool:
        nodes = api.list("/api/v1/nodes")
        return len(nodes) >= count and not unready_nodes(nodes)

    with step(f"nodes: waiting until all {count} are Ready"):
        names = [blamed, *components_of(state)]
        wait_until(all_ready, state=state, names=names, timeout_s=_NODES_TIMEOUT_S)
