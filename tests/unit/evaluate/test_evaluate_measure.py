from __future__ import annotations

from typing import Any

import pytest

from uellm.errors import BadInput
from uellm.evaluate.chunk import chunk_for
from uellm.evaluate.measure import jain, measure, percentiles
from uellm.evaluate.policies import find_policy, first_token_deadline_s, policy_names
from uellm.evaluate.queue import Scenario, believed, cells
from uellm.evaluate.replay import Fate, ReplayResult
from uellm.evaluate.scenario import Classes, Job, RequestClass
from uellm.evaluate.table import duration, table
from uellm.evaluate.traces import Trace, TraceRequest
from uellm.evaluate.vllm_scheduler import PRIORITY
from uellm.planner.cost.engine_file import EngineFile
from uellm.sidecar.scheduling import Lengths, Targets
from uellm.step_time import StepTime

CHAT = RequestClass(Targets("chat", ttft_s=1.0, tpot_s=0.06), 0.5)
TASK = RequestClass(Targets("task", e2e_s=10.0), 0.5)
ENGINE = EngineFile("e", StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3), 24_000, 16, 256, 8192, 16_384)


def job(index: int, request_class: RequestClass, *, client: str = "", output_tokens: int = 11) -> Job:
    return Job(index, float(index), 100, output_tokens, request_class, client, (), Lengths(50.0, 100.0))


def figures(*pairs: tuple[Job, Fate]) -> dict[str, Any]:
    return measure([pair[0] for pair in pairs], ReplayResult([pair[1] for pair in pairs], 3, 0.5, 1000))


def test_what_was_refused_or_never_ended_is_a_miss_and_has_no_times() -> None:
    found = figures(
        (job(0, CHAT), Fate(0.0, 0.5, 1.0, 11)),
        (job(1, CHAT), Fate(1.0, refused=True)),
        (job(2, TASK), Fate(2.0, 3.0, None, 4)),
        (job(3, TASK), Fate(3.0, 4.0, 14.0, 11)),
    )

    assert found["attainment"] == {"all": 0.25, "chat": 0.5, "task": 0.0}
    assert (found["shed"], found["preempted"], found["schedulerMicroseconds"]) == (1, 3, 500.0)
    assert found["ttftSeconds"] == pytest.approx({"p50": 0.75, "p90": 0.95, "p99": 0.995})
    assert found["goodputPerSecond"] == pytest.approx(1 / 14)
    assert found["outputTokensPerSecond"] == pytest.approx(26 / 14)


def test_an_answer_of_one_token_has_no_time_per_token() -> None:
    found = figures((job(0, CHAT, output_tokens=1), Fate(0.0, 0.5, 0.5, 1)))

    assert found["attainment"]["all"] == 1.0
    assert found["tpotSeconds"] == {"p50": None, "p90": None, "p99": None}


def test_every_figure_is_present_even_if_no_request_ended() -> None:
    found = figures((job(0, CHAT), Fate(0.0, refused=True)))

    assert (found["goodputPerSecond"], found["outputTokensPerSecond"], found["jain"]) == (0.0, 0.0, 1.0)
    assert found["e2eSeconds"]["p99"] is None


def test_jains_index_is_computed_over_the_tenants_attainments() -> None:
    found = figures(
        (job(0, CHAT, client="a"), Fate(0.0, 0.5, 1.0, 11)),
        (job(1, CHAT, client="b"), Fate(1.0, 9.0, 9.9, 11)),
    )

    assert found["jain"] == 0.5
    assert jain([0.7, 0.7, 0.7]) == pytest.approx(1.0)


def test_percentiles_interpolate_linearly() -> None:
    assert percentiles([3.0, 1.0, 2.0]) == {"p50": 2.0, "p90": pytest.approx(2.8), "p99": pytest.approx(2.98)}


def test_an_end_to_end_target_becomes_a_deadline_of_the_first_token() -> None:
    assert first_token_deadline_s(job(0, CHAT), 5.0) == 6.0
    assert first_token_deadline_s(job(0, TASK), 5.0) == pytest.approx(15.0 - 100 * 0.03)


def test_deadlines_by_plain_targets_do_not_depend_on_lengths() -> None:
    policy = find_policy("engine-EDF-targets")
    both = RequestClass(Targets("both", ttft_s=2.0, e2e_s=30.0), 1.0)
    none = RequestClass(Targets("none"), 1.0)

    assert policy.engine_policy == PRIORITY
    assert policy.priority is not None
    assert [policy.priority(job(0, of), 5.0) for of in (CHAT, TASK, both, none)] == [6000, 15_000, 7000, 125_000]


def test_an_unknown_policy_is_refused_with_the_known_names() -> None:
    assert all(find_policy(name).name in (name, "engine-FCFS") for name in policy_names())
    assert find_policy("engine-only").priority is not None
    assert find_policy("SLO-ODBS").in_sidecar
    with pytest.raises(BadInput, match="'LIFO' is none of engine-FCFS"):
        find_policy("LIFO")


def test_the_papers_policies_and_ours_can_be_compared() -> None:
    assert {
        *("FCFS", "SJF", "EDF", "SLO-ODBS", "llm-d", "engine-FCFS", "engine-EDF", "engine-SJF"),
        *("paper-FIFO", "paper-ODBS", "paper-ODBS-64", "paper-SLO-DBS", "paper-SLO-ODBS"),
    } <= set(policy_names())


def test_cells_are_every_combination() -> None:
    assert [(c.speed, c.policy.name, c.seed) for c in cells(["FCFS", "EDF"], [1.0, 2.0], [7], 512)] == [
        (1.0, "FCFS", 7),
        (1.0, "EDF", 7),
        (2.0, "FCFS", 7),
        (2.0, "EDF", 7),
    ]


def test_the_sidecar_can_be_given_wrong_engine_times() -> None:
    right, wrong = believed(ENGINE, 1.0), believed(ENGINE, 0.5)

    assert wrong.step_s(1000, 10_000, 20) == pytest.approx(0.5 * right.step_s(1000, 10_000, 20))
    assert right.step_s(1000, 10_000, 20) == pytest.approx(ENGINE.step.step_s(1000, 10_000, 20))


def test_the_planned_chunk_follows_the_tightest_time_per_token() -> None:
    requests = tuple(TraceRequest(float(i), 1000, 200) for i in range(10))

    def planned(tpot_s: float) -> int:
        chat = RequestClass(Targets("chat", ttft_s=1.0, tpot_s=tpot_s), 1.0)
        return chunk_for(Scenario(Trace("t", requests), Classes((chat,)), ENGINE)).tokens

    assert planned(0.03) <= planned(0.06) < planned(1.0)


def test_the_table_has_a_line_for_each_result_and_the_bound() -> None:
    entry = {"policy": "FCFS", "speed": 2.0, "seed": 1, "maxBatchedTokens": None}
    result = entry | figures((job(0, CHAT), Fate(0.0, 0.5, 1.0, 11)), (job(1, TASK), Fate(1.0, refused=True)))
    text = table({"trace": "t.csv", "requests": 2, "results": [result], "bound": {"2": 0.75}})

    assert "2      FCFS    1     -      0.5000" in text
    assert "2      FCFS    1     1.0000  0.0000" in text
    assert "no policy attains more than 0.7500 at x2" in text


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (0.0123, "12ms"), (1.26, "1.3s")])
def test_durations_are_printed_in_a_readable_unit(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
