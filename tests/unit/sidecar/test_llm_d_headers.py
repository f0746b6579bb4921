"""The headers of llm-d and of the inference extension: what they mean here, and what becomes of garbage in them."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from uellm.proxying.metrics import with_older_names
from uellm.proxying.outcome import Refusal, RequestOutcome
from uellm.sidecar.scheduling import Targets
from uellm.sidecar.wire.slo import SCHEDULING, targets_of, tenant_of

CHAT, BATCH = Targets("chat", 10, ttft_s=0.5, tpot_s=0.05), Targets("batch", 0, e2e_s=60.0)
CLASSES = {"chat": CHAT, "batch": BATCH}
GARBAGE = [
    *("soon", "", " ", "0", "-1", "+1", "1_000", " 5", "5 ", "0x10", "1e", "1e999", "nan", "inf", "Infinity", "1,5"),
    *("1.", ".5", "٣", "9" * 400, "1;2", "86400001", "5ms", "\udcff"),
]


def targets(**headers: str) -> Targets:
    return targets_of(CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()}), CLASSES)


@pytest.mark.parametrize("prefix", ["x_llm_d_slo", "x_slo"], ids=["current", "older"])
def test_targets_in_milliseconds_are_the_only_ones_of_a_request_without_a_class(prefix):
    found = targets(**{f"{prefix}_ttft_ms": "250", f"{prefix}_tpot_ms": "12.5"})
    assert (found.ttft_s, found.tpot_s, found.e2e_s) == (0.25, 0.0125, None)


def test_an_objective_with_the_name_of_a_class_chooses_it():
    assert targets(x_llm_d_inference_objective="batch") == BATCH
    assert targets(x_gateway_inference_objective="batch") == BATCH
    assert targets(x_gateway_inference_objective="batch", x_slo_ttft_ms="1e3").ttft_s == 1.0


def test_an_objective_that_is_no_class_is_the_pickers_own_business():
    assert targets(x_gateway_inference_objective="premium-tier") == CHAT


def test_our_own_header_takes_precedence():
    assert targets(x_slo_class="chat", x_gateway_inference_objective="batch") == CHAT


def test_the_newer_of_two_names_counts_even_if_its_value_is_garbage():
    assert targets(x_llm_d_slo_ttft_ms="100", x_slo_ttft_ms="soon").ttft_s == 0.1
    with pytest.raises(Refusal, match="x-llm-d-slo-ttft-ms must be"):
        targets(x_llm_d_slo_ttft_ms="soon", x_slo_ttft_ms="100")


@pytest.mark.parametrize("value", GARBAGE)
@pytest.mark.parametrize("name", ["x_llm_d_slo_ttft_ms", "x_slo_tpot_ms"])
def test_what_is_no_time_is_refused_and_named(name, value):
    with pytest.raises(Refusal) as refused:
        targets(**{name: value})
    assert refused.value.outcome is RequestOutcome.BAD_REQUEST
    assert str(refused.value).startswith(f"{name.replace('_', '-')} must be a number of milliseconds above 0")


def test_the_tenant_is_the_fairness_id_of_either_name_and_bounded():
    assert tenant_of(CIMultiDict({"x-gateway-inference-fairness-id": "acme"}), "key") == "acme"
    assert (
        tenant_of(CIMultiDict({"x-llm-d-inference-fairness-id": "a", "x-gateway-inference-fairness-id": "b"}), "")
        == "a"
    )
    assert len(tenant_of(CIMultiDict({"x-gateway-inference-fairness-id": "a" * 10_000}), None)) < 32


async def test_the_engine_gets_none_of_them(engine, launch):
    harness = await launch({"classes": [{"name": "chat"}]})
    values = dict.fromkeys(SCHEDULING, "chat") | {name: "100" for name in SCHEDULING if name.endswith("-ms")}
    async with harness.post(**values, x_other="kept") as response:
        assert response.status == 200
    [received] = engine.received
    assert not set(SCHEDULING) & {name.lower() for name in received.headers}
    assert received.headers["x-other"] == "kept"


KV = """\
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running 1.0
"""


def test_the_use_of_the_kv_cache_has_its_older_name_as_well():
    added = with_older_names(KV).removeprefix(KV)
    assert added == "\n".join(KV.replace("kv_cache_usage", "gpu_cache_usage").splitlines()[:4]) + "\n"
    assert with_older_names(KV.removesuffix("\n")) == KV + added


def test_an_engine_that_has_the_older_name_or_neither_is_passed_on_as_it_is():
    older = KV.replace("vllm:kv_cache", "vllm:gpu_cache")
    for text in (older, KV + older, "", "vllm:num_requests_running 1.0\n", "vllm:kv_cache_usage_percent 1.0\n"):
        assert with_older_names(text) == text
