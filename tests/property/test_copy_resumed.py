"""A copy that is killed at any byte, any number of times, ends with the bytes of the hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.files import contents
from helpers.hub_server import COMMIT, hub_server
from uellm.hub import copying
from uellm.hub.connection import HubSettings
from uellm.hub.copy_state import Copied
from uellm.hub.copying import CopyWatch, copy_model


class Killed(BaseException):
    """The end of the process: nothing catches it."""


@pytest.fixture(scope="module")
def hub():
    with hub_server() as server:
        yield server


@given(
    weights=st.binary(min_size=1, max_size=3000),
    config=st.binary(max_size=200),
    kills=st.lists(st.integers(0, 3000), max_size=4),
    ranges=st.booleans(),
    cut=st.sampled_from([0, 700]),
)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_copy_that_is_killed_at_any_byte_ends_with_the_same_bytes(
    hub, monkeypatch, weights, config, kills, ranges, cut
):
    hub.files = {"config.json": config, "model.safetensors": weights, "a/b.json": weights[:50]}
    hub.ranges, hub.cut_bytes = ranges, cut if ranges else 0
    whole_write = copying._write
    monkeypatch.setattr(copying, "FIRST_WAIT_S", 0.001)
    with tempfile.TemporaryDirectory() as place:
        volume = Path(place)
        for budget in kills:
            left = [budget]

            def write(number, piece, left=left):
                kept = piece[: left[0]]
                left[0] -= len(kept)
                whole_write(number, kept)
                if len(kept) < len(piece):
                    raise Killed

            monkeypatch.setattr(copying, "_write", write)
            try:
                copy_model("org/model", COMMIT, volume, HubSettings(hub.url), CopyWatch())
            except Killed:
                assert not (volume / "org/model" / COMMIT / ".complete").exists()
        monkeypatch.setattr(copying, "_write", whole_write)
        found = copy_model("org/model", COMMIT, volume, HubSettings(hub.url), CopyWatch())
        assert isinstance(found, Copied)
        assert contents(volume / found.directory) == hub.files
