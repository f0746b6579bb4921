"""The step times that the sidecar assumes before it has measured any."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from uellm.planner import plan
from uellm.planner.cost.predict import predict
from uellm.planner.handover.sidecar_prior import step_time
from uellm.planner.request import Overrides
from uellm.step_time import StepTime


def close(found: StepTime, true: StepTime) -> bool:
    return found.to_dict() == pytest.approx(true.to_dict(), rel=0.06)


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_the_prior_is_the_plans_step_time_for_the_whole_replica(build, monkeypatch, tensor, pipeline):
    request = build.request(
        build.all_links(build.node("a", "H100 H100 H100 H100")),
        overrides=Overrides(tensor=tensor, pipeline=pipeline),
        workload=build.workload,
        classes=build.chat,
    )
    seen = {}

    def watched(loads, links, costs, demand, kv_tokens, sizes):
        found = predict(loads, links, costs, demand, kv_tokens, sizes)
        seen[tuple(device.uuid for load in loads for device in load.devices)] = found
        return found

    monkeypatch.setattr("uellm.planner.search.candidate.predict", watched)
    made = plan(request)
    found = step_time(made, request)
    assert found is not None
    assert close(found, seen[made.devices].step)


def test_other_services_on_the_nodes_change_nothing(build):
    request = build.request(build.node("a", "H100 H100"))
    made = plan(request)
    taken = replace(request, nodes=(build.offer(build.node("a", "H100 H100"), taken=(0, 1)),))
    assert step_time(made, taken) == step_time(made, request) is not None


def test_missing_unmeasured_and_simulated_devices_give_no_prior(build):
    made = plan(build.request(build.node("a", "H100")))
    assert step_time(made, build.request(build.node("a", "H100"))) is not None
    assert step_time(made, build.request(build.node("b", "H100"))) is None
    assert step_time(made, build.request(build.node("a", [build.unmeasured("a", 0, "H100")]))) is None
    assert step_time(made, build.request(build.node("a", "H100", source="Simulated"))) is None
    assert step_time(replace(made, stages=()), build.request(build.node("a", "H100"))) is None


def test_rounding_is_at_most_a_twentieth_and_hides_measurement_noise():
    random, same = Random(1), 0
    for _ in range(500):
        value = 10 ** random.uniform(-9, 0)
        step = StepTime(value, value, 0.0, value, value)
        rounded = step.rounded()
        assert close(rounded, step)
        assert rounded.rounded() == rounded
        again = value * random.uniform(0.99, 1.01)
        same += rounded == StepTime(again, again, 0.0, again, again).rounded()
    assert same > 400
