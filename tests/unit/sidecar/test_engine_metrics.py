from __future__ import annotations

import pytest

from uellm.sidecar.engine.liveness import CANARY_S, MOST_CANARY_S, PREFILL_MARGIN, STILL_S, Liveness, Verdict
from uellm.sidecar.engine.metrics_reader import read
from uellm.sidecar.scheduling import EngineSteps

# As vLLM 0.32.0 writes it, shortened.
NEW = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
vllm:num_preemptions_total{engine="0",model_name="tiny"} 1.0
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 100.0
vllm:prompt_tokens_created{engine="0",model_name="tiny"} 1.7e+09
vllm:prompt_tokens_cached_total{engine="0",model_name="tiny"} 64.0
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 65.0
vllm:generation_tokens_total{engine="0",model_name="tiny"} 50.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="tiny"} 0.0
vllm:cache_config_info{block_size="16",engine="0",kv_cache_size_tokens="4080",num_gpu_blocks="256"} 1.0
"""


def test_the_figures_of_the_present_version_are_read():
    metrics = read(NEW)
    assert (metrics.running, metrics.waiting, metrics.kv_used_share, metrics.preemptions) == (3, 2, 0.25, 1)
    assert (metrics.kv_tokens, metrics.block_tokens, metrics.progress) == (4080, 16, (100.0, 50.0, 0.25))
    assert (metrics.prompt_tokens, metrics.cached_tokens) == (100.0, 64.0)


def test_older_names_are_read_too():
    old = NEW.replace("kv_cache_usage_perc", "gpu_cache_usage_perc").replace(',kv_cache_size_tokens="4080"', "")
    metrics = read(old.replace("prompt_tokens_cached_total", "x"))
    assert (metrics.kv_used_share, metrics.kv_tokens, metrics.cached_tokens) == (0.25, 4096, 65.0)
    metrics = read("\n".join(line for line in NEW.splitlines() if "cached" not in line and "hits" not in line))
    assert metrics.cached_tokens is None


STEPS = """\
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="tiny"} 4.0
vllm:iteration_tokens_total_count{engine="0",model_name="tiny"} 20.0
vllm:iteration_tokens_total_sum{engine="0",model_name="tiny"} 150.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="tiny"} 10.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="tiny"} 0.5
vllm:inter_token_latency_seconds_count{engine="0",model_name="tiny"} 40.0
"""


def test_what_the_steps_did_is_read_without_cached_prompts_and_first_tokens():
    assert read(NEW + STEPS).steps == EngineSteps(
        number=20.0, gap_s=0.5, gaps=40.0, prompt_tokens=36.0, answer_tokens=40.0
    )
    assert read(NEW + STEPS.replace("inter_token_latency", "time_per_output_token")).steps is not None


@pytest.mark.parametrize("missing", ["iteration_tokens", "first_token", "latency_seconds_sum", "latency_seconds_count"])
def test_an_engine_that_lacks_one_of_these_counters_tells_of_no_steps(missing):
    text = "".join(line for line in STEPS.splitlines(keepends=True) if missing not in line)
    metrics = read(NEW + text)
    assert (metrics.steps, metrics.running) == (None, 3)


@pytest.mark.parametrize("size", ['kv_cache_size_tokens="0"', 'kv_cache_size_tokens="16"', 'other=""'])
def test_an_engine_without_a_kv_cache_limits_nothing_by_it(size):
    encoder = NEW.replace('kv_cache_size_tokens="4080",num_gpu_blocks="256"', f'{size},num_gpu_blocks="1"')
    assert read(encoder).kv_tokens is None


def test_ranks_of_one_engine_are_added_up_and_the_fullest_cache_counts():
    more = NEW.replace('engine="0"', 'engine="1"').replace("} 0.25", "} 0.75")
    metrics = read(NEW + more)
    assert (metrics.running, metrics.waiting, metrics.kv_used_share, metrics.kv_tokens) == (6, 4, 0.75, 8160)


@pytest.mark.parametrize(
    "text", ["", "up 1\n", "<html>", "vllm:num_requests_running x\n", "vllm:num_requests_running\n"]
)
def test_other_programs_metrics_are_ignored(text):
    assert read(text) is None


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "1e", ""])
def test_a_value_that_is_not_a_number_is_skipped(value):
    metrics = read(
        NEW.replace(
            'vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25',
            f'vllm:kv_cache_usage_perc{{engine="0"}} {value}',
        )
    )
    assert metrics.kv_used_share is None


def test_a_cache_whose_size_is_not_known_yet_is_unknown():
    metrics = read(NEW.replace('"4080"', '"None"').replace('num_gpu_blocks="256"', 'num_gpu_blocks="None"'))
    assert metrics.kv_tokens is None


def test_a_label_may_hold_anything():
    metrics = read(NEW.replace('model_name="tiny"', r'model_name="a\"} 7 {,b=\\"'))
    assert metrics.running == 3


def looks(liveness, times, progress, *, busy=True):
    return [liveness.look(progress, busy=busy, now_s=now_s) for now_s in times]


def test_an_engine_with_progress_is_healthy():
    liveness = Liveness()
    assert {liveness.look(float(t), busy=True, now_s=float(t)) for t in range(1000)} == {Verdict.WELL}


def test_an_idle_engine_is_healthy_without_progress():
    assert set(looks(Liveness(), range(0, 1000, 10), 5.0, busy=False)) == {Verdict.WELL}


def test_a_busy_engine_without_progress_gets_one_canary_and_then_counts_as_hanging():
    liveness = Liveness()
    liveness.look(5.0, busy=True, now_s=0.0)
    assert liveness.look(5.0, busy=True, now_s=STILL_S - 1) is Verdict.WELL
    assert liveness.look(5.0, busy=True, now_s=STILL_S) is Verdict.SEND_CANARY
    assert liveness.look(5.0, busy=True, now_s=STILL_S + 1) is Verdict.WAIT
    assert liveness.look(5.0, busy=True, now_s=STILL_S + CANARY_S) is Verdict.HANGS


def test_an_engine_without_metrics_counts_as_without_progress():
    liveness = Liveness()
    liveness.look(5.0, busy=True, now_s=0.0)
    assert liveness.look(None, busy=True, now_s=STILL_S) is Verdict.SEND_CANARY


def test_an_answered_canary_clears_the_engine():
    liveness = Liveness()
    liveness.look(5.0, busy=True, now_s=0.0)
    liveness.look(5.0, busy=True, now_s=STILL_S)
    liveness.on_canary(answered=True, now_s=STILL_S + 5)
    assert liveness.look(5.0, busy=True, now_s=STILL_S + CANARY_S) is Verdict.SEND_CANARY


def test_a_failed_canary_clears_nothing():
    liveness = Liveness()
    liveness.look(5.0, busy=True, now_s=0.0)
    liveness.look(5.0, busy=True, now_s=STILL_S)
    liveness.on_canary(answered=False, now_s=STILL_S + 5)
    assert liveness.look(5.0, busy=True, now_s=STILL_S + CANARY_S) is Verdict.HANGS


def test_an_engine_that_progresses_again_is_healthy_again():
    liveness = Liveness()
    liveness.look(5.0, busy=True, now_s=0.0)
    liveness.look(5.0, busy=True, now_s=STILL_S)
    assert liveness.look(5.0, busy=True, now_s=STILL_S + CANARY_S) is Verdict.HANGS
    assert liveness.look(6.0, busy=True, now_s=STILL_S + CANARY_S + 1) is Verdict.WELL


def test_an_engine_in_a_long_prompt_makes_progress_by_the_use_of_its_cache():
    liveness = Liveness()
    for second in range(0, 300, 10):
        metrics = read(NEW.replace("} 0.25", f"}} {0.25 + second * 1e-5}"))
        assert liveness.look(metrics.progress, busy=True, now_s=float(second)) is Verdict.WELL


def test_progress_of_any_rank_is_progress():
    liveness, other = Liveness(), NEW.replace('engine="0"', 'engine="1"')
    for second in range(0, 300, 10):
        metrics = read(NEW.replace("} 0.25", "} 0.9") + other.replace("} 0.25", f"}} {0.25 + second * 1e-5}"))
        assert liveness.look(metrics.progress, busy=True, now_s=float(second)) is Verdict.WELL


@pytest.mark.parametrize(
    ("prefill_s", "patience_s"), [(0.0, CANARY_S), (100.0, 100 * PREFILL_MARGIN), (1e6, MOST_CANARY_S)]
)
def test_a_canary_behind_long_prompts_has_the_time_that_they_take(prefill_s, patience_s):
    liveness = Liveness()
    liveness.look(5.0, busy=True, now_s=0.0)
    assert liveness.look(5.0, busy=True, now_s=STILL_S, prefill_s=prefill_s) is Verdict.SEND_CANARY
    assert liveness.look(5.0, busy=True, now_s=STILL_S + patience_s - 1) is Verdict.WAIT
    assert liveness.look(5.0, busy=True, now_s=STILL_S + patience_s) is Verdict.HANGS
