from __future__ import annotations

from uellm.reconcile.pods.engine_readiness import engine_readiness, unschedulable_since

REVISION = "0123456789"


def container(name="engine", *, restarts=0, ready=False, **states):
    return {"name": name, "image": f"{name}:1", "restartCount": restarts, "ready": ready, **states}


def crashed(restarts, *, message="uellm launcher: NoFit: no device holds layer 3", code=1, reason="Error"):
    ended = {"terminated": {"exitCode": code, "reason": reason, "message": f"loading\n{message}\n\n"}}
    return container(restarts=restarts, state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ended)


def state(make, *pods, replicas=1, **deployment):
    return engine_readiness(make.deployment(replicas, **deployment), pods, replicas)


def test_a_rolled_out_deployment_is_ready(make):
    assert state(make, make.pod(), ready=1)[:2] == (True, "Ready")


def test_a_deployment_whose_controller_lags_behind_is_not_ready(make):
    assert not state(make, make.pod(), ready=1, observed=False).ready


def test_a_change_of_the_strategy_alone_does_not_make_a_service_unready(make):
    pod = make.pod()
    pod["metadata"]["labels"]["uellm.io/revision"] = REVISION
    assert state(make, pod, ready=1, observed=False).ready
    assert not state(make, pod, ready=1, observed=False, revision="9876543210").ready


def test_a_pod_without_a_node_reports_the_schedulers_message(make):
    unschedulable = state(make, make.unschedulable())
    assert (unschedulable.ready, unschedulable.reason, unschedulable.stalled) == (False, "Unschedulable", False)
    assert "2 Insufficient nvidia.com/gpu" in unschedulable.message


def test_a_pod_that_no_scheduler_has_seen_names_the_scheduler_it_waits_for(make):
    starting = state(make, make.pod(node=None))
    assert starting.reason == "EngineStarting"
    assert "'uellm-scheduler'" in starting.message


def test_a_crashed_engine_reports_its_last_line(make):
    failing = state(make, make.pod(containerStatuses=[crashed(1)]))
    assert failing.reason == "EngineFailing"
    assert failing.message.endswith("uellm launcher: NoFit: no device holds layer 3")
    assert not failing.stalled


def test_the_cause_that_the_engines_parent_found_is_reported_instead_of_the_last_line(make):
    engine = crashed(1)
    engine["lastState"]["terminated"]["message"] = (
        "uellm launcher: EngineFailed: ValueError: Free memory on device is less\n\nmore\nresource_tracker: leaked\n"
    )
    failing = state(make, make.pod(containerStatuses=[engine]))
    assert failing.message.endswith("1 restarts so far: ValueError: Free memory on device is less")


def test_an_engine_that_is_too_old_is_named_by_its_image_and_stalled_at_once(make):
    engine = crashed(1)
    engine["lastState"]["terminated"]["message"] = "uellm launcher: EngineTooOld: vLLM 0.9.1 does not know --x\n"
    failing = state(make, make.pod(containerStatuses=[engine]))
    assert (failing.reason, failing.stalled) == ("EngineTooOld", True)
    assert failing.message.endswith("image engine:1: vLLM 0.9.1 does not know --x")


def test_a_crash_loop_is_stalled_after_three_restarts(make):
    assert not state(make, make.pod(containerStatuses=[crashed(2)])).stalled
    assert state(make, make.pod(containerStatuses=[crashed(3)])).stalled


def test_the_reason_stays_while_a_crashed_engine_starts_again(make):
    again = crashed(2) | {"state": {"running": {}}}
    assert state(make, make.pod(containerStatuses=[again])).reason == "EngineFailing"


def test_a_killed_engine_reports_the_reason(make):
    assert "OOMKilled" in state(make, make.pod(containerStatuses=[crashed(1, code=137, reason="OOMKilled")])).message


def test_a_failing_init_container_is_a_failing_engine(make):
    launcher = crashed(1) | {"name": "launcher"}
    assert "container launcher" in state(make, make.pod(initContainerStatuses=[launcher])).message


def test_an_image_that_cannot_be_pulled_has_one_reason_in_all_phases(make):
    for reason in ("ErrImagePull", "ImagePullBackOff"):
        waiting = container(state={"waiting": {"reason": reason, "message": "not found"}})
        assert state(make, make.pod(containerStatuses=[waiting])).reason == "ImageUnavailable"


def test_a_container_that_cannot_be_created_is_reported(make):
    waiting = container(state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}})
    refused = state(make, make.pod(containerStatuses=[waiting]))
    assert refused.reason == "ContainerRefused"
    assert 'secret "hf" not found' in refused.message


def test_the_worst_pod_decides(make):
    pods = [make.unschedulable("a"), make.pod("b", containerStatuses=[crashed(1)]), make.pod("c")]
    assert state(make, *pods, replicas=3).reason == "EngineFailing"


def test_a_completed_init_container_is_not_a_failure(make):
    done = container("launcher", state={"terminated": {"exitCode": 0}})
    running = container(state={"running": {}})
    starting = state(make, make.pod(initContainerStatuses=[done], containerStatuses=[running]))
    assert starting.reason == "EngineStarting"
    assert "loads the model" in starting.message


def test_refused_pods_are_reported(make):
    deployment = make.deployment()
    deployment["status"]["conditions"] = [
        {"type": "ReplicaFailure", "status": "True", "message": 'pods "x" is forbidden: violates PodSecurity'}
    ]
    refused = engine_readiness(deployment, [], 1)
    assert (refused.reason, refused.stalled) == ("PodsRefused", True)


def test_terminating_pods_are_a_rollout(make):
    old = make.pod("old")
    old["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert state(make, old, make.pod("new")).reason == "RollingOut"


def test_a_scheduled_pod_is_not_unschedulable(make):
    assert unschedulable_since(make.pod()) is None
    assert unschedulable_since(make.unschedulable(since="2026-01-01T00:00:00Z")) == "2026-01-01T00:00:00Z"
