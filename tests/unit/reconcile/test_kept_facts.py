"""The facts of a model in their ConfigMap: read as they were written, and refused as soon as anything differs."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace

import pytest

from uellm.hub import DraftFacts, ModelFacts
from uellm.models import Tensor
from uellm.reconcile.inspection.kept_facts import facts_configmap, names_model, read_commits, read_facts
from uellm.reconcile.inspection.question import KnownCommits

FACTS = ModelFacts("c0ffee", {"hidden_size": 8, "name": "é"}, {"a": Tensor("BF16", (4, 2))}, 3)


@pytest.fixture
def kept(make):
    return facts_configmap(make.service(), FACTS, "source")


def test_facts_are_read_as_they_were_written(kept):
    found = read_facts(json.loads(json.dumps(kept)), "source")
    assert (found.commit, found.config, found.tensors, found.files) == (
        "c0ffee",
        FACTS.config,
        FACTS.tensors,
        3,
    )
    assert (kept["metadata"]["name"], kept["metadata"]["ownerReferences"][0]["uid"]) == ("llama-model", "service-uid")


def test_facts_without_headers_are_kept_too(make):
    kept = facts_configmap(make.service(), ModelFacts("", {}, None), "source")
    assert "binaryData" not in kept
    assert read_facts(kept, "source").tensors is None


def test_a_draft_is_kept_with_its_headers(make):
    draft = DraftFacts("hf://org/small@main", replace(FACTS, commit="beef"))
    kept = json.loads(json.dumps(facts_configmap(make.service(), replace(FACTS, draft=draft), "source")))
    found = read_facts(kept, "source").draft
    assert (found.source, found.facts.commit, found.facts.config) == (draft.source, "beef", FACTS.config)
    assert found.facts.tensors == FACTS.tensors
    told = json.loads(kept["data"]["model.json"])
    told["draft"]["commit"] = "another"
    kept["data"]["model.json"] = json.dumps(told)
    assert read_facts(kept, "source") is None


def test_the_commits_are_known_of_the_same_model_whatever_else_was_asked(make):
    draft = DraftFacts("hf://org/small@main", replace(FACTS, commit="beef"))
    kept = json.loads(json.dumps(facts_configmap(make.service(), replace(FACTS, draft=draft), "source", "model")))
    assert read_facts(kept, "source").commit == "c0ffee"
    assert read_commits(kept, "model") == KnownCommits("c0ffee", "hf://org/small@main", "beef")
    assert read_commits(kept, "another model") == KnownCommits()
    kept["data"]["model.json"] = kept["data"]["model.json"].replace("c0ffee", "facade")
    assert read_commits(kept, "model") == KnownCommits()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model":"model"}'])
def test_no_commit_is_known_from_what_cannot_be_read(make, content):
    kept = facts_configmap(make.service(), FACTS, "source", "model")
    kept["data"]["model.json"] = content
    assert read_commits(kept, "model") == KnownCommits()


def test_facts_of_an_earlier_release_do_not_say_of_which_model_they_are(make, kept):
    assert not names_model(kept)
    assert read_commits(kept, "model") == KnownCommits()
    assert names_model(facts_configmap(make.service(), FACTS, "source", "model"))


def test_the_answer_to_another_question_is_none(kept):
    assert read_facts(kept, "another") is None


def about(**changed):
    def change(kept):
        read = json.loads(kept["data"]["model.json"])
        kept["data"]["model.json"] = json.dumps({**read, **changed})

    return change


def text(name, content):
    return lambda kept: kept["data"].update({name: content})


def binary(content):
    return lambda kept: kept["binaryData"].update({"tensors.json.z": content})


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept.pop("data"),
        lambda kept: kept.pop("binaryData"),
        lambda kept: kept["data"].pop("config.json"),
        text("model.json", ""),
        text("model.json", "[]"),
        text("model.json", "[" * 100_000),
        text("config.json", "{}"),
        text("config.json", "[" * 100_000),
        binary("?"),
        binary(base64.b64encode(zlib.compress(b'{"BF16": {"a": [4, 3]}}')).decode()),
        binary(base64.b64encode(zlib.compress(bytes(80 << 20))).decode()),
        about(commit="beef"),
        about(files=4),
        about(version=2),
        about(digest=7),
        about(commit=None, digest=None),
    ],
)
def test_what_somebody_has_changed_is_not_used(kept, change):
    change(kept)
    assert read_facts(kept, "source") is None
