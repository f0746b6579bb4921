"""Properties of the cost model for any hardware, model and load."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from uellm.hardware import Device, Link
from uellm.models import read_architecture
from uellm.planner import constants as c
from uellm.planner.cost.chunk import Chunk, Load, best_chunk, saturation
from uellm.planner.cost.demand import Demand
from uellm.planner.cost.predict import Times, predict
from uellm.planner.cost.rates import Costs, Links
from uellm.planner.cost.work import stage_loads
from uellm.planner.request import SloClass
from uellm.planner.shape import Steps
from uellm.step_time import StepTime

MODEL = read_architecture(
    {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16",
    }
)
# A thousandth, because the number of running sequences is found by bisection.
SLACK = 1 + 1e-3

rates = st.tuples(st.floats(1e13, 1e15), st.floats(1e11, 4e12))
devices = st.lists(rates, min_size=1, max_size=4)
steps = st.builds(
    StepTime,
    st.floats(1e-3, 0.2),
    st.floats(1e-6, 1e-2),
    st.floats(0, 1e-6),
    st.floats(0, 1e-3),
    st.floats(0, 1e-2),
)


def times(measured: list[tuple[float, float]], link: float, rate: float | None, tpot_s: float | None) -> Times:
    gpus = [
        Device(f"g{index}", index, "x", 80 << 30, bf16_flops_per_s=flops, memory_bytes_per_s=memory)
        for index, (flops, memory) in enumerate(measured)
    ]
    links = Links(Link(a.uuid, b.uuid, "PIX", link, 1e-5) for a in gpus for b in gpus if a is not b)
    layers = [16 // len(gpus)] * (len(gpus) - 1)
    loads = stage_loads(MODEL, [(gpu,) for gpu in gpus], [*layers, 16 - sum(layers)])
    demand = Demand(600, 200, rate, 1.0, 1.0, tpot_s, None, 1024, ())
    found = predict(loads, links, Costs.of(MODEL, 600, 200), demand, 200_000, Steps(1024, 256))
    assert found is not None
    return found


@settings(max_examples=200, deadline=None)
@given(devices, st.floats(1e9, 1e11), st.integers(0, 3), st.sampled_from([0, 1]))
def test_a_device_that_is_twice_as_fast_never_makes_a_request_alone_slower(
    measured: list[tuple[float, float]], link: float, which: int, figure: int
) -> None:
    index = which % len(measured)
    entry = list(measured[index])
    entry[figure] *= 2
    faster = [*measured[:index], (entry[0], entry[1]), *measured[index + 1 :]]
    before, after = times(measured, link, None, None), times(faster, link, None, None)
    assert after.ttft_s <= before.ttft_s * SLACK
    assert after.tpot_s <= before.tpot_s * SLACK
    assert after.requests_per_s >= before.requests_per_s / SLACK


@settings(max_examples=100, deadline=None)
@given(devices, st.floats(1e9, 1e11))
def test_faster_links_never_make_a_request_slower(measured: list[tuple[float, float]], link: float) -> None:
    before, after = times(measured, link, None, None), times(measured, 2 * link, None, None)
    assert after.ttft_s <= before.ttft_s * SLACK
    assert after.tpot_s <= before.tpot_s * SLACK
    assert after.requests_per_s >= before.requests_per_s / SLACK


@settings(max_examples=100, deadline=None)
@given(devices, st.floats(0.01, 100.0), st.floats(0.005, 0.5))
def test_times_are_finite_and_the_reported_rate_meets_every_feasible_target(
    measured: list[tuple[float, float]], rate: float, tpot_s: float
) -> None:
    alone = times(measured, 1e10, None, None).tpot_s
    told = times(measured, 1e10, rate, tpot_s)
    assert 0 < told.ttft_s < float("inf")
    assert 0 < told.requests_per_s < float("inf")
    if alone <= tpot_s / SLACK:
        assert told.tpot_s <= tpot_s * SLACK


@settings(max_examples=100, deadline=None)
@given(steps, st.floats(0.005, 5.0), st.integers(1, 8000), st.integers(1, 4000), st.integers(1, 1024))
def test_a_chunk_is_one_of_the_candidates_and_keeps_the_target_or_says_that_it_cannot(
    step: StepTime, tpot_s: float, prompt: int, output: int, sequences: int
) -> None:
    load = Load(prompt, output, sequences, 400_000)

    def chosen(step: StepTime) -> Chunk:
        classes = [SloClass("chat", tpot_s=tpot_s)]
        sizes = {"prompt_tokens": prompt, "output_tokens": output, "sequences": sequences, "kv_tokens": 400_000}
        return best_chunk(step, classes=classes, **sizes)

    chunk = chosen(step)
    assert chunk.tokens in c.CHUNKS
    if "leave the engine idle" not in chunk.reason:
        assert saturation(step, load, chunk.tokens).tpot_s <= tpot_s * SLACK
