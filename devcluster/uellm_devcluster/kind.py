"""Provider `kind`: nodes as Docker containers, created by `kind` from the checkout's kind-config.yaml."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from uellm_devcluster import addresses, components, kwok, processes
from uellm_devcluster.api import Api
from uellm_devcluster.binaries import ensure
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.progress import step
from uellm_devcluster.state import Record, State

PROVIDER = "kind"
CONFIG = Path(__file__).resolve().parents[2] / "kind-config.yaml"
# Runs a command and returns its standard output; raises ClusterError when it fails.
Runner = Callable[[list[str]], str]


def run(argv: list[str]) -> str:
    """Run `kind ...`."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ClusterError(f"`{argv[0]}` is not on PATH, but this cluster was made with it: install it again") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ClusterError(f"`{' '.join(argv[:3])}` failed: {last}")
    return done.stdout


def check(state: State) -> None:
    """`kind` must be installed. It reports Docker's problems itself."""
    if not shutil.which("kind"):
        raise ClusterError("`kind` is not on PATH: install it (kind.sigs.k8s.io), or use another `--provider`")


def start(state: State, record: Record, *, images: list[Path], tied: bool, runner: Runner = run) -> None:
    """Create the cluster if it does not exist. `tied` has no effect: Docker runs the nodes."""
    if not lives(state, runner=runner):
        config = state.directory / "kind-config.yaml"
        config.write_text(yaml.safe_dump(node_config(yaml.safe_load(CONFIG.read_text()), record.options)))
        with step(f"kind: {record.options['nodes']} nodes"):
            runner(create_command(state, config))
    for archive in images:
        with step(f"images of {archive.name}"):
            runner(["kind", "load", "image-archive", str(archive), "--name", state.name])
    if record.options["kwok_nodes"]:
        _start_kwok(state, record.options["kwok_nodes"], record.binaries)


def stop(state: State, *, keep_logs: bool = False, runner: Runner = run) -> None:
    """Delete the cluster and the processes beside it. Harmless where there are none."""
    processes.end_all(lambda: processes.marked(state.directory))
    runner(["kind", "delete", "cluster", "--name", state.name, "--kubeconfig", str(state.kubeconfig)])
    state.remove(keep_logs=keep_logs)


def lives(state: State, *, runner: Runner = run) -> bool:
    """Whether kind lists the cluster."""
    return state.name in runner(["kind", "get", "clusters"]).split()


def create_command(state: State, config: Path) -> list[str]:
    """The command that creates the cluster and waits until its control plane is ready."""
    return [
        *("kind", "create", "cluster", "--name", state.name, "--config", str(config)),
        *("--kubeconfig", str(state.kubeconfig), "--wait", "120s"),
    ]


def node_config(template: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """kind-config.yaml with the given number of workers, named node-1, node-2, ..., each with the given mounts."""
    control_planes = [node for node in template["nodes"] if node["role"] == "control-plane"]
    mounts = [{"hostPath": host, "containerPath": node, "readOnly": True} for host, node in options["mounts"]]
    workers = []
    for member in addresses.nodes(options["nodes"]):
        name = yaml.safe_dump({"kind": "JoinConfiguration", "nodeRegistration": {"name": member.name}})
        workers.append({"role": "worker", "kubeadmConfigPatches": [name], "extraMounts": mounts})
    return {**template, "nodes": [*control_planes, *workers]}


def _start_kwok(state: State, count: int, binaries: str | None) -> None:
    directory = ensure({"kwok"}, directory=binaries)
    stages = state.directory / "kwok-stages.yaml"
    kwok.write_stages(stages)
    pods = addresses.KWOK_LOOPBACK_PODS
    argv = components.kwok(directory, kubeconfig=state.kubeconfig, stages=stages, pods=pods)
    processes.ensure(state, "kwok", argv, binaries=directory)
    kwok.create_nodes(Api(state.kubeconfig), count, tainted=True)
