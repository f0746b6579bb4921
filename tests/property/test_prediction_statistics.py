"""The predictor's statistics against their plain definitions, which are too slow for use."""

from __future__ import annotations

from itertools import combinations
from math import isclose, sqrt

from hypothesis import given
from hypothesis import strategies as st

from uellm.sidecar.prediction import LengthQuestion, OnlineLengths, kendall_tau
from uellm.sidecar.prediction.window import SIZE, Window

values = st.integers(0, 6)


@given(st.lists(st.tuples(values, values), min_size=2, max_size=30))
def test_kendalls_tau_agrees_with_its_definition(pairs):
    one, other = zip(*pairs, strict=True)
    net = sum(((a[0] > b[0]) - (a[0] < b[0])) * ((a[1] > b[1]) - (a[1] < b[1])) for a, b in combinations(pairs, 2))
    untied = [sum(a[side] != b[side] for a, b in combinations(pairs, 2)) for side in (0, 1)]
    found = kendall_tau(one, other)
    if 0 in untied:
        assert found is None
    else:
        assert isclose(found, net / sqrt(untied[0] * untied[1]), abs_tol=1e-12)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_a_windows_quantile_leaves_the_promised_share_at_or_below_it(numbers, level):
    window = Window(numbers)
    below = sum(number <= window.quantile(level) for number in numbers)
    assert below >= min(len(numbers), level * (len(numbers) + 1) - 1e-9)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.integers(1, 5))
def test_a_window_holds_the_last_values_whatever_came_before(numbers, rounds):
    window = Window()
    everything = numbers * (rounds * SIZE // len(numbers) + 1)
    for number in everything:
        window.add(number)
    assert list(window.values()) == everything[-SIZE:]
    assert window.quantile(1.0) == max(everything[-SIZE:])


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a", "b"]), st.integers(0, 10**6), st.text(max_size=50), st.integers(0, 10**9)),
        max_size=20,
    ),
    st.booleans(),
)
def test_predictions_are_ordered_positive_numbers_whatever_was_learned(requests, truncated):
    model = OnlineLengths()
    for tenant, prompt, text, tokens in requests:
        prediction = model.predict(LengthQuestion("/r", tenant, 1, prompt, text))
        assert 1 <= prediction.p50 <= prediction.p80 <= prediction.p90 <= 5e8
        model.observe(prediction, tokens, truncated=truncated)
