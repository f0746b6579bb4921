"""Durations and quantities."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uellm.api import duration_s, quantity
from uellm.errors import BadInput


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("0s", 0.0), ("1h30m", 5400.0), ("1m1s1ms", 61.001), ("99999h", 99999 * 3600.0)],
)
def test_a_duration_is_the_sum_of_its_parts(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "1.5s", "-1s", "s", "1d", "1h1h1h1h1h", "123456s", "1s\n", " 1s"])
def test_an_invalid_gateway_api_duration_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is not a duration"):
        duration_s(text)


@given(hours=st.integers(0, 99), minutes=st.integers(0, 99), seconds=st.integers(0, 99), ms=st.integers(0, 999))
def test_every_duration_has_its_seconds(hours: int, minutes: int, seconds: int, ms: int) -> None:
    text = f"{hours}h{minutes}m{seconds}s{ms}ms"
    assert duration_s(text) == pytest.approx(hours * 3600 + minutes * 60 + seconds + ms / 1000)


@pytest.mark.parametrize(
    ("text", "number"),
    [("4", 4), ("500m", Decimal("0.5")), ("1.5", Decimal("1.5")), ("2k", 2000), ("16Gi", 16 * 2**30), ("1.5Ki", 1536)],
)
def test_a_quantity_is_exact(text: str, number: Decimal) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize("text", ["", "-1", "1 Gi", "1e3", "four", "1gi", ".5"])
def test_an_invalid_quantity_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is not a quantity"):
        quantity(text)
