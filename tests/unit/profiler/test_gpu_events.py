"""Events on the Node about the health of its GPUs."""

from __future__ import annotations

from datetime import UTC, datetime

from uellm.profiler.events import event, turns

NODE = {"metadata": {"name": "node-1", "uid": "uid-1"}}
NOW = datetime(2026, 1, 1, 12, 30, 0, 250, tzinfo=UTC)


def status(reason: str = "", message: str = "it is broken") -> dict:
    health = {"state": "Quarantined", "reason": reason, "message": message} if reason else {"state": "Healthy"}
    return {"devices": [{"index": 3, "uuid": "GPU-a", "health": health}]}


def test_a_fault_its_change_and_its_end_are_told_and_nothing_else():
    assert list(turns({}, status("NVLinkDown"))) == [("NVLinkDown", "it is broken")]
    assert list(turns(status(), status("NVLinkDown"))) == [("NVLinkDown", "it is broken")]
    assert list(turns(status("NVLinkDown"), status("NVLinkDown", "still"))) == []
    assert [each.reason for each in turns(status("NVLinkDown"), status("GPULost"))] == ["GPULost"]
    assert list(turns(status("GPULost"), status())) == [
        ("GPUHealthy", "GPU 3 (GPU-a) may be used again: GPULost is over")
    ]
    assert list(turns(status(), status())) == []
    assert list(turns({}, status())) == []


def test_an_event_is_about_the_node_and_fits():
    [turn] = turns({}, status("GPULost", "ä" * 2000))
    made = event(turn, NODE, NOW)
    assert made["regarding"] == {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "uid-1"}
    assert made["eventTime"] == "2026-01-01T12:30:00.000250Z"
    assert (made["type"], made["action"], made["metadata"]["namespace"]) == ("Warning", "Quarantine", "default")
    assert len(made["note"].encode()) == 1024
