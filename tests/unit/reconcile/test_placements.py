from __future__ import annotations

from uellm.reconcile.pods.placements import placements, read_report, verified


def report(uuids=("g0", "g1"), layers=(5, 3), **fields):
    devices = [{"uuid": uuid, "product": "x", "memoryBytes": 1} for uuid in uuids]
    shape = {"tensor": 1, "pipeline": 2}
    return read_report("0", {"devices": devices, "layers": list(layers), **shape, **fields})


def placed(make, reports, *pods, nodes=()):
    return placements(make.plan(), pods, reports, nodes)


def test_a_pod_on_the_planned_devices_matches(make):
    (first,) = placed(make, {"uid-a": report()}, make.pod("a"))
    assert first.to_dict() == {
        "pod": "a",
        "node": "node-1",
        "planned": ["g0", "g1"],
        "actual": ["g0", "g1"],
        "layers": [5, 3],
        "matchesPlan": "True",
    }
    assert verified([first])[1:3] == ("True", "AsPlanned")


def test_other_devices_or_another_order_do_not_match_but_are_not_an_error(make):
    (first,) = placed(make, {"uid-a": report(uuids=("g1", "g2"), layers=(3, 5))}, make.pod("a"))
    condition = verified([first])
    assert first.matches == "False"
    assert condition[1:3] == ("True", "OtherDevices")
    assert "g1,g2 with layers 3,5 instead of g0,g1" in condition.message


def test_replicas_after_the_first_only_need_the_planned_shape(make):
    pods = make.pod("a"), make.pod("b")
    other_devices = report(uuids=("g7", "g8"), layers=(4, 4))
    _, second = placed(make, {"uid-a": report(), "uid-b": other_devices}, *pods)
    assert (second.pod, second.planned, second.matches) == ("b", (), "True")
    _, second = placed(make, {"uid-a": report(), "uid-b": report(uuids=("g7",))}, *pods)
    assert second.matches == "False"


def test_without_a_report_the_profile_gives_the_devices_and_the_match_is_unknown(make):
    nodes = [make.profiled_node("node-1", None, "uid-a", "uid-a")]
    (first,) = placed(make, {}, make.pod("a"), nodes=nodes)
    assert (first.actual, first.layers, first.matches) == (("node-1-g1", "node-1-g2"), (), "Unknown")
    assert verified([first])[1:3] == ("Unknown", "NoReport")


def test_a_launcher_that_found_no_placement_fails_the_condition_with_its_reason(make):
    failed = read_report("0", {"error": {"reason": "WrongDeviceCount", "message": "the container has 1 GPU"}})
    condition = verified(placed(make, {"uid-a": failed}, make.pod("a")))
    assert condition[1:] == ("False", "WrongDeviceCount", "pod a: the container has 1 GPU")


def test_pods_without_a_node_have_no_placement(make):
    assert placed(make, {}, make.pod("a", node=None)) == []
    assert verified([])[1:3] == ("Unknown", "NoReport")


def test_invalid_parts_of_a_report_are_ignored():
    nonsense = {
        "devices": [{"uuid": "ok-1"}, "x", {"uuid": 5}, {"uuid": "bad uuid!"}, {"uuid": "u" * 500}],
        "layers": ["3", -1, 4, 10**9],
        "tensor": "two",
        "pipeline": None,
    }
    read = read_report("0", nonsense)
    assert (read.uuids, read.layers, read.tensor, read.pipeline) == (("ok-1",), (0, 0, 4, 0), 0, 0)
    assert read_report("0", {"devices": "all", "layers": {"a": 1}}).uuids == ()
    assert read_report("0", {"error": {"reason": "no reason!", "message": None}}).error == ("LauncherFailed", "")


def test_a_report_of_another_version_is_no_placement_and_says_so():
    read = read_report("0", {"version": 2, "devices": [{"uuid": "GPU-a"}]})
    assert read.error == (
        "UnreadableReport",
        "the placement report cannot be read: it has version 2, and this release reads version 1",
    )
