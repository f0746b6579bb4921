"""Clusters by name, for every provider: up, down, status."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from uellm_devcluster import kind, local, native, processes
from uellm_devcluster.api import Api, node_is_ready
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.progress import say
from uellm_devcluster.provider import Provider
from uellm_devcluster.state import Record, State

PROVIDERS: Mapping[str, Provider] = {module.PROVIDER: module for module in (native, kind, local)}


def choose_provider() -> str:
    """The provider that `auto` selects here: kind where Docker answers, else native for root."""
    if shutil.which("kind") and _docker_answers():
        return kind.PROVIDER
    if os.geteuid() == 0:
        return native.PROVIDER
    raise ClusterError(
        "nodes need root, or Docker and kind, and this machine offers neither: run it as root, "
        "install Docker and kind, or use `--control-plane-only`, which needs none"
    )


def up(
    *,
    name: str | None = None,
    provider: str = "auto",
    nodes: int = 2,
    kwok: int = 0,
    mounts: Iterable[tuple[str, str]] = (),
    images: Iterable[str | Path] = (),
    binaries: str | Path | None = None,
    tied: bool = False,
) -> State:
    """Start the cluster, or the parts of it that have ended; return its directory.

    `provider` is `auto`, `native`, `kind` or `control-plane-only` (which has only `kwok` nodes). `mounts` are pairs of
    a directory on this machine and the path at which every node shows it, read-only. `images` are archives for the
    nodes. `tied` ends a control plane without nodes together with the calling thread. A start that fails or is
    interrupted removes everything except its logs. Raises ClusterError.
    """
    state = State(name)
    chosen = choose_provider() if provider == "auto" else provider
    options: dict[str, Any] = {"kwok_nodes": kwok}
    if chosen != local.PROVIDER:
        options |= {"nodes": nodes, "mounts": [list(mount) for mount in mounts]}
    asked = Record(chosen, options, binaries=str(binaries) if binaries else None)
    archives = [Path(image) for image in images]
    PROVIDERS[chosen].check(state)
    with state.locked():
        running = state.read()
        if running and _lives(state, running):
            _check_same(state, running, asked)
            say(f"cluster {state.name!r} runs already")
            PROVIDERS[chosen].start(state, running, images=archives, tied=tied)
        else:
            _start_afresh(state, running, asked, archives, tied=tied)
    return state


def _start_afresh(state: State, left: Record | None, asked: Record, archives: list[Path], *, tied: bool) -> None:
    if left:
        say(f"cluster {state.name!r} was not started or ended completely: removing its remains")
    _stop(state, left or asked)
    try:
        state.make()
        state.write(asked)
        PROVIDERS[asked.provider].start(state, asked, images=archives, tied=tied)
        asked.phase = "running"
        state.write(asked)
    except BaseException:
        _stop(state, asked, keep_logs=True)
        raise


def down(name: str | None = None) -> bool:
    """End the cluster and remove all of it; return whether it existed. Harmless where it does not."""
    local.sweep()
    state = State(name)
    with state.locked():
        record = state.read()
        _stop(state, record)
    return record is not None


def kubeconfig(name: str | None = None) -> Path:
    """The administrator's kubeconfig of a running cluster. Raises ClusterError where none runs."""
    state = State(name)
    record = state.read()
    if not record or record.phase != "running":
        raise ClusterError(f"cluster {state.name!r} does not run: start it with `uellm cluster up`")
    return state.kubeconfig


def status(name: str | None = None) -> dict[str, Any]:
    """What runs: {name, provider, running, kubeconfig, components: [{name, pid}], nodes: [{name, ready, address}]}."""
    state = State(name)
    record = state.read()
    if not record:
        return {"name": state.name, "provider": "", "running": False, "kubeconfig": "", "components": [], "nodes": []}
    parts = [{"name": part, "pid": processes.pid_of(state, part)} for part in processes.components(state)]
    nodes = _nodes(state)
    return {
        "name": state.name,
        "provider": record.provider,
        "running": record.phase == "running" and nodes is not None and all(part["pid"] for part in parts),
        "kubeconfig": str(state.kubeconfig),
        "components": parts,
        "nodes": nodes or [],
    }


def _nodes(state: State) -> list[dict[str, Any]] | None:
    """The cluster's nodes, or None where no API server answers."""
    try:
        nodes = Api(state.kubeconfig).list("/api/v1/nodes")
    except (ClusterError, OSError):
        return None
    return [
        {
            "name": node["metadata"]["name"],
            "ready": node_is_ready(node),
            "address": next(
                (each["address"] for each in node["status"].get("addresses", []) if each["type"] == "InternalIP"), ""
            ),
        }
        for node in nodes
    ]


def _lives(state: State, record: Record) -> bool:
    if record.phase != "running" or record.provider not in PROVIDERS:
        return False
    return bool(PROVIDERS[record.provider].lives(state))


def _check_same(state: State, running: Record, asked: Record) -> None:
    if (running.provider, running.options) == (asked.provider, asked.options):
        return
    differences = [
        f"{key}: {running.options.get(key)!r}, asked {value!r}"
        for key, value in asked.options.items()
        if running.options.get(key) != value
    ]
    if running.provider != asked.provider:
        differences = [f"provider: {running.provider}, asked {asked.provider}"]
    raise ClusterError(
        f"cluster {state.name!r} runs with other options ({'; '.join(differences)}): end it first with "
        "`uellm cluster down`, or give the other one a `--name`"
    )


def _stop(state: State, record: Record | None, *, keep_logs: bool = False) -> None:
    """End whatever exists under this name. Where there is no record, it is found by the name."""
    guess = native.PROVIDER if os.geteuid() == 0 else local.PROVIDER
    known = record.provider if record and record.provider in PROVIDERS else guess
    PROVIDERS[known].stop(state, keep_logs=keep_logs)


def _docker_answers() -> bool:
    if not shutil.which("docker"):
        return False
    done = subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=30)
    return done.returncode == 0
