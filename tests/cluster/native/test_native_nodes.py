"""What runs on real nodes, and which failures they survive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

from uellm_devcluster import native


def test_pods_run_on_both_nodes_with_a_sidecar_each(web: Any) -> None:
    assert set(web.pods()) == {"node-1", "node-2"}
    for node, pod in web.pods().items():
        assert web.kubectl("logs", pod, "--container", "web").strip() == f"serving on {node}"
        document = json.loads(web.kubectl("get", "pod", pod, "--output=json"))
        assert "running" in document["status"]["initContainerStatuses"][0]["state"]


def test_a_service_leads_to_the_pods_of_both_nodes_from_either(web: Any) -> None:
    # A kubelet that another test has restarted calls its pods unready for a moment.
    web.until(web.serves)


def test_the_api_server_is_at_its_service_address(web: Any) -> None:
    for pod in web.pods().values():
        assert web.sh(pod, "/bin/busybox nc -w 5 10.96.0.1 443 < /dev/null && echo there") == "there"


def test_pods_reach_no_other_machine(web: Any) -> None:
    # 203.0.113.0/24 is reserved for documentation. No machine has these addresses, but packets to them would leave.
    for pod in web.pods().values():
        said = web.sh(pod, "/bin/busybox nc -w 5 203.0.113.1 80 < /dev/null 2>&1 || true")
        assert "unreachable" in said


def test_a_directory_of_the_host_is_in_every_node_and_cannot_be_written(web: Any, commands: Any) -> None:
    for node, pod in web.pods().items():
        assert web.sh(pod, "/bin/busybox cat /shown/greeting") == "hello from the host"
        touch = native.entering(node, ["touch", "/opt/uellm-test/shown/new"], state=commands.state)
        assert subprocess.run(touch, capture_output=True, check=False).returncode != 0


def test_the_kubelets_own_sockets_are_at_their_default_paths(web: Any, commands: Any) -> None:
    for node in web.pods():
        for path in ("device-plugins/kubelet.sock", "pod-resources/kubelet.sock"):
            test = ["test", "-S", f"/var/lib/kubelet/{path}"]
            subprocess.run(native.entering(node, test, state=commands.state), check=True)


def test_a_repeated_up_restarts_ended_parts(web: Any, commands: Any) -> None:
    before = {part["name"]: part["pid"] for part in commands.status()["components"]}
    victims = {"node-2-kubelet", "kube-controller-manager", "forwarder", "node-1-containerd", "kwok"}
    for victim in victims:
        os.kill(before[victim], signal.SIGKILL)
    web.until(lambda: not commands.status()["running"])
    commands(*web.up_arguments)
    after = {part["name"]: part["pid"] for part in commands.status()["components"]}
    assert commands.status()["running"]
    assert {name for name in before if before[name] != after[name]} == victims
    # Restore the cluster for the next tests.
    web.until(web.serves)


def test_up_with_other_options_says_what_differs(web: Any, commands: Any) -> None:
    said = commands("up", "--nodes", "3", expect=1).stderr
    assert "nodes: 2, asked 3" in said
    assert "uellm cluster down" in said


def test_a_second_native_cluster_is_refused_by_name(web: Any, commands: Any) -> None:
    assert "--name native-test" in commands("up", "--name", "another", expect=1).stderr
