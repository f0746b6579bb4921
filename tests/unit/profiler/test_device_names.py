"""The names by which device plugins hand GPUs to the kubelet, and what they say about each GPU."""

from __future__ import annotations

import pytest

from helpers.fake_nvml import FakeGPU, FakeNVML, board
from uellm.profiler.allocations import allocations
from uellm.profiler.device_names import Names, is_gpu_resource, unknown_names
from uellm.profiler.nvml import NVMLSource
from uellm.profiler.offered import KubeletOffer
from uellm.profiler.podresources import DeviceId, Listed, PodKey
from uellm.profiler.sample import Sample

A = "GPU-8f6c8a1e-31c4-5c4e-9c1f-111111111111"
B = "GPU-8f6c8a1e-31c4-5c4e-9c1f-222222222222"
CUT = "GPU-8f6c8a1e-31c4-5c4e-9c1f-333333333333"
MIG_1 = "MIG-0d2a3f6c-6a2b-5b6f-8d3a-000000000001"
MIG_2 = "MIG-0d2a3f6c-6a2b-5b6f-8d3a-000000000002"
ENGINE, OTHER = PodKey("default", "engine-0"), PodKey("other", "job")


@pytest.fixture
def sample() -> Sample:
    """Two GPUs whose device files are numbered the other way round, and one in slices."""
    slices = [FakeGPU(MIG_1, instance=1), FakeGPU(MIG_2, instance=5)]
    return NVMLSource(
        FakeNVML(
            board("A100", A, bus_id="00000000:01:00.0", minor=1),
            board("A100", B, bus_id="00000000:02:00.0", minor=0),
            board("A100", CUT, bus_id="00000000:03:00.0", minor=2, mig=slices),
        )
    ).sample()


def gpus(*names: str, resource: str = "nvidia.com/gpu") -> set[DeviceId]:
    return {DeviceId(resource, name) for name in names}


def listed(**pods: set[DeviceId]) -> Listed:
    keys = {"engine": ENGINE, "other": OTHER}
    devices = {device: keys[name] for name, ids in pods.items() for device in ids}
    return Listed(devices, frozenset(keys.values()))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        (A, (A,)),
        (f"{A}::0", (A,)),
        (f"{A}::17", (A,)),
        (f"{B}-17", (B,)),
        (f"{B}-_-3", (B,)),
        ("0", (A,)),
        ("1", (B,)),
        ("nvidia0", (B,)),
        ("nvidia1", (A,)),
        ("nvidia1/vgpu3", (A,)),
        ("0000:02:00.0", (B,)),
        ("00000000:02:00.0", (B,)),
        (MIG_1, (MIG_1,)),
        (f"{MIG_2}::1", (MIG_2,)),
        ("nvidia2/gi5", (MIG_2,)),
        ("nvidia2/gi5/vgpu0", (MIG_2,)),
        ("nvidia2/gi9", (MIG_1, MIG_2)),
        ("nvidia2", (MIG_1, MIG_2)),
        ("2", (MIG_1, MIG_2)),
        (CUT, (MIG_1, MIG_2)),
        ("nvidia12", ()),
        ("3", ()),
        ("00", ()),
        ("0:1", ()),
        (A[:-1], ()),
        (f"{A}0", ()),
        ("", ()),
        ("vgpu-7", ()),
    ],
)
def test_each_naming_scheme_means_its_device(sample, name, meant):
    assert Names(sample).devices(name) == meant


@pytest.mark.parametrize(
    ("driver", "name", "meant"),
    [
        # NVIDIA's driver numbers device files, not the driver's indices.
        ("gpu.nvidia.com", "gpu-0", {B}),
        ("gpu.nvidia.com", "gpu-1", {A}),
        ("gpu.nvidia.com", "gpu-2", {MIG_1, MIG_2}),
        ("gpu.nvidia.com", "gpu-2-mig-1g10gb-19-0", {MIG_1, MIG_2}),
        # Names that tell nothing may mean any GPU.
        ("gpu.nvidia.com", "gpu-9", {A, B, MIG_1, MIG_2}),
        ("gpu.nvidia.com", "gpu-vfio-0", {A, B, MIG_1, MIG_2}),
        ("gpu.example.com", "gpu-0", {A, B, MIG_1, MIG_2}),
        # Other things than NVIDIA's GPUs.
        ("compute-domain.nvidia.com", "channel-0", set()),
        ("gpu.intel.com", "0000-03-00-0", set()),
        ("gpu.amd.com", "gpu-1-129", set()),
        ("dra.cpu", "cpudev0", set()),
    ],
)
def test_a_claim_s_devices_are_taken(sample, driver, name, meant):
    held = Names(sample).held(listed(engine={DeviceId(driver, name)}))
    assert {*held.devices, *held.unclear} == meant


def test_without_numbers_of_device_files_their_names_mean_no_device():
    nvml = FakeNVML(FakeGPU(A))
    nvml.faults = {"nvmlDeviceGetMinorNumber": 3}
    assert Names(NVMLSource(nvml).sample()).devices("nvidia0") == ()


def test_the_device_files_of_described_gpus_are_numbered_by_index():
    described = Sample("Simulated", ({"uuid": "GPU-a", "index": 4},))
    assert Names(described).devices("nvidia4") == ("GPU-a",)


@pytest.mark.parametrize(
    ("resource", "counts"),
    [
        ("nvidia.com/gpu", True),
        ("nvidia.com/gpu.shared", True),
        ("nvidia.com/mig-1g.10gb", True),
        ("nvidia.com/a100", False),
        ("nvidia.com/switchdev", False),
        ("volcano.sh/vgpu-number", True),
        ("example.com/big-gpu", True),
        ("nvidia.com/hostdev", False),
        ("nvidia.com/rdma_shared_gpu", False),
        ("rdma/hca_shared", False),
        ("amd.com/gpu", False),
        ("gpu.intel.com/i915", False),
        ("devices.kubevirt.io/kvm", False),
        ("", False),
    ],
)
def test_resources_of_other_devices_are_not_gpus(resource, counts):
    assert is_gpu_resource(resource) is counts


def test_pods_have_the_devices_that_their_names_mean(sample):
    held = Names(sample).held(listed(engine=gpus("nvidia1", "nvidia2/gi1"), other=gpus(f"{B}-4")))
    assert held.devices == {A: ENGINE, MIG_1: ENGINE, B: OTHER}
    assert (held.unmatched, held.unclear) == ((), ())


def test_a_share_of_a_gpu_takes_the_gpu_for_the_first_pod_by_name(sample):
    held = Names(sample).held(listed(other=gpus(f"{A}::0"), engine=gpus(f"{A}::1")))
    assert held.devices == {A: ENGINE}


def test_a_network_card_takes_no_gpu(sample):
    held = Names(sample).held(
        listed(engine={DeviceId("rdma/hca_shared", "0"), DeviceId("nvidia.com/hostdev", "port-1")})
    )
    assert (held.devices, held.unmatched) == ({}, ())


@pytest.mark.parametrize(
    "resource", ["nvidia.com/switchdev", "nvidia.com/cx7_vf", "nvidia.com/bf3_p0", "nvidia.com/ens3f0"]
)
@pytest.mark.parametrize("name", ["0", "7", "port-1", "0000:3b:00.2"])
def test_a_network_card_under_nvidia_s_name_takes_no_gpu_and_offers_none(sample, resource, name):
    names, card = Names(sample), DeviceId(resource, name)
    held = names.held(listed(engine={card}))
    assert (held.devices, held.unmatched, held.unclear) == ({}, (), ())
    assert names.offered({card, *gpus(A)}).keys() == {A}
    assert names.unknown({card}) == ()


def test_an_address_that_is_none_of_the_gpus_takes_no_gpu_under_whatever_resource(sample):
    card = gpus("0000:3b:00.2", resource="nvidia.com/gpudirect")
    assert Names(sample).held(listed(engine=card)).unmatched == ()
    unplaced = Sample("NVML", ({"uuid": A, "index": 0},))
    assert Names(unplaced).held(listed(engine=card)).unclear == (A,)


@pytest.mark.parametrize("name", [A, f"{A}::1", "nvidia1", "nvidia1/vgpu2", "00000000:01:00.0"])
def test_renamed_gpus_are_known_by_names_that_tell_by_themselves(sample, name):
    renamed = gpus(name, resource="nvidia.com/a100")
    assert Names(sample).held(listed(engine=renamed)).devices == {A: ENGINE}
    assert Names(sample).offered(renamed).keys() == {A}


def test_a_uuid_means_its_gpu_under_whatever_resource(sample):
    assert Names(sample).held(listed(engine={DeviceId("example.com/fast", A)})).devices == {A: ENGINE}


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "nvidia.com/gpu.shared"])
def test_a_name_that_means_no_device_takes_every_gpu_that_nobody_is_known_to_have(sample, resource):
    names = Names(sample)
    kubelet = listed(engine=gpus("slot-7", resource=resource), other=gpus(A))
    pods = [
        {"metadata": {"namespace": key.namespace, "name": key.name, "uid": uid}, "status": {"phase": "Running"}}
        for key, uid in ((ENGINE, "uid-1"), (OTHER, "uid-2"))
    ]
    found = allocations(names.held(kubelet), pods, {})
    # By name: by its UID, the others would be free to the pod's own service.
    assert found.pod_uids == {A: "uid-2", **dict.fromkeys((B, MIG_1, MIG_2), "default/engine-0")}
    assert found.settled

    silent = allocations(names.held(Listed()), pods, found.pod_uids)
    assert silent.pod_uids == found.pod_uids
    ended = [{**pod, "status": {"phase": "Succeeded"}} if pod["metadata"]["uid"] == "uid-1" else pod for pod in pods]
    assert allocations(names.held(kubelet), ended, found.pod_uids).pod_uids == {A: "uid-2"}


LOST = {"uuid": "GPU-8f6c8a1e-31c4-5c4e-9c1f-444444444444", "index": 3, "pciBusId": "0000:04:00.0"}


@pytest.mark.parametrize(
    ("resource", "name"),
    [
        ("nvidia.com/gpu", LOST["uuid"]),
        ("nvidia.com/gpu", f"{LOST['uuid']}::2"),
        ("nvidia.com/gpu", "00000000:04:00.0"),
        ("nvidia.com/gpu", "3"),
        ("nvidia.com/gpu", "nvidia3"),
        ("nvidia.com/gpu", "nvidia3/gi2"),
        ("gpu.nvidia.com", "gpu-3"),
    ],
)
def test_a_pod_keeps_a_lost_gpu_and_the_others_stay_free(sample, resource, name):
    listed_id = DeviceId(resource, name)
    names = Names(sample, [LOST])
    held = names.held(listed(engine={listed_id}))
    assert (held.devices, held.unmatched, held.unclear) == ({LOST["uuid"]: ENGINE}, (), ())
    assert names.unknown({listed_id}) == ()


LOST_TOO = {"uuid": "GPU-8f6c8a1e-31c4-5c4e-9c1f-555555555555", "index": 4, "pciBusId": "0000:05:00.0"}


@pytest.mark.parametrize("lost", [[LOST, LOST_TOO], [LOST_TOO, LOST]])
@pytest.mark.parametrize(
    ("resource", "first", "second"),
    [
        ("nvidia.com/gpu", "nvidia5", "nvidia12"),
        ("nvidia.com/gpu", "nvidia5/vgpu0", "nvidia12/vgpu3"),
        ("gpu.nvidia.com", "gpu-5", "gpu-12"),
    ],
)
def test_two_pods_on_two_lost_gpus_have_one_each(sample, lost, resource, first, second):
    ids = listed(engine=gpus(first, resource=resource), other=gpus(second, resource=resource))
    held = Names(sample, lost).held(ids)
    assert held.devices == {LOST["uuid"]: ENGINE, LOST_TOO["uuid"]: OTHER}
    assert (held.unmatched, held.unclear) == ((), ())


def test_the_slices_of_a_lost_gpu_are_held_together_and_one_pod_may_have_two_lost_gpus(sample):
    slices = [{**LOST, "uuid": uuid, "mig": True} for uuid in ("MIG-a", "MIG-b")]
    names = Names(sample, [*slices, LOST_TOO])
    held = names.held(listed(engine=gpus("nvidia5/gi1"), other=gpus("nvidia6")))
    assert held.devices == {"MIG-a": ENGINE, "MIG-b": ENGINE, LOST_TOO["uuid"]: OTHER}
    both = names.held(listed(other=gpus("nvidia5", "nvidia6")))
    assert both.devices == dict.fromkeys(("MIG-a", "MIG-b", LOST_TOO["uuid"]), OTHER)


def test_a_file_more_than_there_are_lost_gpus_means_one_of_them_too(sample):
    held = Names(sample, [LOST]).held(listed(engine=gpus("nvidia5"), other=gpus("nvidia6")))
    assert held.devices == {LOST["uuid"]: ENGINE}


def test_an_index_that_another_gpu_has_taken_over_means_that_one(sample):
    assert Names(sample, [{**LOST, "index": 1}]).devices("1") == (B,)


def test_the_uuid_of_a_gpu_that_nobody_remembers_takes_no_other(sample):
    held = Names(sample).held(listed(engine=gpus(LOST["uuid"], f"{LOST['uuid']}::2", f"MIG-{LOST['uuid'][4:]}")))
    assert (held.devices, held.unmatched, held.unclear) == ({}, (), ())


def test_a_slice_s_name_of_older_drivers_takes_no_other(sample):
    named = gpus(f"MIG-{LOST['uuid']}/7/0", f"MIG-{LOST['uuid']}/7/0::1")
    held = Names(sample).held(listed(engine=named))
    assert (held.devices, held.unmatched, held.unclear) == ({}, (), ())


def test_without_numbers_of_device_files_a_lost_gpu_s_may_be_any():
    nvml = FakeNVML(FakeGPU(A))
    nvml.faults = {"nvmlDeviceGetMinorNumber": 3}
    assert Names(NVMLSource(nvml).sample(), [LOST]).unknown(gpus("nvidia3")) == (DeviceId("nvidia.com/gpu", "nvidia3"),)


def test_names_that_mean_no_device_are_told_in_a_sentence(sample):
    assert unknown_names(Names(sample).unknown(gpus(A, "slot-1", "slot-2", "slot-3"))) == (
        "pods have GPUs by names that are none of these devices' (nvidia.com/gpu slot-1, nvidia.com/gpu slot-2 and 1 "
        "more device): every device that no other pod has counts as taken"
    )
    assert unknown_names(()) == ""


@pytest.fixture
def offer(sample):
    """`offer(ids, now_s)`: what is known after the kubelet has offered these."""
    offered, names = KubeletOffer(), Names(sample)
    present = [device["uuid"] for device in sample.devices]

    def answer(ids: set[DeviceId], now_s: float = 0.0) -> KubeletOffer:
        offered.update(frozenset(ids), names, present, now_s)
        return offered

    return answer


EVERYTHING = gpus(A, B, MIG_1, MIG_2)


def test_sharing_is_known_before_a_pod_exists(offer):
    ids = {*gpus(f"{A}::0", f"{A}::1", "nvidia0/vgpu0", "nvidia0/vgpu1", "nvidia0/vgpu2"), *gpus(MIG_1, MIG_2)}
    assert offer(ids).shares == {A: 2, B: 3, MIG_1: 1, MIG_2: 1}


def test_a_gpu_that_two_plugins_offer_is_not_shared(offer):
    assert offer({*EVERYTHING, *gpus(A, resource="volcano.sh/vgpu-number")}).shares[A] == 1


def test_each_device_has_the_resource_that_the_kubelet_counts_it_under(offer):
    ids = {*gpus(f"{A}::0", resource="nvidia.com/gpu.shared"), *gpus(MIG_1, MIG_2, resource="nvidia.com/mig-1g.10gb")}
    assert offer(ids).resource_names == {
        A: "nvidia.com/gpu.shared",
        MIG_1: "nvidia.com/mig-1g.10gb",
        MIG_2: "nvidia.com/mig-1g.10gb",
    }


def test_a_gpu_that_its_plugin_calls_unhealthy_is_not_offered_until_it_is_healthy(offer):
    assert offer(EVERYTHING).faults == {}
    assert offer(EVERYTHING - gpus(B)).faults == {}  # the plugin may only just have begun
    assert offer(EVERYTHING - gpus(B)).faults == {
        B: (
            "NotOffered",
            f"the kubelet offers {B} to no pod: its device plugin calls it unhealthy (for Xid errors, say) or does not "
            "run: see the log of the device plugin on the node",
        )
    }
    assert offer(set()).faults.keys() == {B}
    assert offer(EVERYTHING).faults == {}
    assert offer(EVERYTHING - gpus(B)).faults == {}


def test_a_plugin_that_is_replaced_takes_no_gpu_out_and_one_that_stays_away_takes_all(offer):
    offer(EVERYTHING, 0.0)
    assert offer(set(), 59.0).faults == {}
    assert offer(set(), 61.0).faults.keys() == {A, B, MIG_1, MIG_2}
    assert offer(set(), 61.0).resource_names.keys() == {A, B, MIG_1, MIG_2}
    assert offer(EVERYTHING, 62.0).faults == {}


def test_without_a_device_plugin_nothing_is_missed(offer):
    assert offer(set(), 0.0).faults == {}
    assert offer(set(), 10_000.0).faults == {}
    assert offer({DeviceId("rdma/hca", "1")}, 10_000.0).faults == {}


def test_gpus_that_a_dra_driver_hands_out_are_not_missed(sample):
    offered = KubeletOffer()
    names = Names(sample)
    offered.update(EVERYTHING, names, [A, B], 0.0)
    missing = offered.missing(set(), names, [A, B], 61.0)
    assert set(missing) == {A, B}
    offered.judge(missing, {B})
    assert offered.faults.keys() == {A}
    assert B not in offered.resource_names
    # It is not asked about again.
    assert set(offered.missing(set(), names, [A, B], 10_000.0)) == {A}


def test_gpus_by_names_that_mean_no_device_are_not_missed(offer):
    assert offer(gpus(A, "slot-1")).faults == {}


def test_more_unknown_names_than_gpus_are_shares_of_them(sample):
    offered = KubeletOffer()
    ids = {*gpus(A), *(DeviceId("example.com/gpu", f"vgpu-{index}") for index in range(4))}
    offered.update(ids, Names(sample), [A, B, MIG_1], 0.0)
    assert offered.shares == {A: 1, B: 2, MIG_1: 2}
    assert offered.resource_names == {A: "nvidia.com/gpu", B: "example.com/gpu", MIG_1: "example.com/gpu"}
    offered.update({*gpus(A, "slot-1", "slot-2")}, Names(sample), [A, B, MIG_1], 1.0)
    assert offered.shares == {A: 1, B: 1, MIG_1: 1}


def test_a_new_process_knows_what_the_last_one_missed(sample):
    offered = KubeletOffer()
    offered.adopt({"devices": [{"uuid": A, "health": {"state": "Quarantined", "reason": "NotOffered"}}, {"uuid": B}]})
    offered.update(frozenset(), Names(sample), [A, B], 0.0)
    assert offered.faults.keys() == {A}
