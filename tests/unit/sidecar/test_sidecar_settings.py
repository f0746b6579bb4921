"""The settings of a running sidecar are replaced as a whole, or not at all."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from uellm.sidecar.settings import LiveSettings, Reload

BEFORE: dict[str, Any] = {"model": "before", "classes": [{"name": "a", "ttft": "1s"}]}


def after(keys: Path) -> dict[str, Any]:
    """A document in which every setting differs from `BEFORE`."""
    return {
        "model": "after",
        "service": "team/after",
        "classes": [{"name": "b", "e2e": "60s"}],
        "scheduling": {"policy": "FCFS", "maxQueuedRequests": 7, "predictor": "Online"},
        "engine": {
            "maxNumSeqs": 3,
            "maxNumBatchedTokens": 512,
            "task": "Embed",
            "acceptsPriority": True,
            "loadsAdapters": True,
            "stepSeconds": {"floor": 1, "perPrefillToken": 0.1, "perKvToken": 0, "perSequence": 0, "overhead": 0},
            "stepFactors": {"prefill": 2, "decode": 3},
        },
        "adapters": [{"name": "sql", "path": "/adapters/sql"}],
        "prediction": {"learned": True},
        "auth": {"keysDirectory": str(keys)},
        "allowedRoutes": ["/sleep"],
        "http": {"idleTimeout": "9s", "allowedOrigins": ["https://a"]},
    }


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    directory = tmp_path / "keys"
    directory.mkdir()
    (directory / "team").write_text("secret\n")
    return directory


def write(path: Path, document: dict[str, Any]) -> None:
    replacement = path.with_suffix(".new")
    replacement.write_text(yaml.safe_dump(document))
    replacement.rename(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sidecar.yaml"
    write(path, BEFORE | {"scheduling": {"predictor": "Off"}})
    return path


def test_settings_cannot_be_changed_one_by_one(file):
    with pytest.raises(FrozenInstanceError):
        LiveSettings(file).current.model = "x"  # type: ignore[misc]


def test_a_good_file_replaces_every_setting_at_once(file, keys):
    live = LiveSettings(file)
    before = live.current
    write(file, after(keys))
    assert live.current is before
    assert live.poll() == Reload(config=True)
    same = [field.name for field in fields(before) if getattr(before, field.name) == getattr(live.current, field.name)]
    assert same == []


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("scheduling", {"policy": "Magic"}),
        ("engine", {"maxNumSeqs": 0}),
        ("prediction", {"learned": "perhaps"}),
        ("auth", {"keysDirectory": 5}),
        ("allowedRoutes", "everything"),
        ("defaultClass", "nobody"),
    ],
)
def test_one_bad_field_leaves_every_setting_as_it_was(file, keys, field, bad):
    live = LiveSettings(file)
    before = live.current
    write(file, after(keys) | {field: bad})
    found = live.poll()
    assert live.current is before
    assert found.refused is live.error is not None
    assert live.poll() == Reload()


def test_other_keys_in_the_directory_replace_the_settings_without_a_new_configuration(file, keys):
    write(file, after(keys))
    live = LiveSettings(file)
    before = live.current
    (keys / "team").write_text("another secret\n")
    assert live.poll() == Reload(keys=True)
    assert live.current.keys is not before.keys
    assert live.current.classes == before.classes


async def test_a_running_sidecar_applies_a_file_completely_or_not_at_all(engine, launch, keys):
    harness = await launch(BEFORE)
    harness.configure(after(keys) | {"scheduling": {"policy": "Magic"}, "prediction": {}})
    harness.sidecar.reload()
    async with harness.post(x_slo_class="a") as response:
        assert (response.status, response.headers["x-uellm-class"]) == (200, "a")
    async with harness.client.get(harness.url("/sleep")) as response:
        assert response.status == 403
    harness.configure(after(keys) | {"prediction": {}})
    harness.sidecar.reload()
    async with harness.post(x_slo_class="b") as response:
        assert response.status == 401
    key = {"authorization": "Bearer secret"}
    async with harness.post(x_slo_class="b", **key) as response:
        assert (response.status, response.headers["x-uellm-class"]) == (200, "b")
    assert "X-Vllm-Priority" in engine.received[-1].headers
    async with harness.client.get(harness.url("/sleep"), headers=key) as response:
        assert response.status == 200
