"""The loops that keep the profile, against a kubelet on real sockets and a cluster in memory."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import asynccontextmanager, closing
from dataclasses import replace

import pytest

from uellm.api.names import MEASURING_LABEL
from uellm.errors import BadInput
from uellm.hardware import GPU_RESOURCE
from uellm.kube import Forbidden, Unavailable
from uellm.measuring.document import DeviceRecord, MeasurementDocument, MeasuringTerms
from uellm.measuring.store import write_document
from uellm.profiler.keeper import Keeper, Periods
from uellm.profiler.measured import MeasurementFile
from uellm.profiler.metrics import ProfilerMetrics
from uellm.profiler.network.gate import NetworkGate
from uellm.profiler.network.keeping import NetworkKeeper, NetworkPeriods
from uellm.profiler.network.sink import Sink
from uellm.profiler.podresources import DeviceId, KubeletSilent, Listed, PodKey
from uellm.profiler.sample import DeviceFailure, DriverChanged, NoGPUs, Sample, SourceError
from uellm.profiler.store import Store

A = {"index": 0, "uuid": "GPU-a", "memoryBytes": 1000, "memoryFreeBytes": 900}
B = {"index": 1, "uuid": "GPU-b", "memoryBytes": 2000}
SAMPLE = Sample("NVML", (A, B), ({"a": "GPU-a", "b": "GPU-b", "kind": "PHB"},), "580.1", "13.0")
NOON = "2026-01-01T12:00:00Z"
QUICK = Periods(interval_s=0.02, poll_s=0.01, settle_s=0.02, first_retry_s=0.01, longest_retry_s=0.02)


class FakeSource:
    """Returns `sample` or raises it, and counts the calls."""

    def __init__(self, sample: Sample | Exception = SAMPLE) -> None:
        self.answer = sample
        self.samples = 0

    def sample(self) -> Sample:
        self.samples += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class FakePodResources:
    """Returns `now`, or does not answer if it is None; `polled` reports every call."""

    def __init__(self) -> None:
        self.now: Listed | None = Listed()
        self.offered: set[DeviceId] = set()
        self.polls = 0
        self._polled = asyncio.Condition()

    def give(self, *devices: str, to: str) -> None:
        pod = PodKey("default", to)
        before, ids = self.now or Listed(), [DeviceId(GPU_RESOURCE, device) for device in devices]
        self.now = Listed({**before.devices, **dict.fromkeys(ids, pod)}, before.pods | {pod})

    async def held(self) -> Listed:
        async with self._polled:
            self.polls += 1
            self._polled.notify_all()
        if self.now is None:
            raise KubeletSilent("silent")
        return self.now

    async def allocatable(self) -> frozenset[DeviceId]:
        if self.now is None:
            raise KubeletSilent("silent")
        return frozenset(self.offered)

    async def polls_pass(self, number: int) -> None:
        target = self.polls + number
        async with asyncio.timeout(10), self._polled:
            await self._polled.wait_for(lambda: self.polls >= target)


@pytest.fixture
def pod_resources():
    return FakePodResources()


@pytest.fixture
def metrics():
    return ProfilerMetrics("node-1")


@pytest.fixture
def keep(cluster, pod_resources, metrics, background):
    def start(
        source,
        periods: Periods = QUICK,
        measurements: MeasurementFile | None = None,
        network: NetworkKeeper | None = None,
    ) -> asyncio.Task:
        keeper = Keeper(
            Store(cluster, "node-1"),
            source,
            pod_resources,
            metrics,
            measurements=measurements,
            measuring_namespace="default",
            network=network,
            periods=periods,
        )
        return background(keeper.run())

    return start


@asynccontextmanager
async def no_writes(cluster, pod_resources, polls: int = 20):
    before = len(cluster.writes)
    yield
    await pod_resources.polls_pass(polls)
    assert len(cluster.writes) == before


async def test_the_profile_is_created_and_owned_by_its_node(cluster, keep):
    keep(FakeSource())
    await cluster.until(lambda: len(cluster.uuids()) == 2)
    profile = cluster.objects["GPUNodeProfile", "node-1"]
    assert profile["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "uid-of-node-1"}
    ]
    assert cluster.status()["source"] == "NVML"


async def test_what_was_written_and_what_failed_can_be_scraped(cluster, keep, pod_resources, metrics):
    def value(name, **labels):
        return metrics.registry.get_sample_value(name, labels)

    source = FakeSource()
    assert value("uellm_profile_written_timestamp_seconds", node="node-1") == 0
    cluster.pod("engine-0", "uid-1")
    pod_resources.give("GPU-a", to="engine-0")
    keep(source)
    await cluster.until(lambda: cluster.device("GPU-a").get("allocatedTo") == {"podUID": "uid-1"})
    await cluster.until(lambda: value("uellm_profile_devices", node="node-1", state="allocated") == 1)
    assert value("uellm_profile_written_timestamp_seconds", node="node-1") > 1.6e9
    assert value("uellm_profiler_source_failing", node="node-1") == 0
    source.answer = SourceError("NoAnswer", "the driver is gone")
    await cluster.until(lambda: value("uellm_profiler_source_failing", node="node-1") == 1)


async def test_nothing_is_written_as_long_as_nothing_changes(cluster, keep, pod_resources):
    source = FakeSource()
    keep(source)
    await cluster.until(lambda: bool(cluster.writes))
    async with no_writes(cluster, pod_resources):
        source.answer = Sample("NVML", ({**A, "memoryFreeBytes": 1}, B), SAMPLE.links, "580.1", "13.0")
        before = source.samples
    assert source.samples > before


async def test_a_heartbeat_is_written_from_time_to_time(cluster, keep):
    keep(FakeSource(), Periods(**{**vars(QUICK), "heartbeat_s": 0.05}))
    await cluster.until(lambda: len(cluster.writes) >= 3)


async def test_an_allocation_is_written_with_the_uid_of_the_pod_and_so_is_its_end(cluster, keep, pod_resources):
    cluster.pod("engine-0", "uid-1")
    keep(FakeSource())
    await cluster.until(lambda: bool(cluster.writes))
    pod_resources.give("GPU-a", to="engine-0")
    await cluster.until(lambda: cluster.device("GPU-a").get("allocatedTo") == {"podUID": "uid-1"})

    del cluster.objects["Pod", "engine-0"]
    pod_resources.now = Listed()
    await cluster.until(lambda: "allocatedTo" not in cluster.device("GPU-a"))


async def test_the_api_server_is_not_asked_for_pods_while_nothing_changes(cluster, keep, pod_resources):
    cluster.pod("engine-0", "uid-1")
    pod_resources.give("GPU-a", to="engine-0")
    keep(FakeSource())
    await cluster.until(lambda: cluster.device("GPU-a").get("allocatedTo") == {"podUID": "uid-1"})
    lists = cluster.lists_of_pods
    await pod_resources.polls_pass(20)
    assert cluster.lists_of_pods == lists


async def test_a_pod_that_the_api_server_names_late_gets_its_uid_late(cluster, keep, pod_resources):
    pod_resources.give("GPU-a", to="engine-0")
    keep(FakeSource())
    await cluster.until(lambda: cluster.device("GPU-a").get("allocatedTo") == {"podUID": "default/engine-0"})
    cluster.pod("engine-0", "uid-1")
    await cluster.until(lambda: cluster.device("GPU-a").get("allocatedTo") == {"podUID": "uid-1"})


async def test_no_device_counts_as_free_before_the_kubelet_has_answered(cluster, keep, pod_resources):
    pod_resources.now = None
    keep(FakeSource())
    async with no_writes(cluster, pod_resources):
        pass
    pod_resources.now = Listed()
    await cluster.until(lambda: len(cluster.uuids()) == 2)


async def test_a_kubelet_that_is_started_again_frees_nothing(cluster, keep, pod_resources):
    cluster.pod("engine-0", "uid-1")
    pod_resources.give("GPU-a", to="engine-0")
    keep(FakeSource())
    await cluster.until(lambda: cluster.device("GPU-a").get("allocatedTo") == {"podUID": "uid-1"})
    listed, pod_resources.now = pod_resources.now, None
    async with no_writes(cluster, pod_resources):
        await pod_resources.polls_pass(3)
        pod_resources.now = Listed()  # it answers, but knows no pods yet
        await pod_resources.polls_pass(10)
        pod_resources.now = listed
    assert cluster.device("GPU-a")["allocatedTo"] == {"podUID": "uid-1"}


async def test_a_new_process_goes_on_from_what_the_last_one_wrote(cluster, keep, pod_resources, background):
    cluster.pod("engine-0", "uid-1")
    pod_resources.give("GPU-a", to="engine-0")
    first = keep(FakeSource())
    await cluster.until(lambda: cluster.device("GPU-a").get("allocatedTo") == {"podUID": "uid-1"})
    first.cancel()
    await asyncio.wait({first})
    before = cluster.status()

    pod_resources.now = Listed()
    writes = len(cluster.writes)
    keep(FakeSource(Sample("NVML", (B,), failed={0: DeviceFailure("GPULost", "gone")})))
    await cluster.until(lambda: len(cluster.writes) > writes)

    assert cluster.device("GPU-a")["health"]["reason"] == "GPULost"
    assert cluster.device("GPU-a")["allocatedTo"] == {"podUID": "uid-1"}
    assert cluster.device("GPU-b") == before["devices"][1]


async def test_a_lost_gpu_stays_with_its_pod_and_the_others_stay_free(cluster, keep, pod_resources):
    cluster.pod("engine-0", "uid-1")
    pod_resources.give("GPU-a", to="engine-0")
    source = FakeSource()
    keep(source)
    await cluster.until(lambda: cluster.device("GPU-a").get("allocatedTo") == {"podUID": "uid-1"})
    source.answer = Sample("NVML", (B,), failed={0: DeviceFailure("GPULost", "gone")})
    await cluster.until(lambda: cluster.device("GPU-a")["health"]["state"] == "Quarantined")
    assert cluster.device("GPU-a")["allocatedTo"] == {"podUID": "uid-1"}
    assert "allocatedTo" not in cluster.device("GPU-b")
    assert cluster.status()["summary"]["free"] == "1"


async def test_a_deleted_profile_is_written_again(cluster, keep):
    keep(FakeSource())
    await cluster.until(lambda: bool(cluster.writes))
    cluster.put_node_uid("another-uid")
    cluster.delete_profile()
    await cluster.until(lambda: len(cluster.writes) > 1 and len(cluster.uuids()) == 2)
    assert cluster.objects["GPUNodeProfile", "node-1"]["metadata"]["ownerReferences"][0]["uid"] == "another-uid"


async def test_the_profiler_waits_for_an_unreachable_api_server(cluster, keep, pod_resources):
    cluster.errors = [Unavailable(503, "Unavailable", "away")] * 3
    keep(FakeSource())
    await cluster.until(lambda: len(cluster.uuids()) == 2)

    cluster.pod("engine-0", "uid-1")
    cluster.errors = [Unavailable(0, "Unreachable", "away"), Forbidden(403, "Forbidden", "RBAC is on its way")]
    pod_resources.give("GPU-a", to="engine-0")
    await cluster.until(lambda: cluster.device("GPU-a").get("allocatedTo") == {"podUID": "uid-1"})
    assert cluster.failures == 5


async def test_an_unknown_node_is_logged_once_and_waited_for(cluster, keep, pod_resources, log):
    node = cluster.objects.pop(("Node", "node-1"))
    keep(FakeSource())
    await log.said("API server: the cluster has no node 'node-1': check --node")
    await pod_resources.polls_pass(20)
    assert log.count("no node 'node-1'") == 1
    cluster.objects["Node", "node-1"] = node
    await cluster.until(lambda: bool(cluster.writes))


async def test_a_node_without_gpus_gets_no_profile_and_lacks_none(cluster, keep, metrics, pod_resources):
    source = FakeSource(NoGPUs("NoDriver", "no driver"))
    keep(source)
    async with no_writes(cluster, pod_resources):
        pass
    assert metrics.registry.get_sample_value("uellm_profiler_source_failing", {"node": "node-1"}) == 0
    assert metrics.registry.get_sample_value("uellm_profile_written_timestamp_seconds", {"node": "node-1"}) == 0
    source.answer = SAMPLE  # the driver's DaemonSet is done
    await cluster.until(lambda: len(cluster.uuids()) == 2)


async def test_gpus_that_cannot_be_observed_from_the_start_on_are_missed(keep, metrics, pod_resources):
    unseen = NoGPUs("NoDriver", "no driver")
    unseen.hidden = True
    keep(FakeSource(unseen))
    await pod_resources.polls_pass(20)
    assert metrics.registry.get_sample_value("uellm_profiler_source_failing", {"node": "node-1"}) == 1


async def test_a_profile_that_was_never_written_is_due_from_the_start_on(cluster, keep, metrics, pod_resources):
    pod_resources.now = None  # the kubelet's socket cannot be opened
    keep(FakeSource())
    await pod_resources.polls_pass(20)
    assert not cluster.writes
    name, labels = "uellm_profile_written_timestamp_seconds", {"node": "node-1"}
    assert metrics.registry.get_sample_value(name, labels) > 1.6e9


@pytest.mark.parametrize(
    ("error", "reason"),
    [(SourceError("NVMLFailed", "it broke"), "NVMLFailed"), (BadInput("n.yaml: status", "bad"), "BadDescription")],
)
async def test_a_failure_of_the_source_becomes_a_condition_and_clears(cluster, keep, error, reason):
    source = FakeSource()
    keep(source)
    await cluster.until(lambda: bool(cluster.writes))
    source.answer = error
    await cluster.until(lambda: cluster.status()["conditions"][0]["reason"] == reason)
    assert cluster.uuids() == ["GPU-a", "GPU-b"]
    source.answer = SAMPLE
    await cluster.until(lambda: cluster.status()["conditions"][0]["status"] == "True")


async def test_a_driver_that_was_replaced_ends_the_process(keep):
    task = keep(FakeSource(DriverChanged("DriverChanged", "replaced")))
    with pytest.raises(DriverChanged):
        await task


async def test_nvml_that_hangs_stops_neither_the_allocations_nor_the_end(cluster, keep, pod_resources):
    class Hanging(FakeSource):
        answers = threading.Event()

        def sample(self) -> Sample:
            if self.samples:
                self.answers.wait(30)
            return super().sample()

    source = Hanging()
    task = keep(source, Periods(**{**vars(QUICK), "patience_s": 0.05}))
    await cluster.until(lambda: bool(cluster.writes) and cluster.status()["conditions"][0]["reason"] == "NoAnswer")
    cluster.pod("engine-0", "uid-1")
    pod_resources.give("GPU-a", to="engine-0")
    await cluster.until(lambda: cluster.device("GPU-a").get("allocatedTo") == {"podUID": "uid-1"})
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()
    source.answers.set()


async def test_the_kubelet_names_a_devices_resource_and_its_silence_does_not_remove_the_name(
    cluster, keep, pod_resources
):
    pod_resources.offered = {DeviceId(GPU_RESOURCE, "GPU-a"), DeviceId("nvidia.com/mig-1g.10gb", "GPU-b")}
    keep(FakeSource())
    await cluster.until(lambda: cluster.device("GPU-b").get("resourceName") == "nvidia.com/mig-1g.10gb")
    async with no_writes(cluster, pod_resources):
        pod_resources.offered = set()


async def test_a_gpu_that_the_kubelet_does_not_offer_is_quarantined_and_an_event_tells_so(cluster, keep, pod_resources):
    both = {DeviceId(GPU_RESOURCE, "GPU-a"), DeviceId(GPU_RESOURCE, "GPU-b")}
    pod_resources.offered = {DeviceId(GPU_RESOURCE, "GPU-a")}
    keep(FakeSource())
    await cluster.until(lambda: cluster.device("GPU-b").get("health", {}).get("reason") == "NotOffered")
    assert cluster.device("GPU-a")["health"]["state"] == "Healthy"
    pod_resources.offered = both
    await cluster.until(lambda: cluster.device("GPU-b")["health"]["state"] == "Healthy")
    await cluster.until(lambda: len(cluster.events) == 2)
    quarantined, healthy = cluster.events
    assert (quarantined["type"], quarantined["reason"], quarantined["action"]) == (
        "Warning",
        "NotOffered",
        "Quarantine",
    )
    assert quarantined["note"].startswith("the kubelet offers GPU-b to no pod: ")
    assert quarantined["regarding"] == {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "uid-of-node-1"}
    assert quarantined["metadata"]["namespace"] == "default"
    assert (healthy["type"], healthy["reason"]) == ("Normal", "GPUHealthy")
    assert healthy["note"] == "GPU 1 (GPU-b) may be used again: NotOffered is over"


async def test_a_gpu_that_went_from_the_device_plugin_to_claims_is_not_missed(cluster, keep, pod_resources):
    pod_resources.offered = {DeviceId(GPU_RESOURCE, "GPU-a"), DeviceId(GPU_RESOURCE, "GPU-b")}
    keep(FakeSource())
    await cluster.until(lambda: cluster.device("GPU-b").get("resourceName") == GPU_RESOURCE)
    cluster.published = [{"name": "gpu-1", "attributes": {"uuid": {"string": "GPU-b"}}}]
    pod_resources.offered = set()
    async with no_writes(cluster, pod_resources):
        pod_resources.offered = {DeviceId(GPU_RESOURCE, "GPU-a")}


async def test_a_profiler_that_may_not_write_events_goes_on_with_the_profile(cluster, keep, pod_resources, log):
    cluster.no_events = Forbidden(403, "Forbidden", "events is forbidden")
    pod_resources.offered = {DeviceId(GPU_RESOURCE, "GPU-a")}
    keep(FakeSource())
    await log.said("events is forbidden")
    pod_resources.offered = {DeviceId(GPU_RESOURCE, "GPU-b")}
    await cluster.until(lambda: cluster.device("GPU-a")["health"].get("reason") == "NotOffered")
    assert cluster.events == []


async def test_a_shared_gpu_is_told_before_a_pod_has_it(cluster, keep, pod_resources):
    pod_resources.offered = {DeviceId(GPU_RESOURCE, name) for name in ("GPU-a::0", "GPU-a::1", "GPU-b")}
    keep(FakeSource())
    await cluster.until(lambda: cluster.device("GPU-a").get("shares") == 2)
    assert "shares" not in cluster.device("GPU-b")


async def test_a_name_that_means_no_gpu_takes_them_all_and_the_condition_says_so(cluster, keep, pod_resources):
    cluster.pod("engine-0", "uid-1")
    pod_resources.give("slot-0", to="engine-0")
    keep(FakeSource())
    await cluster.until(lambda: len(cluster.uuids()) == 2)
    assert [cluster.device(uuid)["allocatedTo"] for uuid in cluster.uuids()] == [{"podUID": "default/engine-0"}] * 2
    assert (
        "names that are none of these devices' (nvidia.com/gpu slot-0)" in cluster.status()["conditions"][0]["message"]
    )
    pod_resources.now = Listed()
    del cluster.objects["Pod", "engine-0"]
    await cluster.until(lambda: all("allocatedTo" not in cluster.device(uuid) for uuid in cluster.uuids()))


async def test_memory_that_no_pod_explains_is_told_and_that_of_a_pod_is_not(cluster, keep, pod_resources):
    cluster.pod("engine-0", "uid-1")
    pod_resources.give("GPU-b", to="engine-0")
    big = 80 * 2**30
    devices = ({**A, "memoryBytes": big}, {**B, "memoryBytes": big})
    keep(FakeSource(Sample("NVML", devices, used_bytes={"GPU-a": 9 * 2**30, "GPU-b": 70 * 2**30})))
    await cluster.until(lambda: cluster.device("GPU-a").get("memoryHeldBytes") == 9 * 2**30)
    assert "memoryHeldBytes" not in cluster.device("GPU-b")
    assert "9 GiB of GPU 0 in use by no pod" in cluster.status()["conditions"][0]["message"]


async def test_a_gpu_that_is_being_measured_is_free_and_has_no_memory_of_a_stranger(cluster, keep, pod_resources):
    cluster.pod("measure-0", "uid-m")
    measuring = cluster.objects["Pod", "measure-0"]
    measuring["metadata"]["labels"] = {MEASURING_LABEL: "mark"}
    measuring["spec"]["priority"] = -1000
    pod_resources.give("GPU-a", to="measure-0")
    source = FakeSource(Sample("NVML", (A,), used_bytes={"GPU-a": 500}))
    keep(source)
    await cluster.until(lambda: bool(cluster.writes))
    await pod_resources.polls_pass(20)
    assert all("memoryHeldBytes" not in status["devices"][0] for status in cluster.writes)
    assert all("allocatedTo" not in status["devices"][0] for status in cluster.writes)


async def test_a_deleted_profile_begins_anew(cluster, keep):
    source = FakeSource(Sample("NVML", ({**A, "nvlinks": {"active": 4}},)))
    keep(source)
    await cluster.until(lambda: bool(cluster.writes))
    source.answer = Sample("NVML", ({**A, "nvlinks": {"active": 2}},))
    await cluster.until(lambda: cluster.device("GPU-a")["health"].get("reason") == "NVLinkDown")
    cluster.delete_profile()
    await cluster.until(lambda: cluster.device("GPU-a").get("nvlinks") == {"active": 2, "most": 2})
    assert cluster.device("GPU-a")["health"]["state"] == "Healthy"


async def test_what_a_measuring_pod_wrote_is_published_as_it_comes(cluster, keep, tmp_path):
    keep(FakeSource(), measurements=MeasurementFile(tmp_path))
    await cluster.until(lambda: bool(cluster.writes))
    assert "measurement" not in cluster.status()
    record = DeviceRecord("GPU-a", MeasuringTerms("580.1"), figures={"memoryBytesPerSecond": 5}, measured_at=NOON)
    document = MeasurementDocument(torch_version="2.11").with_device(record)
    write_document(tmp_path, document)
    await cluster.until(lambda: "measured" in cluster.device("GPU-a"))
    assert cluster.device("GPU-a")["measured"] == {"memoryBytesPerSecond": 5, "measuredAt": NOON}
    assert "measured" not in cluster.device("GPU-b")
    assert cluster.status()["measurement"] == {"on": "GPU", "torchVersion": "2.11", "allReduce": [], "failures": []}
    write_document(tmp_path, replace(document, finished="mark"))
    await cluster.until(lambda: cluster.status()["measurement"].get("finished") == "mark")


async def test_the_node_is_labelled_after_its_profile(cluster, keep):
    keep(FakeSource())
    await cluster.until(lambda: "labels" in cluster.objects["Node", "node-1"]["metadata"])
    assert cluster.writes
    labels = cluster.objects["Node", "node-1"]["metadata"]["labels"]
    assert labels["uellm.io/gpu.count"] == str(len(cluster.uuids()))


async def test_a_profiler_that_may_not_label_its_node_goes_on_with_the_profile(cluster, keep, pod_resources):
    apply, refused = cluster.apply, asyncio.Event()

    async def apply_all_but_nodes(obj, **more):
        if obj["kind"] == "Node":
            refused.set()
            raise Forbidden(403, "Forbidden", "nodes is forbidden")
        return await apply(obj, **more)

    cluster.apply = apply_all_but_nodes
    cluster.pod("engine-0", "uid-1")
    keep(FakeSource())
    await asyncio.wait_for(refused.wait(), 10)
    pod_resources.give("GPU-a", to="engine-0")
    await cluster.until(lambda: cluster.device("GPU-a").get("allocatedTo") == {"podUID": "uid-1"})


async def test_the_network_to_another_node_is_published_kept_over_a_restart_and_dropped_where_nobody_measures(
    cluster, keep, pod_resources
):
    other = {
        "metadata": {},
        "spec": {"nodeName": "node-2"},
        "status": {"phase": "Running", "podIPs": [{"ip": "127.0.0.1"}]},
    }
    pods = [other]

    async def profilers():
        return pods

    def network():
        return NetworkKeeper("node-1", sink, NetworkGate(), profilers)

    def published():
        return [entry["node"] for entry in cluster.status().get("network", ())]

    with closing(Sink("127.0.0.1", 0, NetworkGate())) as sink:
        keeping = keep(FakeSource(), network=network())
        await cluster.until(lambda: published() == ["node-2"])
        before = cluster.status()["network"]
        async with no_writes(cluster, pod_resources):
            pass
        keeping.cancel()
        pods.clear()
        keeping, writes = keep(FakeSource(), network=network()), len(cluster.writes)
        await cluster.until(lambda: len(cluster.writes) > writes)
        assert cluster.status()["network"] == before
        keeping.cancel()
        keep(FakeSource())
        await cluster.until(lambda: published() == [])


async def test_a_network_that_cannot_be_measured_is_in_the_condition(cluster, keep):
    other = {
        "metadata": {},
        "spec": {"nodeName": "node-2"},
        "status": {"phase": "Running", "podIPs": [{"ip": "127.0.0.1"}]},
    }

    async def profilers():
        return [other]

    with closing(Sink("127.0.0.1", 0, NetworkGate())) as sink, socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # nobody listens there
        closed = held.getsockname()[1]
        network = NetworkKeeper(
            "node-1", sink, NetworkGate(), profilers, port=closed, periods=NetworkPeriods(0.05, 0.01, 0.05)
        )
        keep(FakeSource(), network=network)
        await cluster.until(lambda: "not measured" in str(cluster.status().get("conditions")))
    condition = cluster.status()["conditions"][0]
    assert (condition["status"], condition["message"]) == (
        "True",
        f"2 devices observed; the network to node node-2 is not measured: 127.0.0.1 port {closed}: connection refused",
    )
