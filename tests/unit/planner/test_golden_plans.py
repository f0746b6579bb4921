"""The plans of generated services against the record of an earlier planner (tests/golden)."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from golden.compare import differences
from golden.outputs import outputs
from golden.record import recorded
from golden.services import CASES, cases

PARTS = 8


@pytest.mark.parametrize("part", range(PARTS))
def test_plans_and_manifests_are_those_on_record(part: int) -> None:
    changed = {
        case.name: lines
        for case in cases()[part::PARTS]
        if (lines := differences(recorded()[case.name], outputs(case)))
    }
    shown = "\n".join(f"{name}:\n  " + "\n  ".join(lines) for name, lines in list(changed.items())[:3])
    assert not changed, f"{len(changed)} of {CASES // PARTS} plans differ:\n{shown}"


def test_the_record_holds_plans_and_refusals_of_every_kind() -> None:
    found = recorded()
    plans = [entry["plan"] for entry in found.values() if "plan" in entry]
    reasons = {entry["error"]["reason"] for entry in found.values() if "error" in entry}
    assert len(found) == CASES >= 200
    assert len(plans) >= 110
    assert reasons == {"NoFit", "InvalidOverride", "NeedsExactDevices"}
    assert {plan["tensor"] for plan in plans} >= {1, 2, 4}
    assert {plan["pipeline"] for plan in plans} >= {1, 2, 3, 4}
    assert {plan["slo"]["feasible"] for plan in plans if "slo" in plan} == {True, False}
    assert any("slo" not in plan for plan in plans)
    assert any(len(plan["nodes"]) > 1 for plan in plans)


@pytest.fixture
def case() -> dict[str, Any]:
    """A recorded plan of several stages."""
    return copy.deepcopy(
        next(entry for entry in recorded().values() if "plan" in entry and entry["plan"]["pipeline"] == 2)
    )


def test_another_figure_is_a_difference(case: dict[str, Any]) -> None:
    changed = copy.deepcopy(case)
    changed["plan"]["kvCacheBytes"] += 1
    assert any("kvCacheBytes" in line for line in differences(case, changed))


def test_another_sentence_is_no_difference(case: dict[str, Any]) -> None:
    changed = copy.deepcopy(case)
    changed["plan"]["assumptions"][0] = "another sentence"
    assert not differences(case, changed)


def test_another_placement_is_a_difference_unless_it_costs_the_same(case: dict[str, Any]) -> None:
    changed = copy.deepcopy(case)
    changed["plan"]["layers"].reverse()
    changed["plan"]["layers"][0] += 1
    assert not differences(case, changed)
    changed["predicted"] = [0.5, *changed["predicted"][1:]]
    assert differences(case, changed)
