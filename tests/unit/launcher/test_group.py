"""The launchers of a replica that spans nodes, as processes that talk to each other."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess

import pytest

from helpers.group import ADDRESS, Group, group_plan
from uellm_devcluster.local import free_ports

pytestmark = pytest.mark.timeout(120)
ENDED_S = 30


@pytest.fixture
def group(tmp_path):
    made = Group(tmp_path, tuple(free_ports("agreement", "engines").values()))
    yield made
    made.end()


def flag(engine, name):
    argv = engine["argv"]
    return argv[argv.index(name) + 1]


def error(pod):
    assert pod.process.wait(ENDED_S) == 1
    return pod.report()["error"]


def assert_stays(pod):
    pod.until_refused()
    with pytest.raises(subprocess.TimeoutExpired):
        pod.process.wait(1)
    pod.process.terminate()
    pod.process.wait(ENDED_S)


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_both_engines_get_one_split_and_each_its_own_place(group):
    leader, worker = group.start(0, "GPU-a"), group.start(1, "GPU-c")
    engines = leader.engine(), worker.engine()
    for rank, engine in enumerate(engines):
        assert engine["env"]["VLLM_PP_LAYER_PARTITION"] == "5,3"
        assert engine["env"]["VLLM_HOST_IP"] == ADDRESS
        assert engine["env"]["GLOO_SOCKET_IFNAME"] == engine["env"]["NCCL_SOCKET_IFNAME"] == "lo"
        assert (flag(engine, "--nnodes"), flag(engine, "--node-rank")) == ("2", str(rank))
        assert (flag(engine, "--master-addr"), flag(engine, "--master-port")) == (ADDRESS, str(group.ports[1]))
    assert "--headless" in engines[1]["argv"]
    assert "--headless" not in engines[0]["argv"]


def test_the_flags_differ_in_nothing_but_the_rank(group):
    leader, worker = group.start(0, "GPU-a"), group.start(1, "GPU-c")
    ours, theirs = leader.engine()["argv"], worker.engine()["argv"]
    at = ours.index("--node-rank") + 1
    assert ours[:at] == theirs[:at]
    assert theirs[at:] == ["1", "--headless"]


def test_the_leaders_report_has_the_devices_of_all_in_rank_order(group):
    leader, worker = group.start(0, "GPU-a"), group.start(1, "GPU-c")
    leader.engine(), worker.engine()
    report = leader.report()
    assert [device["uuid"] for device in report["devices"]] == ["GPU-a", "GPU-c"]
    assert (report["layers"], report["pod"], report["node"]) == ([5, 3], "llama-engine-0", "node-1")


def test_the_parts_change_places_where_the_pods_are_on_each_others_nodes(group):
    # Five layers of 3 GiB each do not fit on 16 GiB.
    leader, worker = group.start(0, "GPU-c"), group.start(1, "GPU-a")
    assert leader.engine()["env"]["VLLM_PP_LAYER_PARTITION"] == "3,5"
    assert worker.engine()["env"]["VLLM_PP_LAYER_PARTITION"] == "3,5"


def test_gpus_that_cannot_hold_the_plan_are_refused_on_both_sides(group):
    leader, worker = group.start(0, "GPU-a"), group.start(1, "GPU-tiny")
    for pod in (leader, worker):
        found = error(pod)
        assert found["reason"] == "NoFit"
        assert "the GPUs of the group cannot hold the plan" in found["message"]


def test_another_number_of_gpus_than_planned_is_refused(group):
    leader, worker = group.start(0, "GPU-a"), group.start(1, "GPU-b,GPU-c")
    assert error(leader)["reason"] == "WrongDeviceCount"
    assert (
        "pod llama-engine-0-1 has 2 GPUs and each of the 2 pods of a replica is to have 1" in error(worker)["message"]
    )


def test_a_planted_different_partition_is_refused_with_its_sentence(group):
    other = group_plan(plan={**group_plan()["plan"], "layers": [4, 4]})
    leader, worker = group.start(0, "GPU-a"), group.start(1, "GPU-b", plan=other)
    for pod in (leader, worker):
        found = error(pod)
        assert found["reason"] == "GroupDiffers"
        assert found["message"].startswith("pod llama-engine-0-1 on node node-2 runs the plan ")
        assert "a rollout has mixed them: delete the older pod" in found["message"]


def test_refused_pods_stay_a_while_before_the_group_is_made_anew(group):
    leader = group.start(0, "GPU-a", timeout_s=600)
    worker = group.start(1, "GPU-b", timeout_s=600, version="2.0")
    for pod in (leader, worker):
        assert_stays(pod)


def test_a_leader_stays_a_while_where_a_worker_refuses_its_part(group):
    leader = group.start(0, "GPU-a", timeout_s=600)
    group.start(1, "GPU-b", timeout_s=600, VLLM_API_KEY="secret")
    assert_stays(leader)


def test_a_leader_whose_port_is_taken_stays_a_while(group):
    with socket.create_server((ADDRESS, group.ports[0])):
        leader = group.start(0, "GPU-a", timeout_s=600)
        assert_stays(leader)
    assert leader.report()["error"]["reason"] == "GroupIncomplete"


def test_another_version_of_the_engine_is_refused(group):
    leader, worker = group.start(0, "GPU-a"), group.start(1, "GPU-b", version="2.0")
    for pod in (leader, worker):
        assert "on node node-2 has vLLM 2.0, and its leader" in error(pod)["message"]


def test_other_flags_than_the_leaders_are_refused(group):
    # The same plan and version, but the container's environment makes another command of them.
    leader, worker = group.start(0, "GPU-a"), group.start(1, "GPU-b", VLLM_API_KEY="secret")
    assert "VLLM_API_KEY" in error(worker)["message"]
    found = error(leader)
    assert found["reason"] == "GroupDiffers"
    assert "pod llama-engine-0-1 on node node-2 cannot start its part" in found["message"]


def test_a_leader_whose_workers_do_not_come_says_which(group):
    found = error(group.start(0, "GPU-a", timeout_s=1))
    assert found["reason"] == "GroupIncomplete"
    assert "1 pod of 2 of the group came within 1 s; missing: worker 1" in found["message"]


def test_a_worker_whose_leader_does_not_come_says_so(group):
    found = error(group.start(1, "GPU-b", timeout_s=1))
    assert found["reason"] == "GroupIncomplete"
    assert f"the leader at {ADDRESS} port {group.ports[0]} gave no placement within 1 s" in found["message"]


def test_a_worker_may_come_before_its_leader(group):
    worker = group.start(1, "GPU-b")
    leader = group.start(0, "GPU-a")
    assert flag(leader.engine(), "--node-rank") == "0"
    assert flag(worker.engine(), "--node-rank") == "1"


def test_a_pod_that_is_in_no_group_is_refused_a_plan_for_several_nodes(group):
    found = error(group.start(0, "GPU-a", LWS_GROUP_SIZE=""))
    assert found["reason"] == "NotInGroup"
    assert "LWS_GROUP_SIZE is not set" in found["message"]


def test_a_group_of_another_size_than_the_plan_is_refused(group):
    found = error(group.start(0, "GPU-a", size=3))
    assert found == {"reason": "GroupDiffers", "message": "the plan is for 2 nodes and the group has 3 pods"}


@pytest.mark.parametrize(
    "said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"[]\n", json.dumps({"version": 1, "leader": "other"}).encode() + b"\n"]
)
def test_strangers_are_turned_away_and_the_group_forms_all_the_same(group, said):
    leader = group.start(0, "GPU-a")
    stranger = _connected(group.ports[0])
    stranger.sendall(said)
    stranger.shutdown(socket.SHUT_WR)
    assert stranger.recv(1) == b""
    worker = group.start(1, "GPU-b")
    leader.engine(), worker.engine()
    stranger.close()


def _connected(port):
    while True:
        try:
            return socket.create_connection((ADDRESS, port), timeout=ENDED_S)
        except ConnectionRefusedError:
            continue


@pytest.mark.parametrize("survivor", ["leader", "worker"])
def test_where_one_launcher_is_killed_the_other_ends_its_engine(group, survivor):
    leader, worker = group.start(0, "GPU-a"), group.start(1, "GPU-b")
    left, lost = (leader, worker) if survivor == "leader" else (worker, leader)
    engine = left.engine()["pid"]
    lost_engine = lost.engine()["pid"]
    lost.process.kill()
    assert left.process.wait(ENDED_S) == 128 + signal.SIGTERM
    assert is_gone(engine)
    os.kill(lost_engine, signal.SIGKILL)


def test_an_engine_that_does_not_end_by_itself_is_killed(group):
    leader, worker = group.start(0, "GPU-a", IGNORES_SIGNALS="1"), group.start(1, "GPU-b")
    leader.engine()
    leader.read_until("IGNORING")
    os.kill(worker.engine()["pid"], signal.SIGKILL)
    assert leader.process.wait(ENDED_S) == 128 + signal.SIGKILL


def test_an_engine_that_fails_ends_the_engines_of_the_whole_group(group):
    leader, worker = group.start(0, "GPU-a"), group.start(1, "GPU-b")
    failing = leader.engine()["pid"]
    worker.engine()
    os.kill(failing, signal.SIGKILL)
    assert leader.process.wait(ENDED_S) == 128 + signal.SIGKILL
    assert worker.process.wait(ENDED_S) == 128 + signal.SIGTERM


def test_an_engine_that_ends_unasked_has_failed_whatever_it_says(group):
    leader, worker = group.start(0, "GPU-a"), group.start(1, "GPU-b")
    leader.engine()
    os.kill(worker.engine()["pid"], signal.SIGUSR2)
    assert worker.process.wait(ENDED_S) == 1
    assert leader.process.wait(ENDED_S) == 128 + signal.SIGTERM


def test_a_worker_that_is_to_end_waits_for_its_leader(group):
    leader, worker = group.start(0, "GPU-a"), group.start(1, "GPU-b")
    engine = worker.engine()["pid"]
    leader.engine()
    worker.process.send_signal(signal.SIGTERM)
    # A second signal, which is passed on, shows that the first was taken in.
    worker.process.send_signal(signal.SIGUSR1)
    leader.process.send_signal(signal.SIGTERM)
    assert leader.process.wait(ENDED_S) == 128 + signal.SIGTERM
    worker.process.wait(ENDED_S)
    assert is_gone(engine)
