"""Every case gets one of its shapes, whether its node is measured or stands on the rates of its product."""

from __future__ import annotations

import re

import pytest

from plans.cases import CASES, Case
from plans.nodes import node
from uellm.models import read_architecture
from uellm.planner import Plan, plan
from uellm.planner.request import EngineRequest, PlanRequest


def made(case: Case, *, measured: bool, objective: str = "Efficiency") -> Plan:
    return plan(
        PlanRequest(
            service="default/model",
            architecture=read_architecture(case.config),
            max_model_len=case.max_model_len,
            nodes=(node(case.gpu, case.gpus, measured=measured),),
            classes=case.classes,
            workload=case.workload,
            objective=objective,
            engine=EngineRequest(own_image=case.own_image),
        )
    )


@pytest.mark.parametrize("measured", [True, False], ids=["measured", "product"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_plan_is_one_that_an_engineer_would_sign(case: Case, measured: bool) -> None:
    found = made(case, measured=measured)
    shape = (found.recommended_replicas or 1, found.tensor, found.pipeline)
    assert shape in case.accepted, case.why
    assert found.slo is None or found.slo.feasible


@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: case.name)
def test_the_objective_latency_never_takes_a_slower_plan_than_it_rejects(case: Case) -> None:
    found = made(case, measured=True, objective="Latency")
    told = re.compile(r"a request takes (\d+\.\d+) s instead of (\d+\.\d+) s")
    for entry in found.alternatives:
        if match := told.search(entry.rejected):
            assert float(match[1]) >= float(match[2]), entry.rejected
