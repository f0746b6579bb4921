from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from uellm_devcluster import kind
from uellm_devcluster.state import Record, State


class Kind:
    """Stands in for the program: records its commands and the clusters that exist."""

    def __init__(self, *clusters: str) -> None:
        self.clusters = list(clusters)
        self.calls: list[list[str]] = []

    def __call__(self, argv: list[str]) -> str:
        self.calls.append(argv)
        return "\n".join(self.clusters) if argv[1:3] == ["get", "clusters"] else ""


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State("demo", base=tmp_path)
    made.make()
    return made


def record(**options: object) -> Record:
    return Record("kind", {"nodes": 2, "kwok_nodes": 0, "mounts": [], **options})


def test_the_checkouts_configuration_names_the_nodes_as_the_generated_one_does() -> None:
    written = yaml.safe_load(kind.CONFIG.read_text())
    generated = kind.node_config(written, {"nodes": 2, "mounts": []})
    names = [
        [yaml.safe_load(patch)["nodeRegistration"]["name"] for patch in node.get("kubeadmConfigPatches", [])]
        for config in (written, generated)
        for node in config["nodes"]
    ]
    assert names == [[], ["node-1"], ["node-2"]] * 2


def test_mounts_are_read_only_and_in_every_worker() -> None:
    config = kind.node_config({"nodes": [{"role": "control-plane"}]}, {"nodes": 3, "mounts": [["/here", "/there"]]})
    workers = [node for node in config["nodes"] if node["role"] == "worker"]
    assert len(workers) == 3
    mount = {"hostPath": "/here", "containerPath": "/there", "readOnly": True}
    assert all(worker["extraMounts"] == [mount] for worker in workers)


def test_a_cluster_is_created_with_our_kubeconfig_and_gets_the_images(state: State) -> None:
    program = Kind()
    kind.start(state, record(), images=[Path("/images/a.tar")], tied=False, runner=program)
    created = program.calls[1]
    assert created[:5] == ["kind", "create", "cluster", "--name", "demo"]
    assert created[created.index("--kubeconfig") + 1] == str(state.kubeconfig)
    assert program.calls[-1] == ["kind", "load", "image-archive", "/images/a.tar", "--name", "demo"]


def test_a_cluster_that_is_there_is_not_created_again(state: State) -> None:
    program = Kind("demo", "another")
    kind.start(state, record(), images=[], tied=False, runner=program)
    assert program.calls == [["kind", "get", "clusters"]]
    assert kind.lives(state, runner=program)
    assert not kind.lives(State("third", base=state.directory.parent), runner=program)


def test_down_deletes_the_cluster_and_its_files(state: State) -> None:
    program = Kind("demo")
    kind.stop(state, runner=program)
    assert program.calls[0][:5] == ["kind", "delete", "cluster", "--name", "demo"]
    assert not state.directory.exists()
