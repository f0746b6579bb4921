from __future__ import annotations

import ipaddress
import json
import tomllib
from pathlib import Path

import yaml

from uellm_devcluster import components, kwok, nodefiles, pki
from uellm_devcluster.addresses import (
    KWOK_PODS,
    MAX_NODES,
    POD_RANGE,
    RANGES,
    SERVICE_ADDRESS,
    NodeAddress,
    nodes,
)
from uellm_devcluster.components import ControlPlaneLayout
from uellm_devcluster.nodefiles import Mount


def layout(*, data_plane: bool) -> ControlPlaneLayout:
    return ControlPlaneLayout(
        binaries=Path("/bin"),
        directory=Path("/state"),
        address="10.243.0.11",
        api_port=6443,
        etcd_port=2379,
        data_plane=data_plane,
    )


def test_addresses_follow_from_the_nodes_number() -> None:
    first, second = nodes(2)
    assert (first.name, first.address, first.pods) == ("node-1", "10.243.0.11", "10.244.1.0/24")
    assert (second.name, second.address, second.pods) == ("node-2", "10.243.0.12", "10.244.2.0/24")
    assert SERVICE_ADDRESS == "10.96.0.1"


def test_no_two_ranges_overlap() -> None:
    pods = [ipaddress.ip_network(node.pods) for node in nodes(MAX_NODES)] + [ipaddress.ip_network(KWOK_PODS)]
    assert all(each.subnet_of(POD_RANGE) for each in pods)
    assert not any(a.overlaps(b) for i, a in enumerate(pods) for b in pods[:i])
    assert not any(a.overlaps(b) for i, a in enumerate(RANGES) for b in RANGES[:i])


def test_containerd_has_the_pause_image_and_writes_nowhere_else() -> None:
    config = tomllib.loads(nodefiles.containerd_config(snapshotter="overlayfs"))
    plugins = config["plugins"]
    assert plugins["io.containerd.cri.v1.images"]["pinned_images"]["sandbox"] == "uellm.local/pause:1"
    assert plugins["io.containerd.cri.v1.runtime"]["restrict_oom_score_adj"] is True
    assert plugins["io.containerd.nri.v1.nri"]["disable"] is True
    assert plugins["io.containerd.internal.v1.opt"]["path"].startswith("/var/lib/containerd/")


def test_each_nodes_pods_have_its_range() -> None:
    config = json.loads(nodefiles.network_config(NodeAddress(2)))
    assert config["plugins"][0]["ipam"]["ranges"] == [[{"subnet": "10.244.2.0/24"}]]


def test_the_kubelet_keeps_to_its_control_group_and_takes_cgroup_v1() -> None:
    text = nodefiles.kubelet_config(
        cgroup_root="/uellm-x/node-1", authority=Path("/state/ca.crt"), resolver=Path("/state/resolv.conf")
    )
    config = yaml.safe_load(text)
    assert config["cgroupRoot"] == "/uellm-x/node-1"
    assert config["failCgroupV1"] is False
    assert config["authentication"]["anonymous"] == {"enabled": False}


def test_a_node_mounts_after_it_is_cut_off_from_the_host_and_says_when_it_is_done() -> None:
    mounts = [Mount("/data/my models", "/models")]
    lines = nodefiles.hold_script(Path("/state/node-1"), mounts, Path("/state/node-1/entered")).splitlines()
    private, shared = lines.index("mount --make-rprivate /"), lines.index("mount --make-rshared /")
    mounted = [index for index, line in enumerate(lines) if line.startswith(("mount --bind", "mount -t"))]
    assert private < min(mounted) <= max(mounted) < shared
    assert "mount --bind -o ro '/data/my models' /models" in lines
    assert lines[-2:] == [": > /state/node-1/entered", "exec sleep infinity"]


def test_every_path_a_node_mounts_over_is_known_beforehand() -> None:
    mounts = [Mount("/data", "/models")]
    script = nodefiles.hold_script(Path("/state/node-1"), mounts, Path("/e"))
    targets = {line.split()[-1] for line in script.splitlines() if line.startswith(("mount --bind", "mount -t"))}
    assert targets - set(nodefiles.KERNEL_SETTINGS) == set(nodefiles.mount_points(mounts))


def test_without_a_data_plane_nobody_keeps_endpoints() -> None:
    assert "--endpoint-reconciler-type=none" in components.apiserver(layout(data_plane=False))
    assert "--endpoint-reconciler-type=lease" in components.apiserver(layout(data_plane=True))
    switched_off = "--controllers=*,-endpoints-controller,-endpointslice-controller"
    assert switched_off in components.controller_manager(layout(data_plane=False))
    assert "--controllers=*" in components.controller_manager(layout(data_plane=True))


def test_servers_of_further_apis_believe_the_api_server_and_nobody_else() -> None:
    argv = components.apiserver(layout(data_plane=False))
    (certificate,) = (word.partition("=")[2] for word in argv if word.startswith("--proxy-client-cert-file"))
    assert f"--kubelet-client-certificate={certificate}" in argv
    assert f"--requestheader-allowed-names={pki.KUBELET_CLIENT}" in argv


def test_nothing_of_the_control_plane_listens_beyond_its_address() -> None:
    local = {"127.0.0.1", "10.243.0.11"}
    for argv in (components.etcd(layout(data_plane=True)), components.apiserver(layout(data_plane=True))):
        for word in argv:
            flag, _, value = word.partition("=")
            if ("address" in flag and "types" not in flag) or "urls" in flag:
                assert any(address in value for address in local), word


def test_kwoks_stages_are_one_file_of_several_documents(tmp_path: Path) -> None:
    kwok.write_stages(tmp_path / "stages.yaml")
    documents = list(yaml.safe_load_all((tmp_path / "stages.yaml").read_text()))
    assert {document["kind"] for document in documents} == {"Stage"}
    assert len(documents) == 5


def test_simulated_nodes_are_tainted_beside_real_ones() -> None:
    assert kwok.node(3, tainted=True)["spec"]["taints"][0]["effect"] == "NoSchedule"
    alone = kwok.node(3, tainted=False)
    assert alone["spec"] == {}
    assert alone["metadata"]["name"] == "kwok-3"
