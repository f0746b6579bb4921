from __future__ import annotations

import math
import random
from typing import Any

import pytest

from uellm.errors import BadInput, CannotBeDone
from uellm.evaluate.scenario import Classes, draw_jobs, read_classes
from uellm.evaluate.traces import Trace, TraceRequest

MIXED: dict[str, Any] = {
    "classes": [
        {"name": "chat", "share": 0.5, "ttft": "1s", "tpot": "60ms"},
        {"name": "task", "share": 0.3, "e2e": "10s"},
        {"name": "batch", "share": 0.2, "e2e": "120s"},
    ],
    "predictor": {"kind": "noisy-oracle", "sigma": 0.7},
}


def trace(*lengths: tuple[int, int]) -> Trace:
    return Trace("t", tuple(TraceRequest(5.0 + i, prompt, output) for i, (prompt, output) in enumerate(lengths)))


def test_classes_and_noise_are_drawn_in_turn_from_one_generator() -> None:
    jobs = draw_jobs(trace(*[(10, 20)] * 50), read_classes(MIXED, "c"), seed=3, limit=None, max_tokens=100)

    generator = random.Random(3)
    for job in jobs:
        drawn = generator.random()
        assert job.request_class.name == ("chat" if drawn < 0.5 else "task" if drawn < 0.8 else "batch")
        assert job.lengths is not None
        assert job.lengths.p50 == pytest.approx(20 * math.exp(generator.gauss(0, 0.7)))
        assert job.lengths.p80 == pytest.approx(job.lengths.p50 * math.exp(0.84 * 0.7))


def test_without_a_predictor_no_noise_is_drawn() -> None:
    classes = read_classes({"classes": MIXED["classes"]}, "c")
    jobs = draw_jobs(trace(*[(10, 20)] * 50), classes, seed=3, limit=None, max_tokens=100)

    generator = random.Random(3)
    assert [job.request_class.name == "chat" for job in jobs] == [generator.random() < 0.5 for _ in jobs]
    assert all(job.lengths is None for job in jobs)


def test_the_trace_is_filtered_before_it_is_cut_and_starts_at_its_first_request() -> None:
    jobs = draw_jobs(
        trace((90, 20), (10, 20), (91, 10), (80, 20)),
        Classes(read_classes(MIXED, "c").classes),
        seed=1,
        limit=2,
        max_tokens=100,
    )

    assert [(job.arrival_s, job.prompt_tokens) for job in jobs] == [(0.0, 10), (2.0, 80)]


def test_a_trace_without_a_suitable_request_is_an_error() -> None:
    with pytest.raises(CannotBeDone, match="at most 100 tokens"):
        draw_jobs(trace((90, 20)), read_classes(MIXED, "c"), seed=1, limit=None, max_tokens=100)


@pytest.mark.parametrize(
    ("name", "first_s", "end_s", "tokens", "met"),
    [
        ("chat", 1.0, 1.6, 11, True),
        ("chat", 1.01, 1.2, 11, False),
        ("chat", 0.5, 1.2, 11, False),
        ("chat", 1.0, 1.0, 1, True),
        ("task", 9.9, 10.0, 11, True),
        ("task", 0.1, 10.1, 11, False),
    ],
)
def test_a_request_meets_its_slo_when_every_target_is_met(
    name: str, first_s: float, end_s: float, tokens: int, met: bool
) -> None:
    (request_class,) = (c for c in read_classes(MIXED, "c").classes if c.name == name)

    assert request_class.met(100.0, 100.0 + first_s, 100.0 + end_s, tokens) is met


def test_shares_need_not_add_up_to_one() -> None:
    classes = read_classes(
        {"classes": [{"name": "a", "share": 3, "e2e": "1s"}, {"name": "b", "share": 1, "e2e": "1s"}]}, "c"
    )

    assert [c.share for c in classes.classes] == [0.75, 0.25]


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (None, "c.classes"),
        ({"classes": []}, "c.classes"),
        ({"classes": ["chat"]}, "c.classes[0].share"),
        ({"classes": [{"name": "a", "share": -1}]}, "c.classes[0].share"),
        ({"classes": [{"name": "a", "share": 0}]}, "c.classes"),
        ({"classes": [{"name": "a", "ttft": "soon"}]}, "c.classes[0].ttft"),
        ({"classes": [{"name": "a"}, {"name": "a"}]}, "c.classes"),
        ({"classes": [{"name": "a"}, {"name": "all"}]}, "c.classes"),
        ({"classes": [{"name": "a"}], "predictor": {"kind": "crystal ball"}}, "c.predictor.kind"),
        ({"classes": [{"name": "a"}], "predictor": {"kind": "noisy-oracle", "sigma": "much"}}, "c.predictor.sigma"),
    ],
)
def test_a_wrong_classes_file_names_the_field(data: Any, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_classes(data, "c")

    assert caught.value.field == field
