from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from uellm.autoscaling import LEARN_S, Autoscaler, Bounds, ReplicaEngine, ShareOfClass
from uellm.cli.evaluate_autoscale import beside_uellm
from uellm.cli.main import main
from uellm.errors import CannotBeDone
from uellm.evaluate.autoscale.compare import Comparison
from uellm.evaluate.autoscale.day import DAY_S, SHAPES, make_days
from uellm.evaluate.autoscale.policies import Clairvoyant, Hpa, Keda, Ours, peak_replicas, summary, work_by_interval
from uellm.evaluate.autoscale.pool import PoolFigures
from uellm.evaluate.autoscale.tuning import Result, Tuning
from uellm.evaluate.scenario import Classes, read_classes
from uellm.evaluate.traces import Trace, TraceRequest
from uellm.planner.cost.engine_file import EngineFile
from uellm.planner.request import SloClass
from uellm.step_time import StepTime

ENGINE = EngineFile("e", StepTime(5.5e-3, 45e-6, 44e-9, 15e-6, 0.5e-3), 24_000, 16, 256, 8192, 16_384)
CLASSES: Classes = read_classes({"classes": [{"name": "chat", "ttft": "1s"}, {"name": "batch", "e2e": "60s"}]}, "c")
BOUNDS = Bounds(1, 50)


def trace(seconds: float, every_s: float) -> Trace:
    count = int(seconds / every_s)
    return Trace("t", tuple(TraceRequest(place * every_s, 100 + place % 7, 50 + place % 3) for place in range(count)))


def figures(now_s: float, running: int = 0, queued: int = 0, ready: int = 2, kv_share: float = 0.0) -> PoolFigures:
    return PoolFigures(now_s, ready, 0, running, queued, kv_share, 0.5, 0, 0.0, 0.0, 0, 0, 0)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_short_trace_becomes_a_day_of_its_mean_rate_times_the_speed(shape: str) -> None:
    days = make_days(trace(3600, 1.0), CLASSES, days=1, shape=shape, speed=2.0, seed=3, max_tokens=1000)

    assert days.made
    assert len(days.load) == pytest.approx(2.0 * DAY_S, rel=0.2)
    assert np.all(np.diff(days.load.arrival_s) >= 0)
    assert days.load.arrival_s[-1] < DAY_S
    assert set(np.unique(days.load.prompt)) == set(range(100, 107))


def test_a_day_follows_its_curve() -> None:
    days = make_days(trace(3600, 1.0), CLASSES, days=1, shape="azure-code", speed=1.0, seed=1, max_tokens=1000)
    hours = np.bincount((days.load.arrival_s / 3600).astype(int), minlength=24)

    assert hours[9:12].mean() > 5 * hours[1:5].mean()


def test_the_bursts_of_a_day_are_known_so_that_a_rule_can_be_told_all_else() -> None:
    days = make_days(trace(3600, 0.5), CLASSES, days=1, shape="bursts", speed=1.0, seed=1, max_tokens=1000)
    busy = days.bursts > 1.0
    comparison = Comparison(days, ENGINE, 512, None, 0)

    assert 3 <= busy.sum() <= 200
    assert days.bursts[busy].min() >= 1.3
    minutes = [work.reshape(1440, -1).mean(1) for work in (comparison.work, comparison.work_without_bursts)]
    assert minutes[0] == pytest.approx(minutes[1] * days.bursts)
    # Noise apart, what is left goes on as before the burst.
    first = np.flatnonzero(busy)[0]
    assert minutes[1][first : first + 3].mean() == pytest.approx(minutes[1][first - 3 : first].mean(), rel=0.15)
    assert minutes[0][first : first + 3].mean() > 1.15 * minutes[0][first - 3 : first].mean()


def test_the_same_seed_gives_the_same_days_and_another_seed_others() -> None:
    one, same, other = (
        make_days(trace(3600, 5.0), CLASSES, days=2, shape="servegen", speed=1.0, seed=seed, max_tokens=1000)
        for seed in (1, 1, 2)
    )

    assert np.array_equal(one.load.arrival_s, same.load.arrival_s)
    assert np.array_equal(one.load.class_index, same.load.class_index)
    assert len(one.load) != len(other.load) or not np.array_equal(one.load.arrival_s, other.load.arrival_s)


def test_earlier_days_are_history_and_the_last_one_is_judged() -> None:
    days = make_days(trace(3600, 5.0), CLASSES, days=3, shape="servegen", speed=1.0, seed=1, max_tokens=1000)

    assert -2 * DAY_S <= days.earlier_s[0] < -1.9 * DAY_S
    assert days.earlier_s[-1] < 0.0
    assert days.load.arrival_s[0] >= 0.0


def test_a_trace_of_a_whole_day_is_used_as_it_is() -> None:
    whole = trace(DAY_S, 100.0)

    days = make_days(whole, CLASSES, days=2, shape="servegen", speed=1.0, seed=1, max_tokens=1000)

    assert not days.made
    assert np.array_equal(days.load.arrival_s, [each.arrival_s for each in whole.requests])


def test_prefixes_that_came_before_are_not_computed_again() -> None:
    requests = tuple(TraceRequest(place * 60.0, 1100, 10, "", (1, 2)) for place in range(60))

    days = make_days(Trace("t", requests), CLASSES, days=1, shape="servegen", speed=1.0, seed=1, max_tokens=2000)

    assert set(np.unique(days.load.uncached)) == {1100 - 1024, 1100}


def test_a_trace_of_long_requests_alone_says_so() -> None:
    with pytest.raises(CannotBeDone, match="has no request of at most 10 tokens: raise the limit on tokens"):
        make_days(trace(100, 1.0), CLASSES, days=1, shape="servegen", speed=1.0, seed=1, max_tokens=10)


def test_the_hpa_aims_at_its_target_and_ignores_small_differences() -> None:
    assert Hpa(10.0, BOUNDS).decide(figures(0.0, running=30, queued=10), wanted=3) == 4
    assert Hpa(10.0, BOUNDS).decide(figures(0.0, running=32), wanted=3) == 3
    assert Hpa(10.0, BOUNDS).decide(figures(0.0, running=900), wanted=3) == 7


def test_the_hpa_scales_down_after_five_minutes() -> None:
    hpa = Hpa(10.0, BOUNDS)
    assert hpa.decide(figures(0.0, running=50), wanted=5) == 5
    assert hpa.decide(figures(290.0, running=10), wanted=5) == 5
    assert hpa.decide(figures(310.0, running=10), wanted=5) == 1


def test_of_kedas_triggers_the_larger_wins() -> None:
    assert Keda(2.0, 0.5, BOUNDS).decide(figures(0.0, queued=8, kv_share=0.1), wanted=2) == 4
    assert Keda(2.0, 0.25, BOUNDS).decide(figures(0.0, queued=1, kv_share=0.5), wanted=2) == 4


def test_the_clairvoyant_orders_ahead_and_keeps_what_it_needs_again() -> None:
    work = np.array([0.9] * 40 + [2.9] * 4 + [0.9] * 4 + [2.9] * 4 + [0.9] * 40)
    policy = Clairvoyant(work, 1.0, 120.0, BOUNDS)
    numbers = [policy.decide(figures(place * 15.0), 1) for place in range(len(work))]

    assert numbers[40 - 9] == 3
    assert min(numbers[40:52]) == 3
    assert numbers[20] == numbers[-1] == 1


def test_the_peak_is_that_of_the_busiest_five_minutes() -> None:
    work = work_by_interval(np.arange(0.0, 3600.0, 0.5), np.full(7200, 0.5), 3600.0)

    assert work == pytest.approx(np.ones(240))
    assert peak_replicas(work, 0.6) == 2
    assert summary([1, 2, 2, 3]) == {"peak": 3, "least": 1, "mean": 2.0, "changes": 2}


def test_the_rule_gives_nothing_up_before_it_has_seen_the_load_as_in_the_operator() -> None:
    replica = ReplicaEngine(ENGINE.step, 256, ENGINE.max_num_seqs, ENGINE.kv_tokens)
    policy = Ours(Autoscaler(replica, (ShareOfClass(SloClass("chat", 1.0, 0.06, None), 1.0),)), BOUNDS, 0)
    looks = np.arange(15.0, LEARN_S + 60.0, 15.0)
    numbers = [policy.decide(figures(float(now_s)), 4) for now_s in looks]

    assert all(number == 4 for now_s, number in zip(looks, numbers, strict=True) if now_s < LEARN_S)
    assert numbers[-1] == 1


def tried(share: float) -> Result:
    """As many hours as the share is small; what is attained falls from a share of .4 on."""
    return {"attainment": {"all": 1.0 - max(0.0, share - 0.4) / 50}, "gpuHours": 100.0 / share, "setting": share}


def test_a_policy_is_tuned_to_the_fewest_hours_that_attain_what_is_wanted() -> None:
    found = Tuning(tried).cheapest(0.995)

    assert found["setting"] == pytest.approx(0.65, abs=0.0875)
    assert found["setting"] <= 0.65


def test_a_policy_that_never_attains_what_is_wanted_is_answered_by_the_most_that_it_attains() -> None:
    found = Tuning(lambda share: {**tried(share), "attainment": {"all": 0.9 - share / 10}}).cheapest(0.995)

    assert found["setting"] == pytest.approx(0.1, abs=0.09)


def test_a_baseline_is_compared_at_equal_attainment_and_at_equal_hours() -> None:
    tuning = Tuning(tried)
    tuning.cheapest(0.995)
    beside = tuning.beside({"attainment": {"all": 0.998}, "gpuHours": 150.0})

    assert beside["gpuHoursAtItsAttainment"] == pytest.approx(200.0, rel=0.05)
    assert beside["gpuHoursAtItsAttainment"] >= 200.0
    assert beside["attainmentAtItsGpuHours"] == pytest.approx(1 - (1 / 1.5 - 0.4) / 50, abs=5e-4)
    assert beside_uellm({"besideUellm": beside})[1] == f"{beside['attainmentAtItsGpuHours']:.4f}"


def test_where_no_setting_is_as_good_or_as_cheap_that_is_said() -> None:
    tuning = Tuning(lambda share: {"attainment": {"all": 0.9}, "gpuHours": 100.0})
    tuning.cheapest(0.995)
    beside = tuning.beside({"attainment": {"all": 0.99}, "gpuHours": 50.0})

    assert beside_uellm({"besideUellm": beside}) == ("none found", "none found")
    assert beside_uellm({}) == ("-", "-")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "trace").write_text("arrival_s,input_tokens,output_tokens\n0,10,10\n")
    (tmp_path / "classes").write_text("classes: [{name: chat, ttft: 1s}]")
    (tmp_path / "engine").write_text(json.dumps(ENGINE.to_dict()))
    return [f"--{name}={tmp_path / name}" for name in ("trace", "classes", "engine")]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--policy", "vpa"], "--policy: 'vpa' is none of fixed, clairvoyant, curve, hpa, keda, uellm"),
        (["--days", "0"], "--days: must be 1 or more"),
        (["--max-replicas", "0"], "--max-replicas: must be 1 or more"),
        (["--jobs", "0"], "--jobs: must be 1 or more"),
        (
            ["--speed", "1e-12", "--max-batched-tokens", "512"],
            "--speed: leaves no request in the judged day: make it or --limit larger",
        ),
        (["--max-batched-tokens", "some"], "--max-batched-tokens: must be a number of tokens or auto"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    files: list[str], options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "autoscale", *files, *options]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "says"),
    [("--startup", "argument --startup: must be above 0"), ("--speed", "argument --speed: must be above 0")],
)
def test_a_number_that_must_be_above_0_is_refused(
    files: list[str], option: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(["evaluate", "autoscale", *files, option, "0"])
    assert error.value.code == 2
    assert says in capsys.readouterr().err
