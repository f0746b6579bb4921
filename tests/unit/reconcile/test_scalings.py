"""The decisions over time: each pass sees the number of the last one carried out."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from uellm.api import parse_service
from uellm.api.attainment_report import LoadMeasurement
from uellm.autoscaling import LEARN_S
from uellm.kube.kinds import DEPLOYMENT
from uellm.planner.result import Predicted
from uellm.reconcile.observe import Observed
from uellm.reconcile.planning.plan_status import plan_status
from uellm.reconcile.pods.measurements import TimedLoad
from uellm.reconcile.scaling.scaling import Scaling
from uellm.reconcile.scaling.scalings import ASSUMED_STEP, EVERY_S, Scalings
from uellm.reconcile.times import timestamp
from uellm.step_time import StepTime

IDLE_S = 600.0
"""The default of `idleTimeout`."""
BEGIN = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)


class World:
    """A service whose pods are ready as soon as they are wanted."""

    def __init__(self, make, least: int, most: int, idle_timeout: str = "10m", **spec) -> None:
        self.make = make
        slo = {"classes": [{"name": "chat", "ttft": "1s", "tpot": "60ms"}]}
        autoscaling = {"minReplicas": least, "maxReplicas": most, "idleTimeout": idle_timeout}
        self.document = make.service(autoscaling=autoscaling, slo=slo, **spec)
        plan = make.plan(layers=(8,))
        self.document["status"] = {"plan": plan_status(replace(plan, predicted=Predicted(384_000)))}
        self.scalings = Scalings()
        self.now = BEGIN
        self.counted: dict[str, int] = {}
        self.reports = True
        self.silent = 0
        """Sidecars that do not report."""
        self.read_at: datetime | None = None
        """When the load was read last, where that is not now."""
        self.serves_per_s = math.inf
        """What each replica serves; it refuses the rest."""
        self.refused: dict[str, int] = {}
        self.passed = 0
        """Requests that are not scheduled, of each replica."""
        self.step: StepTime | None = None
        """As the sidecars measure it."""
        self.pods: list[dict] | None = None
        self.refuses: int | None = None
        """Replicas that the API server refuses; 0: only an additional one. None: it refuses none."""
        self.made = 0

    def look(self) -> Scaling:
        """One pass."""
        pods = self.pods if self.pods is not None else [self._ready(place) for place in range(self.made)]
        service = parse_service({name: self.document[name] for name in ("apiVersion", "kind", "metadata", "spec")})
        deployment = self.make.deployment(self.made)
        if self.refuses is not None:
            deployment = self.make.refused(deployment, self.made - self.refuses)
        children = {DEPLOYMENT: deployment} if self.made else {}
        observed = Observed(self.document, service, children=children, pods=tuple(pods))
        loads = (
            {
                uid: TimedLoad((self.read_at or self.now).timestamp(), self._load(uid))
                for uid in list(self.counted)[self.silent :]
            }
            if self.reports
            else {}
        )
        scaling = self.scalings.advance(observed, loads, self.now)
        assert scaling is not None
        self.document["status"]["autoscaling"] = scaling.to_dict()
        self.made = scaling.replicas
        return scaling

    def minutes(self, minutes: float, requests_per_s: float) -> int:
        """Look every 15 s. Returns the number at the end."""
        for _ in range(round(60 * minutes / EVERY_S)):
            self.now += timedelta(seconds=EVERY_S)
            uids = [f"uid-{place}" for place in range(self.made)]
            for uid in uids:
                asked = round(requests_per_s * EVERY_S / len(uids))
                self.counted[uid] = self.counted.get(uid, 0) + asked
                self.refused[uid] = self.refused.get(uid, 0) + round(max(0, asked - self.serves_per_s * EVERY_S))
            self.look()
        return self.made

    def _ready(self, place: int) -> dict:
        return self.make.pod(str(place), conditions=[{"type": "Ready", "status": "True"}])

    def _load(self, uid: str) -> LoadMeasurement:
        ended, refused = self.counted[uid], self.refused.get(uid, 0)
        served = ended - refused
        counted = LoadMeasurement(ended, refused, 900 * ended, 200 * served, 0, 0, prompts=ended, answers=served)
        return counted._replace(step=self.step, passed=self.passed)


@pytest.fixture
def world(make):
    return lambda *bounds, **spec: World(make, *bounds, **spec)


def test_a_new_service_begins_with_one_replica_or_the_least_number(world):
    assert world(1, 5).look().replicas == 1
    assert world(0, 5).look().replicas == 1
    assert world(3, 5, replicas=1).look().replicas == 3


def test_the_number_goes_up_at_once_and_down_later(world):
    here = world(1, 9)
    here.look()
    high = here.minutes(5, 30.0)

    assert 3 <= high <= 6
    assert here.minutes(2, 0.5) == high
    assert here.minutes(40, 0.5) == 1


def test_more_than_the_largest_number_is_told(world):
    here = world(1, 2)
    here.look()
    assert here.minutes(5, 60.0) == 2

    scaling = here.look()

    assert scaling.reason == "ScalingLimited"
    assert scaling.message == "the load needs more than 2 replicas: raise spec.autoscaling.maxReplicas"


def test_a_rush_that_is_mostly_refused_gets_the_replicas_that_serve_it_and_no_more(world):
    """The first replica refuses seven of eight requests, until the others have started."""
    served, rush = world(1, 40), world(1, 40)
    for here in (served, rush):
        here.look()
    enough = served.minutes(30, 60.0)
    rush.serves_per_s = 7.5
    rush.pods = [rush._ready(0)]
    high = rush.minutes(3, 60.0)
    rush.pods, rush.serves_per_s = None, math.inf

    assert enough <= high <= 2 * enough
    assert rush.minutes(90, 60.0) <= enough + 2


def test_an_engine_whose_steps_take_three_times_as_long_as_planned_gets_more_replicas(world):
    planned, slow = world(1, 30), world(1, 30)
    step = ASSUMED_STEP
    slow.step = StepTime(*(3 * seconds for seconds in step.to_dict().values()))
    for here in (planned, slow):
        here.look()
    few, many = planned.minutes(20, 15.0), slow.minutes(20, 15.0)

    assert few >= 2
    assert 2 * few <= many <= 4 * few


def test_a_restarted_operator_gives_nothing_up_before_it_has_seen_the_load(world):
    here = world(1, 9)
    here.look()
    high = here.minutes(5, 30.0)
    here.scalings = Scalings()

    assert here.minutes(LEARN_S / 60 - 1, 0.5) == high
    assert here.minutes(30, 0.5) == 1


def test_where_a_pod_does_not_report_the_number_stays(world):
    here = world(1, 9)
    here.look()
    high = here.minutes(5, 30.0)
    here.reports = False

    assert here.minutes(60, 0.0) == high
    assert here.look().reason == "NotReported"


def test_while_no_replica_is_ready_none_is_given_up_nor_for_a_while_after(world):
    here = world(1, 9)
    here.look()
    high = here.minutes(30, 30.0)
    here.pods = [here.make.pod(str(place)) for place in range(high)]  # they run, and are not ready

    assert here.minutes(45, 0.0) == high
    condition = here.look().condition
    assert (condition.status, condition.reason) == ("Unknown", "NotReported")
    assert condition.message == f"{high} replicas as before, because none is ready; spec.replicas is not looked at"
    here.pods = None

    assert here.minutes(LEARN_S / 60 - 1, 0.5) == high
    assert here.minutes(30, 0.5) == 1


def crash_looping(here: World, number: int) -> list[dict]:
    """Pods that have nodes, and so GPUs, and are not ready."""
    return [here.make.pod(str(place)) for place in range(number)]


def test_replicas_of_which_none_gets_ready_give_their_gpus_back_but_for_the_least_number(world):
    """`startupTimeout` is 30 minutes by default."""
    here = world(2, 9)
    here.look()
    high = here.minutes(30, 30.0)
    assert high > 2
    here.pods = crash_looping(here, high)

    assert here.minutes(89, 0.0) == high
    assert here.minutes(2, 0.0) == 2
    for _ in range(2):
        scaling = here.look()
        assert (scaling.replicas, scaling.reason) == (2, "NotReported")
        assert scaling.message == (
            "2 replicas, the least number, because none was ready for 3 times engine.startupTimeout: see the condition "
            "Ready"
        )
    here.pods = None
    assert here.minutes(30, 30.0) == high


def test_the_time_that_replicas_are_waited_for_follows_the_startup_timeout(world):
    here = world(1, 9, engine={"startupTimeout": "60m"})
    here.look()
    high = here.minutes(30, 30.0)
    here.pods = crash_looping(here, high)

    assert here.minutes(179, 0.0) == high
    assert here.minutes(2, 0.0) == 1


def test_replicas_without_a_node_hold_no_gpus_and_their_number_stays(world):
    here = world(1, 9)
    here.look()
    high = here.minutes(30, 30.0)
    here.pods = []

    assert here.minutes(300, 0.0) == high
    here.pods = [here.make.unschedulable(str(place)) for place in range(high)]
    assert here.minutes(300, 0.0) == high
    assert here.look().reason == "ScalingLimited"


def test_replicas_that_served_without_reporting_are_waited_for_from_their_end_on(world):
    here = world(1, 9)
    here.look()
    high = here.minutes(30, 30.0)
    here.reports = False
    here.minutes(120, 0.0)
    here.pods = crash_looping(here, high)

    assert here.minutes(89, 0.0) == high


def test_while_the_first_replica_starts_the_number_is_as_needed(world):
    here = world(2, 9)
    here.pods = crash_looping(here, 2)

    assert here.minutes(20, 0.0) == 2
    condition = here.look().condition
    assert (condition.status, condition.reason) == ("True", "AsNeeded")
    here.pods = None
    here.look()
    here.pods = crash_looping(here, 2)
    assert here.look().reason == "NotReported"


def test_after_an_outage_the_load_is_known_as_before(world):
    here = world(1, 9)
    here.look()
    high = here.minutes(60, 30.0)
    here.pods = []
    here.minutes(20, 0.0)
    here.pods = None

    assert here.minutes(30, 30.0) == high


def test_an_outage_of_an_idle_service_ends_its_replicas_once_they_were_waited_for(world):
    here = world(0, 9)
    here.look()
    here.minutes(5, 30.0)
    here.pods = []

    assert here.minutes(30 + IDLE_S / 60 - 2, 0.0) > 1
    assert here.minutes(3, 0.0) == 0


def test_where_some_pods_do_not_report_the_others_make_the_number_go_up_and_none_is_given_up(world):
    here = world(1, 9)
    here.look()
    high = here.minutes(5, 30.0)
    here.silent = 1
    higher = here.minutes(5, 60.0)

    assert higher > high
    assert here.minutes(60, 0.5) == higher
    scaling = here.look()
    assert scaling.reason == "NotReported"
    assert scaling.message == f"{higher} replicas, and not fewer, because 1 sidecar that should report the load did not"

    here.silent = 0

    assert here.minutes(LEARN_S / 60 - 1, 0.5) == higher
    assert here.minutes(30, 0.5) == 1


def test_a_pod_that_reports_again_does_not_make_the_number_jump(world):
    here = world(1, 9)
    here.look()
    high = here.minutes(30, 30.0)
    here.silent = 1
    assert here.minutes(30, 30.0) == high
    here.silent = 0

    assert here.minutes(30, 30.0) == high


def test_an_idle_service_ends_its_last_replicas_only_when_all_report(world):
    here = world(0, 9)
    here.look()
    here.minutes(5, 30.0)
    here.silent = 1
    here.minutes(30, 0.0)
    assert here.made > 1
    here.silent = 0

    assert here.minutes(30, 0.0) == 0


def test_a_service_that_is_used_by_routes_that_are_not_scheduled_runs_on_until_those_cease(world):
    here = world(0, 3)
    here.look()
    for _ in range(6):
        assert here.minutes(5, 0.0) == 1
        here.passed += 1

    here.minutes(0.25, 0.0)
    here.passed = 1  # its sidecar was started anew, and asked since
    here.minutes(0.25, 0.0)
    assert here.minutes(IDLE_S / 60 - 1, 0.0) == 1
    assert here.minutes(2, 0.0) == 0


def test_a_service_without_requests_runs_no_pods_until_one_waits(world):
    here = world(0, 3)
    here.look()
    assert here.minutes(2, 1.0) == 1
    assert here.minutes(IDLE_S / 60 - 1, 0.0) == 1
    assert here.minutes(2, 0.0) == 0
    assert here.look().reason == "ScaledToZero"
    assert here.minutes(10, 0.0) == 0

    here.document["metadata"]["annotations"] = {"uellm.io/wanted-at": timestamp(here.now)}
    assert here.look().replicas == 1
    assert here.minutes(3, 0.0) == 1


def test_a_short_idle_timeout_ends_the_last_replica_early_and_the_others_as_always(world):
    here = world(0, 3, idle_timeout="1m")
    here.look()
    assert here.minutes(2, 1.0) == 1
    assert here.minutes(0.5, 0.0) == 1
    assert here.minutes(0.75, 0.0) == 0

    kept = world(1, 3, idle_timeout="1m")
    kept.look()
    assert kept.minutes(60, 0.0) == 1


def test_the_last_replica_does_not_end_while_its_load_is_not_read_anew(world):
    here = world(0, 3, idle_timeout="30s")
    here.look()
    assert here.minutes(2, 1.0) == 1
    here.read_at = here.now
    assert here.minutes(1, 1.0) == 1
    here.read_at = None
    assert here.minutes(0.25, 0.0) == 1
    assert here.minutes(1, 0.0) == 0


def test_a_woken_replica_stays_while_it_starts_however_long_that_takes(world):
    here = world(0, 3)
    here.look()
    here.minutes(IDLE_S / 60 + 1, 0.0)
    here.document["metadata"]["annotations"] = {"uellm.io/wanted-at": timestamp(here.now)}
    here.pods = []
    assert here.minutes(30, 0.0) == 1
    here.pods = None

    assert here.minutes(IDLE_S / 60 - 1, 0.0) == 1
    assert here.minutes(2, 0.0) == 0


def test_a_woken_replica_that_never_starts_is_given_up_once_nobody_waits_any_more(world):
    """The engine may take `startupTimeout` to start, 30 minutes by default."""
    here = world(0, 3)
    here.look()
    here.minutes(IDLE_S / 60 + 1, 0.0)
    here.pods = []
    for _ in range(60):
        here.document["metadata"]["annotations"] = {"uellm.io/wanted-at": timestamp(here.now)}
        assert here.minutes(1, 0.0) == 1

    assert here.minutes(30 + IDLE_S / 60 - 2, 0.0) == 1
    assert here.minutes(3, 0.0) == 0


@pytest.mark.parametrize("skew_s", [-3600, -61, -30, 30, 61, 3600])
def test_one_that_waits_is_heard_however_wrong_the_clock_of_the_gateways_node_is(world, skew_s):
    here = world(0, 3)
    here.look()
    here.minutes(IDLE_S / 60 + 1, 0.0)
    for _ in range(2):  # the gateway writes every 10 s
        here.now += timedelta(seconds=10)
        written = timestamp(here.now + timedelta(seconds=skew_s))
        here.document["metadata"]["annotations"] = {"uellm.io/wanted-at": written}
        here.look()
    assert here.made == 1

    assert here.minutes(IDLE_S / 60 - 1, 0.0) == 1
    assert here.minutes(4, 0.0) == 0, "nobody waits any more"


@pytest.mark.parametrize("wish", ["2026-11-29T11:00:00Z", "2027-01-01T00:00:00Z", "soon", ""])
def test_an_old_wish_one_of_the_future_and_one_that_is_no_time_wake_nobody(world, wish):
    here = world(0, 3)
    here.look()
    here.minutes(IDLE_S / 60 + 1, 0.0)
    here.document["metadata"]["annotations"] = {"uellm.io/wanted-at": wish}

    assert here.look().replicas == 0


@pytest.mark.parametrize("namespaces", [frozenset(), frozenset({"team-a"})])
def test_where_no_gateway_could_wake_it_one_replica_stays_and_says_why(world, namespaces):
    here = world(0, 3)
    here.scalings = Scalings(namespaces)
    here.look()

    assert here.minutes(IDLE_S / 60 + 5, 0.0) == 1
    condition = here.look().condition
    assert (condition.status, condition.reason) == ("False", "NoGateway")
    assert condition.message == (
        "1 replica by load and targets, and never none: no gateway serves namespace ns, so no request could start a "
        "first replica: set gateway.enabled and gateway.namespaces of the chart, or minReplicas to 1; spec.replicas is "
        "not looked at"
    )


def test_a_gateway_of_the_services_namespace_lets_it_go_to_zero(world):
    here = world(0, 3)
    here.scalings = Scalings(frozenset({"ns"}))
    here.look()

    assert here.minutes(IDLE_S / 60 + 5, 0.0) == 0


def test_a_service_at_zero_whose_gateway_is_taken_away_starts_a_replica(world):
    here = world(0, 3)
    here.look()
    assert here.minutes(IDLE_S / 60 + 5, 0.0) == 0
    here.scalings = Scalings(frozenset())  # the operator is restarted with other arguments

    assert here.look().replicas == 1


def test_without_a_gateway_missing_gpus_are_told_before_that(world):
    here = world(0, 4)
    here.scalings = Scalings(frozenset())
    here.pods = [here.make.unschedulable("a")]

    assert here.look().reason == "ScalingLimited"


def test_missing_gpus_are_told(world):
    here = world(2, 4)
    here.pods = [here.make.unschedulable("a"), here.make.unschedulable("b")]

    scaling = here.look()

    assert (scaling.replicas, scaling.reason) == (2, "ScalingLimited")
    assert scaling.message == "2 of 2 replicas find no node with free GPUs: add GPUs, or free some"


def test_the_bounds_hold_at_once(world):
    here = world(1, 9)
    here.look()
    here.minutes(5, 30.0)
    here.document["spec"]["autoscaling"]["maxReplicas"] = 2
    assert here.look().replicas == 2
    here.document["spec"]["autoscaling"] = {"minReplicas": 5, "maxReplicas": 9}
    assert here.look().replicas == 5


def test_the_number_of_a_service_that_had_none_is_that_of_its_deployment(world):
    here = world(1, 5)
    here.made = 4
    here.counted = {f"uid-{place}": 0 for place in range(4)}

    assert here.look().replicas == 4


@pytest.mark.parametrize("hours", [-6, 6])
def test_a_clock_that_jumps_makes_no_replicas_go_and_blinds_nothing(world, hours):
    here = world(1, 9)
    here.look()
    high = here.minutes(15, 30.0)
    here.now += timedelta(hours=hours)

    assert here.look().replicas == high
    assert here.minutes(5, 60.0) > high
    assert here.minutes(60, 0.1) == 1


def test_a_service_that_was_suspended_comes_back_as_large_as_it_was(world):
    here = world(1, 9)
    here.look()
    high = here.minutes(30, 30.0)
    here.document["spec"]["suspend"] = True
    for _ in range(60):
        here.now += timedelta(minutes=1)
        assert here.look().reason == "NotRunning"
        here.made = 0

    here.document["spec"]["suspend"] = False
    here.counted = {}

    assert here.look().replicas == high
    assert here.minutes(1, 0.0) == high
    assert here.minutes(3, 30.0) == high
    assert here.minutes(30, 0.1) == 1


def test_another_time_to_start_does_not_make_the_load_be_forgotten(world):
    here = world(1, 9)
    here.look()
    high = here.minutes(30, 30.0)
    here.document["status"]["autoscaling"]["startupSeconds"] = 60
    here.minutes(4, 0.1)

    assert high > 1
    assert here.minutes(LEARN_S / 60 - 5, 0.1) < high


def at(here: World, uid: str, created_s: float, ready_s: float | None) -> dict:
    """A pod that was created and became ready so long ago; None: it is not ready."""
    since = timestamp(here.now - timedelta(seconds=ready_s or 0))
    ready = {"type": "Ready", "status": "False" if ready_s is None else "True", "lastTransitionTime": since}
    pod = here.make.pod(uid, conditions=[ready])
    pod["metadata"]["creationTimestamp"] = timestamp(here.now - timedelta(seconds=created_s))
    return pod


def startup_after(here: World, *pods: dict) -> float | None:
    here.pods = list(pods)
    return here.look().startup_s


def test_the_time_to_start_is_that_until_a_pod_was_ready_for_the_first_time(world):
    here = world(1, 5)
    here.look()
    assert startup_after(here, at(here, "a", 60, None)) is None
    assert startup_after(here, at(here, "a", 100, 10)) == 90
    here.now += timedelta(minutes=20)
    assert startup_after(here, at(here, "a", 1300, None)) == 90
    assert startup_after(here, at(here, "a", 1310, 5)) == 90, "it is ready again: its probe had missed once"
    assert startup_after(here, at(here, "a", 1310, 5), at(here, "b", 130, 10)) == 120


def test_what_was_ready_when_the_operator_began_to_look_does_not_tell_how_long_a_start_takes(world):
    here = world(1, 5)
    assert startup_after(here, at(here, "a", 1310, 5)) is None
    assert startup_after(here, at(here, "a", 1310, 5)) is None


def test_replicas_that_wait_in_a_queue_are_told_and_are_not_taken_for_missing_gpus(world):
    here = world(2, 4)
    queued = here.make.pod("b", node=None)
    queued["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    here.pods = [here.make.unschedulable("a"), queued]
    assert here.look().message == "1 of 2 replicas find no node with free GPUs: add GPUs, or free some"
    here.pods = [queued]
    scaling = here.look()
    assert (scaling.replicas, scaling.reason) == (2, "ScalingLimited")
    assert scaling.message == "1 of 2 replicas wait in a queue, or for another scheduling gate"
    here.pods = [of_group(queued, "0", index) for index in (0, 1)]
    assert here.look().message == "1 of 2 replicas wait in a queue, or for another scheduling gate"


def of_group(pod, group, index):
    labels = {"name": "llama-engine", "group-index": group, "worker-index": str(index)}
    named = {f"leaderworkerset.sigs.k8s.io/{label}": value for label, value in labels.items()}
    metadata = {**pod["metadata"], "name": f"llama-engine-{group}-{index}", "uid": f"uid-{group}-{index}"}
    return {**pod, "metadata": {**metadata, "labels": {**pod["metadata"]["labels"], **named}}}


def test_replicas_that_the_api_server_refuses_are_told(world):
    here = world(3, 4)
    here.look()
    here.pods, here.counted, here.refuses = [here._ready(0)], {"uid-0": 0}, 2

    scaling = here.look()

    assert (scaling.replicas, scaling.reason) == (3, "ScalingLimited")
    assert scaling.message.startswith("the API server refuses 2 of 3 replicas: pods ")
    assert scaling.message.endswith("is forbidden: exceeded quota: gpus")


def test_an_additional_pod_of_a_rollout_that_is_refused_limits_nothing(world):
    here = world(1, 4)
    here.look()
    here.counted, here.refuses = {"uid-0": 0}, 0

    assert here.look().reason == "AsNeeded"
