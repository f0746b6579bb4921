from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest

from uellm.api import parse_service
from uellm.api.attainment_report import ClassMeasurement
from uellm.api.names import GROUP_INDEX_LABEL, GROUP_LABEL, WORKER_INDEX_LABEL
from uellm.planner.result import Predicted
from uellm.reconcile.download.download_state import NOT_BEGUN, NOT_NEEDED, downloading, refused, undecided
from uellm.reconcile.observe import Observed
from uellm.reconcile.obstacle import Obstacle
from uellm.reconcile.planning.choose import Choice
from uellm.reconcile.planning.plan_status import plan_status
from uellm.reconcile.pods.placements import ReportedPlacement
from uellm.reconcile.status.decide import decide

NOW = datetime(2026, 5, 1, tzinfo=UTC)
DEPLOYMENT = "Deployment"


@pytest.fixture
def observed(make):
    def build(document=None, *, deployment=None, pods=(), **fields):
        from uellm.kube.kinds import DEPLOYMENT

        document = document or make.service()
        revision = make.revision(Observed(document, None).spec_mark)
        if deployment is not None:
            fields["revisions"] = {revision.name: revision}
        children = {} if deployment is None else {DEPLOYMENT: deployment}
        return Observed(document, None, children=children, pods=tuple(pods), **fields)

    return build


def conditions(decision):
    return {entry["type"]: entry for entry in decision.status["conditions"]}


def decided(observed, choice, **more):
    return decide(observed, choice, **{"refusal": None, "now": NOW, **more})


def test_a_ready_service_is_ready_and_nothing_is_left_to_do(make, observed):
    decision = decided(observed(deployment=make.deployment(ready=1), pods=[make.pod()]), Choice(make.plan()))
    states = {name: (entry["status"], entry["reason"]) for name, entry in conditions(decision).items()}
    assert states == {
        "Ready": ("True", "Ready"),
        "Reconciling": ("False", "Ready"),
        "Stalled": ("False", "Ready"),
        "ModelAccessible": ("Unknown", "NotAsked"),
        "Planned": ("True", "Planned"),
        "SLOFeasible": ("Unknown", "NoPlan"),
        "PlacementVerified": ("Unknown", "NoReport"),
        "BetterPlan": ("False", "NoneKnown"),
    }


def test_the_status_has_a_one_line_summary(make, observed):
    status = decided(observed(deployment=make.deployment(ready=1), pods=[make.pod()]), Choice(make.plan())).status
    assert status["summary"] == {"ready": "1/1", "gpus": "2 = tp1 x pp2", "layers": "5,3", "nodes": "node-1"}
    assert status["observedGeneration"] == 1
    assert (status["replicas"], status["readyReplicas"]) == (1, 1)
    assert status["selector"] == "uellm.io/service=llama"
    assert status["endpoint"] == "http://llama.ns.svc/v1"
    assert status["plan"] == plan_status(make.plan())


def test_the_summary_of_a_replica_that_spans_nodes_is_of_all_its_pods(make, observed):
    plan = dataclasses.replace(make.plan(), nodes=("node-1", "node-2", "node-3"), nodes_per_replica=2)
    summary = decided(observed(), Choice(plan)).status["summary"]
    assert (summary["layers"], summary["nodes"]) == ("5,3", "node-1,node-2")
    leader = make.pod("llama-engine-0", node="node-3")
    worker = make.pod("llama-engine-0-1", node="node-1")
    for index, pod in enumerate((leader, worker)):
        pod["metadata"]["labels"] |= {
            GROUP_LABEL: "llama-engine",
            GROUP_INDEX_LABEL: "0",
            WORKER_INDEX_LABEL: str(index),
        }
    report = ReportedPlacement("0", plan.devices, (6, 2), 1, 2)
    seen = observed(pods=[leader, worker], reports={leader["metadata"]["uid"]: report})
    summary = decided(seen, Choice(plan)).status["summary"]
    assert (summary["layers"], summary["nodes"]) == ("6,2", "node-3,node-1")


@pytest.mark.parametrize(("ttft", "said"), [("1s", "feasible"), ("10ms", "infeasible")])
def test_the_summary_shows_whether_the_targets_can_be_met(make, observed, ttft, said):
    document = make.service(slo={"classes": [{"name": "chat", "ttft": ttft}]})
    plan = dataclasses.replace(make.plan(), predicted=Predicted(100, 400.0, 40.0, 2.0))
    seen = dataclasses.replace(observed(document), service=parse_service(document))
    assert decided(seen, Choice(plan)).status["summary"]["slo"] == said


def test_the_summary_shows_requested_and_needed_replicas(make, observed):
    document = make.service(
        slo={"classes": [{"name": "chat", "ttft": "1s"}]}, workload={"requestsPerSecond": "3"}, replicas=1
    )
    plan = dataclasses.replace(make.plan(), predicted=Predicted(100, 400.0, 40.0, 2.0), recommended_replicas=3)
    seen = dataclasses.replace(observed(document), service=parse_service(document))
    assert decided(seen, Choice(plan)).status["summary"]["slo"] == "infeasible (1 of 3 replicas)"
    measured = dataclasses.replace(seen, measurements={"a": (ClassMeasurement("chat", 10, 10, None, None),)})
    assert decided(measured, Choice(plan)).status["summary"]["slo"] == "100% (1 of 3 replicas)"


@pytest.mark.parametrize(
    ("reason", "stalled"),
    [
        ("NoFit", False),
        ("NoProfile", False),
        ("NeedsExactDevices", True),
        ("InvalidModel", True),
        ("Gated", True),
        ("RateLimited", False),
        ("Inspecting", False),
        ("InvalidOverride", True),
    ],
)
def test_without_a_plan_planned_and_ready_have_the_reason_and_only_permanent_ones_are_stalled(
    observed, reason, stalled
):
    found = conditions(decided(observed(), Choice(None, Obstacle(reason, "because"))))
    assert (found["Planned"]["status"], found["Planned"]["reason"]) == ("False", reason)
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("False", reason)
    assert found["Ready"]["message"] == "because"
    assert found["Stalled"]["status"] == str(stalled)
    assert found["Reconciling"]["status"] == str(not stalled)


def test_a_refused_template_has_a_plan_and_is_stalled(make, observed):
    refusal = Obstacle("InvalidTemplate", "spec.containers[0].image: Required value")
    found = conditions(decided(observed(), Choice(make.plan()), refusal=refusal))
    assert found["Planned"]["status"] == "True"
    assert (found["Ready"]["reason"], found["Stalled"]["status"]) == ("InvalidTemplate", "True")


def test_pods_that_serve_stay_ready_when_their_plan_can_no_longer_be_made(make, observed):
    document = make.service(status={"plan": plan_status(make.plan())})
    seen = observed(document, deployment=make.deployment(ready=1), pods=[make.pod()])
    decision = decided(seen, Choice(None, Obstacle("NoFit", "because")))
    found = conditions(decision)
    assert (found["Planned"]["status"], found["Ready"]["status"]) == ("False", "True")
    assert decision.status["plan"] == plan_status(make.plan())


def test_an_impossible_change_of_the_spec_is_not_ready_although_old_pods_serve(make, observed):
    seen = observed(deployment=make.deployment(ready=1), pods=[make.pod()])
    seen.document["metadata"]["generation"] = 2
    seen.document["spec"]["model"] = {"uri": "file:///other"}
    found = conditions(decided(seen, Choice(None, Obstacle("NoFit", "because"))))
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("False", "NoFit")
    assert found["Ready"]["observedGeneration"] == 2


def test_what_is_predicted_by_an_earlier_spec_says_of_which_generation_it_is(make, observed):
    condition = {"type": "SLOFeasible", "status": "Unknown", "reason": "NothingAsked", "observedGeneration": 1}
    conditions_before = [{**condition, "lastTransitionTime": "2026-01-01T00:00:00Z"}]
    document = make.service(status={"plan": plan_status(make.plan()), "conditions": conditions_before})
    document["metadata"]["generation"] = 2
    seen = observed(document, deployment=make.deployment(ready=1), pods=[make.pod()])
    for earlier, generation in ((True, 1), (False, 2)):
        found = conditions(decided(seen, Choice(make.plan()), predicted_earlier=earlier))
        assert (found["SLOFeasible"]["observedGeneration"], found["Ready"]["observedGeneration"]) == (generation, 2)


@pytest.mark.parametrize(
    ("choice", "reason"),
    [(Choice(None, Obstacle("InvalidAdapter", "because")), "InvalidAdapter"), (None, "AdaptersLoading")],
)
def test_a_service_is_not_ready_while_its_sidecars_are_not_told_of_an_adapter(make, observed, choice, reason):
    seen = observed(deployment=make.deployment(ready=1), pods=[make.pod()])
    document = make.service(model={"uri": "hf://a/b", "adapters": [{"name": "sql", "uri": "hf://a/sql"}]})
    seen = dataclasses.replace(seen, service=parse_service(document))
    found = conditions(decided(seen, choice or Choice(make.plan())))
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("False", reason)


@pytest.mark.parametrize(
    ("download", "reason", "stalled"),
    [
        (refused("VolumeFull", "3 GB are missing"), "VolumeFull", "True"),
        (undecided("DownloadFailed", "evicted"), "DownloadFailed", "False"),
        (downloading("models", "37 %"), "ModelDownloading", "False"),
        (NOT_BEGUN, "AdaptersLoading", "False"),
        (NOT_NEEDED, "AdaptersLoading", "False"),
    ],
)
def test_ready_says_what_the_copy_of_an_adapter_waits_for(make, observed, download, reason, stalled):
    seen = observed(deployment=make.deployment(ready=1), pods=[make.pod()], download=download)
    adapters = [{"name": "sql", "uri": "hf://a/sql"}]
    document = make.service(model={"uri": "hf://a/b", "cache": {"claimName": "models"}, "adapters": adapters})
    seen = dataclasses.replace(seen, service=parse_service(document))
    found = conditions(decided(seen, Choice(make.plan())))
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("False", reason)
    assert found["Stalled"]["status"] == stalled


def test_what_is_about_to_be_rolled_out_is_not_ready(make, observed):
    seen = observed(deployment=make.deployment(ready=1), pods=[make.pod()])
    found = conditions(decided(seen, Choice(make.plan()), change="the Deployment is being brought up to date"))
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == ("False", "RollingOut")
    assert found["Reconciling"]["status"] == "True"


@pytest.mark.parametrize(("spec", "reason"), [({"suspend": True}, "Suspended"), ({"replicas": 0}, "ScaledToZero")])
def test_zero_replicas_without_pods_are_ready(make, observed, spec, reason):
    seen = observed(make.service(**spec), deployment=make.deployment(0))
    assert conditions(decided(seen, Choice(make.plan())))["Ready"]["reason"] == reason
    assert conditions(decided(seen, Choice(make.plan())))["Ready"]["status"] == "True"


def test_the_time_of_a_condition_is_that_of_its_last_change_of_status(make, observed):
    first = decided(observed(), Choice(make.plan()))
    later = datetime(2026, 6, 1, tzinfo=UTC)
    seen = observed(make.service(status=first.status), deployment=make.deployment(ready=1), pods=[make.pod()])
    second = conditions(decided(seen, Choice(make.plan()), now=later))
    assert second["Planned"]["lastTransitionTime"] == "2026-05-01T00:00:00Z"
    assert second["Ready"]["lastTransitionTime"] == "2026-06-01T00:00:00Z"


def test_only_transitions_become_events_and_kstatus_conditions_do_not(make, observed):
    first = decided(observed(), Choice(make.plan()))
    assert {note.type for note in first.notes} == {"Planned"}
    again = decided(observed(make.service(status=first.status)), Choice(make.plan()))
    assert again.notes == ()
    assert again.status == first.status


def test_a_plan_that_replaces_another_says_why(make, observed):
    document = make.service(status={"plan": plan_status(make.plan())})
    decision = decided(observed(document), Choice(make.plan(layers=(8,)), why="the former plan took 2 GPUs a replica"))
    assert [note.message for note in decision.notes if note.reason == "Replanned"] == [
        "the former plan took 2 GPUs a replica"
    ]


def test_more_than_32_placements_are_counted_not_listed(make, observed):
    pods = [make.pod(f"p{number:02}") for number in range(40)]
    status = decided(observed(deployment=make.deployment(40), pods=pods), Choice(make.plan())).status
    assert len(status["placements"]) == 32
    assert status["placementsOmitted"] == 8


def test_measured_attainment_replaces_the_prediction(make, observed):
    document = make.service(slo={"classes": [{"name": "chat", "ttft": "1s"}]})
    plan = dataclasses.replace(make.plan(), predicted=Predicted(100, 400.0, 40.0, 2.0))
    measurements = {"uid-a": (ClassMeasurement("chat", 1000, 992, 0.8, None),)}
    seen = dataclasses.replace(observed(document), service=parse_service(document), measurements=measurements)
    decision = decided(seen, Choice(plan))
    assert decision.status["summary"]["slo"] == "99.2%"
    assert decision.status["slo"] == [
        {"name": "chat", "requests": 1000, "attainment": "99.2%", "p99TtftMilliseconds": 800}
    ]
    assert conditions(decision)["SLOMet"]["status"] == "True"
    assert conditions(decision)["SLOFeasible"]["status"] == "True"
