"""Which GPUs are quarantined, from samples of the driver to the profile's status, and how they recover."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.fake_nvml import SWITCH, FakeGPU, FakeNVML, board
from helpers.sizes import GIB
from uellm.profiler.nvml import NVMLSource
from uellm.profiler.status import Seen, compose, facts

T0, T1, T2 = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"


class World:
    """A node whose profile is written again and again, each time from what was written before."""

    def __init__(self, *gpus: FakeGPU) -> None:
        self.nvml = FakeNVML(*gpus)
        self.status: dict[str, Any] = {}

    def look(self, now: str = T0) -> World:
        self.status = compose(Seen(NVMLSource(self.nvml).sample()), self.status, now, observed_at=now)
        return self

    @property
    def health(self) -> dict[str, str]:
        """The reason of each quarantined GPU."""
        devices = self.status["devices"]
        return {one["uuid"]: one["health"]["reason"] for one in devices if one["health"]["state"] != "Healthy"}

    def message(self, uuid: str) -> str:
        return next(one for one in self.status["devices"] if one["uuid"] == uuid)["health"]["message"]


def pair(product: str, a: dict[str, Any] | None = None, b: dict[str, Any] | None = None) -> World:
    first = board(product, "GPU-a", bus_id="00000000:01:00.0", **(a or {}))
    return World(first, board(product, "GPU-b", bus_id="00000000:02:00.0", **(b or {})))


@pytest.mark.parametrize("product", ["A100", "H100", "L40S", "T4", "4090"])
def test_boards_as_they_leave_the_factory_are_healthy(product):
    assert pair(product).look().look(T1).health == {}


@pytest.mark.parametrize(
    ("product", "broken", "whole", "reason", "words"),
    [
        (
            "H100",
            {"uncorrectable": (2, 9)},
            {"uncorrectable": (0, 9)},
            "UncorrectableErrors",
            "GPU 1: 2 errors of its memory were not corrected since the last reset: drain the node and reset the GPU, "
            "or restart the node",
        ),
        (
            "A100",
            {"rows": (0, 1, 1, 0)},
            {"rows": (0, 1, 0, 0)},
            "RowRemapPending",
            "GPU 1 has a faulty row of memory, which a reset replaces: drain the node and reset the GPU, or restart "
            "the node",
        ),
        (
            "L40S",
            {"rows": (0, 8, 0, 1)},
            {"rows": (0, 0, 0, 0)},
            "RowRemapFailed",
            "GPU 1 has a faulty row of memory and no spare one left: replace the board",
        ),
        (
            "T4",
            {"retirement": 1},
            {"retirement": 0},
            "RetirementPending",
            "GPU 1 has a faulty page of memory, which a reset retires: drain the node and reset the GPU, or restart "
            "the node",
        ),
    ],
)
def test_faulty_memory_takes_a_gpu_out_until_it_is_repaired(product, broken, whole, reason, words):
    world = pair(product, b=broken).look()
    assert world.health == {"GPU-b": reason}
    assert world.message("GPU-b") == words
    assert world.status["devices"][1]["health"]["since"] == T0
    assert world.look(T1).status["devices"][1]["health"]["since"] == T0
    for name, value in whole.items():
        setattr(world.nvml.gpus[1], name, value)
    assert world.look(T2).health == {}
    assert world.status["devices"][1]["health"] == {"state": "Healthy", "since": T2}


def test_errors_of_an_earlier_time_are_no_fault_now():
    assert pair("H100", {"uncorrectable": (0, 40)}).look().health == {}


def test_a_replaced_row_outweighs_nothing_and_a_failed_one_comes_first():
    assert pair("H100", {"rows": (3, 2, 0, 0)}).look().health == {}
    assert pair("H100", {"rows": (0, 1, 1, 1), "uncorrectable": (1, 1)}).look().health == {"GPU-a": "RowRemapFailed"}


def test_slices_of_a_faulty_gpu_are_all_faulty():
    slices = [FakeGPU("MIG-1"), FakeGPU("MIG-2")]
    assert pair("A100", {"mig": slices, "rows": (0, 0, 1, 0)}).look().health == {
        "MIG-1": "RowRemapPending",
        "MIG-2": "RowRemapPending",
    }


NOT_STARTED, IN_PROGRESS, COMPLETED = (1, 0), (2, 0), (3, 0)


@pytest.mark.parametrize(
    ("fabric", "words"),
    [
        (IN_PROGRESS, "InProgress"),
        (NOT_STARTED, "NotStarted"),
        ((3, 9), "Completed, NVML's error 9"),
    ],
)
def test_a_fabric_that_stays_unready_takes_its_gpus_out_until_it_is_set_up(fabric, words):
    world = pair("H100", a={"fabric": fabric}, b={"fabric": fabric}).look()
    assert world.health == {}  # every boot passes through it
    assert world.look(T1).health == {"GPU-a": "FabricNotReady", "GPU-b": "FabricNotReady"}
    assert world.message("GPU-b") == (
        f"GPU 1: NVSwitches are not set up ({words}) since {T0}, so CUDA does not start: see that "
        "nvidia-fabricmanager runs on the node and has the driver's version"
    )
    for gpu in world.nvml.gpus:
        gpu.fabric = COMPLETED
    assert world.look(T2).health == {}
    assert world.status["devices"][0]["fabric"] == {"state": "Completed"}


def test_a_fabric_that_falls_back_is_given_the_time_of_a_boot_again():
    world = pair("H100", b={"fabric": IN_PROGRESS}).look()
    world.nvml.gpus[1].fabric = COMPLETED
    world.look("2026-01-01T00:00:50Z")
    world.nvml.gpus[1].fabric = IN_PROGRESS
    assert world.look(T1).health == {}
    assert world.look(T2).health == {"GPU-b": "FabricNotReady"}


@pytest.mark.parametrize("product", ["A100", "L40S"])
def test_gpus_without_a_fabric_manager_of_their_own_have_no_such_fault(product):
    """A100s tell no state, and other boards have no switch."""
    fabric = (0, 0) if product == "A100" else IN_PROGRESS
    world = pair(product, a={"fabric": fabric}).look().look(T2)
    assert world.health == {}
    assert "fabric" not in world.status["devices"][0]


def test_an_nvlink_below_that_of_the_twins_on_the_switch_takes_a_gpu_out():
    world = pair("H100", b={"nvlinks": dict.fromkeys(range(17), SWITCH), "down": frozenset({17})}).look()
    assert world.health == {"GPU-b": "NVLinkDown"}
    assert world.message("GPU-b") == (
        "GPU 1 has 17 NVLinks up, and others of its product on the switch 18: check the fabric manager, then reset the "
        "GPU"
    )


def test_an_nvlink_that_went_down_takes_a_gpu_out_until_it_is_up_again():
    bridge = dict.fromkeys(range(4), ("00000000:02:00.0", 0))
    world = World(board("L40S", "GPU-a", bus_id="00000000:01:00.0", nvlinks=bridge)).look()
    assert world.health == {}
    world.nvml.gpus[0].nvlinks, world.nvml.gpus[0].down = {0: bridge[0]}, frozenset({1, 2, 3})
    assert world.look(T1).health == {"GPU-a": "NVLinkDown"}
    assert "has 1 NVLinks up and had 4" in world.message("GPU-a")
    assert world.look(T2).health == {"GPU-a": "NVLinkDown"}
    world.nvml.gpus[0].nvlinks = bridge
    assert world.look(T2).health == {}


def test_gpus_without_a_bridge_are_no_worse_than_their_twins_with_one():
    a = {"nvlinks": dict.fromkeys(range(4), ("00000000:02:00.0", 0))}
    third = board("L40S", "GPU-c", bus_id="00000000:03:00.0", down=frozenset(range(4)))
    world = pair("L40S", a, {"nvlinks": {0: ("00000000:01:00.0", 0)}, "down": frozenset({1, 2, 3})})
    world.nvml.gpus.append(third)
    assert world.look().health == {}


def test_the_past_counts_only_at_the_same_place_and_for_the_whole_gpu():
    world = pair("H100").look()
    few = dict.fromkeys(range(4), SWITCH)
    for gpu in world.nvml.gpus:
        gpu.bus_id, gpu.nvlinks = gpu.bus_id.replace(":0", ":8"), few
    assert world.look(T1).health == {}
    world = pair("H100").look()
    for gpu in world.nvml.gpus:
        gpu.mig = [FakeGPU(f"MIG-{gpu.uuid}")]
    assert world.look(T1).health == {}


def test_a_deleted_profile_forgets_the_past():
    world = pair("H100").look()
    for gpu in world.nvml.gpus:
        gpu.nvlinks = dict.fromkeys(range(4), SWITCH)
    assert world.look(T1).health == {"GPU-a": "NVLinkDown", "GPU-b": "NVLinkDown"}
    world.status = {}
    assert world.look(T2).health == {}


def test_nvlinks_that_cannot_be_read_are_no_fault_and_the_past_is_kept():
    world = pair("H100").look()
    world.nvml.faults = {"nvmlDeviceGetNvLinkState": 999}
    assert world.look(T1).health == {}
    assert world.status["devices"][0]["nvlinks"] == {"most": 18}
    world.nvml.faults = {}
    world.nvml.gpus[0].nvlinks = dict.fromkeys(range(17), SWITCH)
    assert world.look(T2).health == {"GPU-a": "NVLinkDown"}
    assert "has 17 NVLinks up and had 18" in world.message("GPU-a")


@pytest.mark.parametrize("product", ["T4", "L40S", "4090"])
def test_an_idle_gpu_that_lowers_its_generation_is_healthy_beside_a_busy_twin(product):
    width, _, most, newest = board(product, "").pcie or (0, 0, 0, 0)
    world = pair(product, {"pcie": (width, newest, most, newest)}, {"pcie": (width, 1, most, newest)})
    assert world.look().health == {}
    before = world.status
    world.nvml.gpus[1].pcie = (width, newest, most, newest)
    assert facts(world.look(T1).status) == facts(before)  # and nothing is written for it


def test_half_the_lanes_of_a_twin_take_a_gpu_out():
    world = pair("L40S", b={"pcie": (8, 4, 16, 4)}).look()
    assert world.health == {"GPU-b": "PCIeDegraded"}
    assert world.message("GPU-b") == (
        "GPU 1 uses 8 PCIe lanes, and others of its product 16: reseat it and check its riser"
    )


def test_half_the_lanes_of_its_own_past_take_a_gpu_out_until_they_are_back():
    world = World(board("L40S", "GPU-a")).look()
    world.nvml.gpus[0].pcie = (8, 4, 16, 4)
    assert world.look(T1).health == {"GPU-a": "PCIeDegraded"}
    assert "uses 8 PCIe lanes and used 16" in world.message("GPU-a")
    world.nvml.gpus[0].pcie = (16, 4, 16, 4)
    assert world.look(T2).health == {}


def test_a_narrower_slot_is_no_fault():
    assert pair("4090", {"pcie": (16, 4, 16, 4)}, {"pcie": (4, 3, 4, 3)}).look().health == {}
    assert World(board("T4", "GPU-a", pcie=(8, 3, 16, 3))).look().health == {}


def test_a_gpu_that_the_driver_no_longer_lists_is_quarantined_until_it_is_back():
    world = pair("H100").look()
    gone = world.nvml.gpus.pop()
    assert world.look(T1).health == {"GPU-b": "GPUMissing"}
    assert world.message("GPU-b") == (
        "GPU 1 is no longer listed by the driver: see whether it is on the bus (lspci) and drain the node; if that is "
        "on purpose, delete the node's GPUNodeProfile and it will be written anew"
    )
    assert world.look(T2).health == {"GPU-b": "GPUMissing"}
    world.nvml.gpus.append(gone)
    assert world.look(T2).health == {}


def test_a_gpu_that_was_replaced_or_cut_into_slices_is_not_missed():
    world = pair("H100").look()
    world.nvml.gpus[1].uuid = "GPU-new"
    assert world.look(T1).health == {}
    assert [one["uuid"] for one in world.status["devices"]] == ["GPU-a", "GPU-new"]
    world.nvml.gpus[1].mig = []  # cut, with no slices yet
    assert world.look(T2).health == {}
    assert [one["uuid"] for one in world.status["devices"]] == ["GPU-a"]


def test_more_gpus_than_a_profile_holds_drop_the_missing_ones():
    world = World()
    for first in (0, 64, 128):
        world.nvml.gpus = [
            FakeGPU(f"GPU-{index}", bus_id=f"00000000:{index:02X}:00.0") for index in range(first, first + 64)
        ]
        world.look()
    assert len(world.status["devices"]) == 128
    healthy = {one["uuid"] for one in world.status["devices"]} - set(world.health)
    assert healthy == {f"GPU-{index}" for index in range(128, 192)}
    assert world.status["conditions"][0]["message"] == "64 devices observed"


def sliced(boards: int) -> World:
    """A node of A100s, each cut into seven slices."""
    return World(
        *(
            board("A100", f"GPU-{index}", bus_id=f"00000000:{index:02X}:00.0", mig=slices(index))
            for index in range(boards)
        )
    ).look()


def slices(index: int) -> list[FakeGPU]:
    return [FakeGPU(f"MIG-{index}-{each}", total=5 * GIB, free=5 * GIB) for each in range(7)]


def test_every_slice_of_sixteen_gpus_is_listed():
    status = sliced(16).status
    assert len(status["devices"]) == 112
    assert status["conditions"][0]["message"] == "112 devices observed"


def test_slices_beyond_what_a_profile_holds_are_told_of():
    status = sliced(19).status
    assert len(status["devices"]) == 128
    assert status["conditions"][0]["message"] == (
        "133 devices observed; a profile lists 128 devices, so no plan uses the other 5: cut the GPUs into fewer slices"
    )
