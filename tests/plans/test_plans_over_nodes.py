"""Models that no node holds: plans over several nodes that an engineer would sign, and what is said without them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from plans.cases import CASES, CASES_OVER_NODES, Case
from plans.nodes import node
from uellm.errors import PlanError
from uellm.models import read_architecture
from uellm.planner import Plan, plan
from uellm.planner.request import PlanRequest


def asked(case: Case, *, measured: bool = True, nodes: int | None = None, multi_node: bool = True) -> PlanRequest:
    count = case.nodes if nodes is None else nodes
    return PlanRequest(
        service="default/model",
        architecture=read_architecture(case.config),
        max_model_len=case.max_model_len,
        nodes=tuple(node(case.gpu, case.gpus, measured=measured, name=f"node-{index}") for index in range(count)),
        classes=case.classes,
        workload=case.workload,
        multi_node=multi_node,
    )


def nodes_of_stages(found: Plan) -> list[str]:
    """The node of each stage; every stage is inside one node."""
    names = []
    for stage in found.stages:
        (name,) = {uuid.split("-GPU-")[0] for uuid in stage.devices}
        names.append(name)
    return names


@pytest.mark.parametrize("measured", [True, False], ids=["measured", "product"])
@pytest.mark.parametrize("case", CASES_OVER_NODES, ids=lambda case: case.name)
def test_a_model_that_no_node_holds_is_planned_as_an_engineer_would(case: Case, measured: bool) -> None:
    found = plan(asked(case, measured=measured))
    assert (found.recommended_replicas or 1, found.tensor, found.pipeline) in case.accepted, case.why
    assert found.nodes_per_replica == case.nodes
    assert found.slo is None or found.slo.feasible
    assert nodes_of_stages(found) == ["node-0", "node-1"]
    assert Counter(len(stage.devices) for stage in found.stages) == {case.gpus: 2}
    assert found.nodes == ("node-0", "node-1")
    assert any(
        "the network between nodes is not measured: 5 GB/s and 50 µs are assumed" in s for s in found.assumptions
    )


@pytest.mark.parametrize("case", CASES_OVER_NODES, ids=lambda case: case.name)
def test_such_a_plan_says_why_one_node_and_other_shapes_were_rejected(case: Case) -> None:
    found = plan(asked(case))
    one = found.alternatives[0]
    assert (one.gpus, one.tensor, one.pipeline) == (case.gpus, case.gpus, 1)
    assert one.nodes == ("node-0",)
    assert one.rejected.startswith("node-0: on each of the")
    assert one.rejected.endswith("are missing")
    less_tensor = [each for each in found.alternatives if each.gpus == found.gpus_per_replica]
    assert less_tensor, "shapes with as many GPUs"
    for each in less_tensor:
        assert "a request takes" in each.rejected or "TPOT" in each.rejected, each
        assert each.nodes == ("node-0", "node-1")


@pytest.mark.parametrize("case", CASES_OVER_NODES, ids=lambda case: case.name)
def test_without_leave_to_span_nodes_the_refusal_names_the_field_and_the_plan_that_it_would_give(case: Case) -> None:
    with pytest.raises(PlanError) as refused:
        plan(asked(case, multi_node=False))
    assert refused.value.reason == "NoFit"
    _, tensor, pipeline = case.accepted[0]
    wanted = f"it would fit with placement.multiNode Allowed, as tp{tensor} x pp{pipeline} over {case.nodes} nodes"
    assert wanted in str(refused.value)


@pytest.mark.parametrize("case", CASES_OVER_NODES, ids=lambda case: case.name)
def test_where_too_few_nodes_are_there_the_refusal_says_how_many_would_do(case: Case) -> None:
    with pytest.raises(PlanError, match="or with 2 nodes like node-0") as refused:
        plan(asked(case, nodes=1))
    assert refused.value.reason == "NoFit"


@pytest.mark.parametrize("case", CASES[::6], ids=lambda case: case.name)
def test_a_model_that_one_node_holds_within_its_targets_stays_on_one(case: Case) -> None:
    several = asked(case, nodes=2)
    found = plan(several)
    assert found.nodes_per_replica == 1
    assert found == plan(replace(several, multi_node=False))
