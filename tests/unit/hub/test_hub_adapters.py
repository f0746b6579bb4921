"""What is known of LoRA adapters before they are loaded, and why the engine would refuse them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_server import COMMIT, HubServer, hub_server, tensor_file
from uellm.documents import UnreadableDocument
from uellm.hub import LookUpRefusal, ModelFacts
from uellm.hub.adapter import AdapterFacts, refusal_of_config
from uellm.hub.connection import HubSettings
from uellm.hub.copy_state import Copied
from uellm.hub.copying import CopyWatch, copy_model
from uellm.hub.directory import read_directory_adapter
from uellm.hub.document import from_document, to_document
from uellm.hub.lookup import look_up_adapter

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
PATH = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
TENSORS = {PATH.format(1, "A"): [8, 64], PATH.format(1, "B"): [128, 8]}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def hub():
    with hub_server() as server:
        server.repository = "org/sql"
        server.files = {
            "adapter_config.json": json.dumps({**PLAIN, "base_model_name_or_path": "org/model"}).encode(),
            "adapter_model.safetensors": tensor_file(TENSORS),
        }
        yield server


def asked(hub: HubServer, revision: str = "main") -> AdapterFacts | LookUpRefusal:
    return look_up_adapter("sql", "org/sql", revision, HubSettings(hub.url))


def test_the_facts_are_those_of_the_commit_that_a_branch_stands_for(hub):
    assert asked(hub) == AdapterFacts(
        name="sql",
        source="hf://org/sql@main",
        commit=COMMIT,
        rank=8,
        bytes=2 * (8 * 64 + 128 * 8),
        base="org/model",
        layers=2,
        widths=(("q_proj", 64, 128),),
    )
    paths = [path for path, _ in hub.asked]
    assert paths[1:] == [f"/org/sql/resolve/{COMMIT}/adapter_model.safetensors"]


def test_the_largest_rank_of_a_pattern_counts(hub):
    hub.files["adapter_config.json"] = json.dumps({**PLAIN, "rank_pattern": {"q_proj": 32}}).encode()
    assert asked(hub).rank == 32


def test_a_repository_that_is_no_adapter_is_refused(hub):
    del hub.files["adapter_config.json"]
    assert asked(hub) == LookUpRefusal(
        "InvalidAdapter", f"{hub.url}/org/sql has no adapter_config.json: it is no LoRA adapter"
    )


def test_weights_in_pytorchs_format_alone_are_refused(hub):
    del hub.files["adapter_model.safetensors"]
    hub.files["adapter_model.bin"] = b"pickle"
    assert "convert them to safetensors" in asked(hub).message


def test_an_adapter_that_does_not_exist_is_refused_as_a_model_is(hub):
    found = look_up_adapter("sql", "org/other", "main", HubSettings(hub.url))
    assert found.reason == "NoSuchRepository"


def test_a_directory_has_no_commit(hub, tmp_path: Path):
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    found = read_directory_adapter("sql", tmp_path, tmp_path, "pvc://adapters/sql")
    assert (found.source, found.commit, found.rank) == ("pvc://adapters/sql", "", 8)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"use_dora": True}, "it is a DoRA"),
        ({"lora_bias": True}, "it has biases (lora_bias)"),
        ({"bias": "all"}, "it has biases (bias: 'all')"),
        ({"modules_to_save": ["lm_head"]}, "it replaces whole modules (modules_to_save: 'lm_head')"),
        ({"r": 1024}, "its rank is 1024, and the engine takes 512 at most"),
        ({"rank_pattern": {"q_proj": 600}}, "its rank is 600"),
        ({"r": 0}, "its rank is 0"),
        ({"r": "8"}, "its rank '8' is no positive integer"),
        ({"r": None}, "adapter_config.json has no r"),
        ({"init_lora_weights": "pissa"}, "it was begun with init_lora_weights 'pissa'"),
        ({"alora_invocation_tokens": [1]}, "it is an activated LoRA"),
        ({"layer_replication": [[0, 2]]}, "it replicates layers"),
        ({"use_qalora": True}, "it is a QALoRA"),
        ({"use_bdlora": {"a": 1}}, "it is block-diagonal"),
        ({"peft_type": "PROMPT_TUNING"}, "it is of the kind 'PROMPT_TUNING'"),
    ],
)
def test_what_the_engine_refuses_is_refused_before(changes: dict[str, Any], why: str):
    assert refusal_of_config({**PLAIN, **changes}).startswith(why)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True},
        {"modules_to_save": ["score"]},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": True},
        {"r": 512},
    ],
)
def test_what_the_engine_takes_is_taken(changes: dict[str, Any]):
    assert refusal_of_config({**PLAIN, **changes}) == ""


def test_facts_pass_to_the_operator_as_they_are(hub):
    facts = ModelFacts(COMMIT, {"model_type": "llama"}, None, 0, (asked(hub),))
    assert from_document(to_document(facts)).adapters == facts.adapters


@pytest.mark.parametrize("broken", [{"rank": "8"}, {"name": None}, {"bytes": -1}, {"widths": [["q_proj", 1]]}])
def test_facts_from_a_pod_are_not_trusted(hub, broken):
    with pytest.raises(UnreadableDocument):
        AdapterFacts.from_dict({**asked(hub).to_dict(), **broken})


def test_an_adapter_is_copied_to_a_claim_as_a_model_is(hub, tmp_path: Path):
    found = copy_model("org/sql", "main", tmp_path, HubSettings(hub.url), CopyWatch())
    assert isinstance(found, Copied)
    directory = tmp_path / found.directory
    assert found.directory == f"org/sql/{COMMIT}"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {each.name for each in directory.iterdir()}
    assert read_directory_adapter("sql", directory, tmp_path, "pvc://models/org/sql").rank == 8
