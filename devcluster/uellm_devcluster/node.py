"""A native node: a process that holds its namespaces, with containerd, kubelet and kube-proxy inside them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from uellm_devcluster import nodefiles, processes
from uellm_devcluster.addresses import NodeAddress
from uellm_devcluster.cgroups import Cgroups
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.network import Network
from uellm_devcluster.nodefiles import Mount
from uellm_devcluster.state import State

_HOLD_TIMEOUT_S = 20.0
_CONTAINERD_TIMEOUT_S = 60.0


class Node:
    """One node of a native cluster. Every part can be started again after it has ended."""

    def __init__(self, state: State, address: NodeAddress, binaries: Path) -> None:
        self.address = address
        self.name = address.name
        self.directory = state.directory / self.name
        self._state = state
        self._binaries = binaries
        self._cgroups = Cgroups(state.name)

    def hold(self, network: Network, mounts: list[Mount]) -> None:
        """Start the process that holds the node's mount and network namespaces."""
        name = f"{self.name}-namespaces"
        if processes.pid_of(self._state, name):
            return
        if self.directory.exists():
            raise ClusterError(
                f"the namespaces of {self.name} have ended, and its pods with them: `uellm cluster down`, then `up`"
            )
        self._write_files()
        entered = self.directory / "entered"
        script = nodefiles.hold_script(self.directory, mounts, entered)
        argv = network.entering(self.name, ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script])
        processes.ensure(self._state, name, self._cgroups.joining(argv), binaries=self._binaries)
        processes.wait_until(entered.exists, state=self._state, names=[name], timeout_s=_HOLD_TIMEOUT_S)

    def start_containerd(self) -> None:
        """Start containerd."""
        config = self.directory / "etc/containerd.toml"
        self._ensure("containerd", [str(self._binaries / "containerd"), "--config", str(config)])

    def wait_for_containerd(self) -> None:
        """Wait until containerd answers. A kubelet that does not find it exits."""
        processes.wait_until(
            self._containerd_answers,
            state=self._state,
            names=[f"{self.name}-containerd"],
            timeout_s=_CONTAINERD_TIMEOUT_S,
        )

    def start_kubelet(self) -> None:
        """Start the kubelet and kube-proxy. The node becomes Ready a little later."""
        self._ensure(
            "kubelet",
            nodefiles.kubelet_argv(
                self._binaries,
                self.address,
                config=self.directory / "etc/kubelet.yaml",
                kubeconfig=self._state.pki / f"{self.name}.kubeconfig",
            ),
        )
        kubeconfig = self._state.pki / "proxy.kubeconfig"
        self._ensure("kube-proxy", nodefiles.kube_proxy_argv(self._binaries, self.address, kubeconfig=kubeconfig))

    def entering(self, argv: list[str]) -> list[str]:
        """`argv` as a command in the node's namespaces."""
        pid = processes.pid_of(self._state, f"{self.name}-namespaces")
        if not pid:
            raise ClusterError(f"{self.name} does not run: start it with `uellm cluster up`")
        return ["nsenter", f"--target={pid}", "--mount", "--net", "--", *argv]

    def import_image(self, archive: Path) -> None:
        """Import an image archive into the node's containerd."""
        argv = self.entering([str(self._binaries / "ctr"), "--namespace", "k8s.io", "images", "import", "-"])
        # Passed as standard input: the file need not be visible in the node.
        with archive.open("rb") as given:
            done = subprocess.run(argv, stdin=given, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise ClusterError(f"{self.name} cannot import the images of {archive}: {last}")

    def _ensure(self, part: str, argv: list[str]) -> None:
        command = self._cgroups.joining(self.entering(argv))
        processes.ensure(self._state, f"{self.name}-{part}", command, binaries=self._binaries)

    def _containerd_answers(self) -> bool:
        argv = self.entering([str(self._binaries / "ctr"), "--connect-timeout", "1s", "version"])
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    def _write_files(self) -> None:
        for part in nodefiles.OWN_DIRECTORIES.values():
            (self.directory / part).mkdir(parents=True)
        (self.directory / "settings").mkdir()
        etc = self.directory / "etc"
        etc.mkdir()
        resolver = etc / "resolv.conf"
        resolver.write_text("nameserver 127.0.0.1\n")
        (self.directory / "cni/conf/10-uellm.conflist").write_text(nodefiles.network_config(self.address))
        (etc / "containerd.toml").write_text(nodefiles.containerd_config(snapshotter=_snapshotter(self.directory)))
        (etc / "kubelet.yaml").write_text(
            nodefiles.kubelet_config(
                cgroup_root=self._cgroups.group(self.name), authority=self._state.pki / "ca.crt", resolver=resolver
            )
        )


def _snapshotter(directory: Path) -> str:
    """How containerd stacks layers: overlayfs, or plain copies where the directory itself is on overlayfs.

    That is the case in a container, and the kernel refuses to stack overlayfs on itself.
    """
    done = subprocess.run(["stat", "--file-system", "--format=%T", str(directory)], capture_output=True, text=True)
    return "native" if done.stdout.strip() == "overlayfs" else "overlayfs"
