"""Whether pods run what is wanted: what their sidecars report, and how often they are asked."""

from __future__ import annotations

import pytest

from uellm.api.running_report import RunningReport
from uellm.reconcile.pods.running import RunningReports, WantedConfig, read_running, unconfirmed

REVISION, OLD = "0123456789", "9876543210"
WANTED = WantedConfig(REVISION, "new")
AS_WANTED = {"revision": REVISION, "configDigest": "new"}
READY = [{"type": "Ready", "status": "True"}]


@pytest.fixture
def pod(make):
    def build(name="a", revision=REVISION, **status):
        made = make.pod(name, podIP=f"ip-{name}", **{"conditions": READY, **status})
        made["metadata"]["labels"]["uellm.io/revision"] = revision
        return made

    return build


class Sidecars:
    """What the sidecars answer by address, and who asked when."""

    def __init__(self):
        self.answers = {}
        self.asked = []
        self.now_s = 0.0
        self.running = RunningReports(self._fetch, lambda: self.now_s)

    async def _fetch(self, address):
        self.asked.append(address)
        return self.answers.get(address)


@pytest.fixture
def sidecars():
    return Sidecars()


def reason(pods, reports):
    found = unconfirmed(pods, {f"uid-{name}": report for name, report in reports.items()}, WANTED)
    return found and (found.reason, found.message)


def test_pods_that_report_what_is_wanted_are_confirmed(pod):
    assert reason([pod("a"), pod("b")], {"a": RunningReport(*WANTED), "b": RunningReport(*WANTED)}) is None


@pytest.mark.parametrize(
    ("report", "told"),
    [
        (RunningReport(REVISION, "old"), ("Reloading", "pod a has not taken over the new configuration yet")),
        (RunningReport(REVISION, "old", "classes: Field required"), ("ReloadRefused", "refuses: classes: Field req")),
        (RunningReport(OLD, "new"), ("RollingOut", f"runs revision {OLD}, and {REVISION} is wanted")),
        (RunningReport("", "new"), ("NotReported", "too old to report its revision")),
        (None, ("NotReported", "allow the operator to reach port 8002")),
    ],
)
def test_a_pod_that_serves_otherwise_is_named_with_the_reason(pod, report, told):
    found = reason([pod("a")], {} if report is None else {"a": report})
    assert found[0] == told[0]
    assert told[1] in found[1]


@pytest.mark.parametrize(
    ("report", "told"),
    [
        ({"adapters": ["sql"]}, ("AdaptersLoading", "pod a is loading adapter chat")),
        (
            {"adapters": ["sql"], "failedAdapters": {"chat": "LoRA rank 64 is greater\nthan 16."}},
            ("AdapterFailed", "pod a does not serve adapter chat: LoRA rank 64 is greater than 16."),
        ),
        ({"adapters": ["sql", "chat"]}, None),
        ({"adapters": "sql", "failedAdapters": ["chat"]}, ("AdaptersLoading", "pod a is loading adapter sql")),
    ],
)
def test_a_pod_is_confirmed_once_it_serves_every_adapter(pod, report, told):
    wanted = WANTED._replace(adapters=("sql", "chat"))
    found = unconfirmed([pod("a")], {"uid-a": read_running({**AS_WANTED, **report})}, wanted)
    assert (found and (found.reason, found.message)) == told


async def test_a_pod_is_asked_until_it_serves_every_adapter(pod, sidecars):
    wanted = WANTED._replace(adapters=("sql",))
    sidecars.answers["ip-a"] = AS_WANTED
    assert await sidecars.running.refresh([pod("a")], wanted) == 3.0
    sidecars.answers["ip-a"] = {**AS_WANTED, "adapters": ["sql"]}
    sidecars.now_s = 3.0
    assert await sidecars.running.refresh([pod("a")], wanted) is None


def test_pods_that_do_not_serve_or_are_going_need_no_report(pod):
    going = pod("going")
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert reason([going, pod("starting", conditions=[])], {}) is None


async def test_a_pod_that_runs_what_is_wanted_is_asked_once_in_ten_minutes(pod, sidecars):
    sidecars.answers["ip-a"] = AS_WANTED
    assert await sidecars.running.refresh([pod("a")], WANTED) is None
    sidecars.now_s = 599.0
    assert await sidecars.running.refresh([pod("a")], WANTED) is None
    assert sidecars.asked == ["ip-a"]
    sidecars.now_s = 601.0
    await sidecars.running.refresh([pod("a")], WANTED)
    assert sidecars.asked == ["ip-a", "ip-a"]


async def test_a_changed_configuration_is_asked_after_at_once_and_then_every_three_seconds(pod, sidecars):
    sidecars.answers["ip-a"] = AS_WANTED
    await sidecars.running.refresh([pod("a")], WANTED)
    newer = WantedConfig(REVISION, "newer")
    assert await sidecars.running.refresh([pod("a")], newer) == 3.0
    sidecars.now_s = 3.0
    sidecars.answers["ip-a"] = {**AS_WANTED, "configDigest": "newer"}
    assert await sidecars.running.refresh([pod("a")], newer) is None
    assert len(sidecars.asked) == 3


async def test_a_pod_that_does_not_answer_is_asked_less_and_less_often(pod, sidecars):
    waits = []
    for _ in range(7):
        waits.append(await sidecars.running.refresh([pod("a")], WANTED))
        sidecars.now_s += waits[-1]
    assert waits == [3.0, 6.0, 12.0, 24.0, 48.0, 96.0, 192.0]


async def test_a_pod_keeps_its_last_report_while_it_does_not_answer(pod, sidecars):
    sidecars.answers["ip-a"] = AS_WANTED
    await sidecars.running.refresh([pod("a")], WANTED)
    sidecars.answers.clear()
    sidecars.now_s = 700.0
    assert await sidecars.running.refresh([pod("a")], WANTED) is None
    assert sidecars.running.of([pod("a")]) == {"uid-a": RunningReport(WANTED.revision, WANTED.config_digest)}


async def test_pods_of_another_revision_are_not_asked(pod, sidecars):
    assert await sidecars.running.refresh([pod("a", revision=OLD)], WANTED) is None
    assert sidecars.asked == []


async def test_reports_of_pods_that_are_gone_are_dropped(pod, sidecars):
    sidecars.answers["ip-a"] = AS_WANTED
    await sidecars.running.refresh([pod("a")], WANTED)
    sidecars.running.keep(set())
    assert sidecars.running.of([pod("a")]) == {}


@pytest.mark.parametrize("document", [{}, {"revision": 5, "configDigest": None, "refused": ["x"]}])
def test_a_report_of_wrong_types_counts_as_empty(document):
    assert read_running(document) == RunningReport()


@pytest.mark.parametrize("refused", ["", "classes: Field required"])
def test_a_report_is_read_as_it_was_written(refused):
    report = RunningReport(REVISION, "new", refused)
    assert read_running(report.to_dict()) == report


def test_a_report_of_another_version_counts_as_empty():
    assert read_running({"version": 2, **AS_WANTED}) == RunningReport()
