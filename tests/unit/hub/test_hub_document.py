"""The result of a look-up on its way from the pod to the operator: whole, small, and not trusted."""

from __future__ import annotations

import base64
import json
import random
import zlib

import pytest

from uellm.documents import UnreadableDocument
from uellm.hub import LookUpRefusal, ModelFacts
from uellm.hub.document import LONGEST_WAIT_S, from_document, to_document
from uellm.hub.packing import pack, unpack
from uellm.models import Tensor

TENSORS = {"a": Tensor("BF16", (4, 2)), "b": Tensor("F8_E4M3", (3,)), "c": Tensor("F32", ())}
NESTED = json.loads("[" * 900 + "]" * 900)
FACTS = ModelFacts("c0ffee", {"hidden_size": 8}, TENSORS, 2)


def sent(found):
    return from_document(json.loads(json.dumps(to_document(found))))


def test_facts_arrive_as_they_were_sent():
    found = sent(FACTS)
    assert (found.commit, found.config, found.tensors, found.files) == ("c0ffee", {"hidden_size": 8}, TENSORS, 2)
    assert sent(ModelFacts("", {}, None)).tensors is None


def test_a_refusal_arrives_as_one_line_with_its_time():
    refusal = LookUpRefusal("RateLimited", "ask\nagain", 37.0)
    assert sent(refusal) == LookUpRefusal("RateLimited", "ask again", 37.0)
    assert sent(LookUpRefusal("Gated", "no")) == LookUpRefusal("Gated", "no")


@pytest.mark.parametrize("wait_s", [1e9, -1.0, float("nan")])
def test_nobody_is_kept_waiting_for_ever(wait_s):
    assert sent(LookUpRefusal("RateLimited", "later", wait_s)).retry_after_s == LONGEST_WAIT_S


def test_headers_of_a_large_model_are_packed_into_little_room():
    names = (
        f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight" for layer in range(40) for expert in range(128)
    )
    tensors = {name: Tensor("BF16", (2048, 7168)) for name in names}
    assert unpack(pack(tensors)) == tensors
    assert len(pack(tensors)) < 4 * len(tensors)


def test_headers_that_do_not_fit_are_left_out_and_the_number_of_files_stays():
    draw = random.Random(1)
    tensors = {f"{draw.getrandbits(400):0100x}": Tensor("BF16", (draw.randrange(1 << 30),)) for _ in range(20_000)}
    found = sent(ModelFacts("c", {}, tensors, 3))
    assert (found.tensors, found.files) == (None, 3)


def test_a_configuration_that_is_too_long_is_a_refusal():
    found = sent(ModelFacts("c", {"a": "x" * 500_000}, None))
    cause = "its config.json has 500,008 bytes, and at most 400,000 are kept"
    assert (found.reason, found.message) == ("InvalidAnswer", f"the model cannot be kept: {cause}")


@pytest.mark.parametrize(
    ("value", "cause"), [(NESTED, "is nested more than 64 deep"), ("\ud800", "has text that is not Unicode")]
)
def test_a_configuration_that_no_object_can_hold_is_a_refusal(value, cause):
    found = sent(ModelFacts("c", {"a": value}, None))
    assert found.message == f"the model cannot be kept: its config.json {cause}"


def test_a_sentence_of_a_pod_has_printable_characters_alone():
    found = sent(LookUpRefusal("Gated", "a\x00b\ud800c\n\td é"))
    assert found.message == "a b c d é"


def facts(**changed):
    return {"version": 1, "facts": {"commit": "c", "config": {}, "files": 1, **changed}}


def packed(text):
    return base64.b64encode(zlib.compress(text if isinstance(text, bytes) else json.dumps(text).encode())).decode()


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"version": 2, "facts": {}},
        {"version": 1},
        {"facts": None},
        facts(config=[]),
        facts(config="x"),
        facts(config={"a": "x" * 500_000}),
        facts(config={"a": NESTED}),
        facts(config={"a": "\ud800"}),
        facts(commit=7),
        facts(commit="a" * 200),
        facts(commit="a\nb"),
        facts(files="many"),
        facts(files=-1),
        facts(files=10**9),
        facts(files=True),
        facts(tensors=7),
        facts(tensors="?"),
        facts(tensors="AAAA"),
        facts(tensors=base64.b64encode(bytes(1_000_000)).decode()),
        facts(tensors=packed([])),
        facts(tensors=packed(b"[" * 100_000)),
        facts(tensors=packed(bytes(80 << 20))),
        facts(tensors=packed({"BF16": []})),
        facts(tensors=packed({"X9": {"a": [1]}})),
        facts(tensors=packed({"BF16": {"a": 1}})),
        facts(tensors=packed({"BF16": {"a": [-1]}})),
        facts(tensors=packed({"BF16": {"a": [1.5]}})),
        facts(tensors=packed({"BF16": {"a": [True]}})),
        facts(tensors=packed({"BF16": {"a": [1 << 60]}})),
        facts(tensors=packed({"BF16": {"a": [2] * 9}})),
        facts(tensors=packed({"BF16": {"a" * 600: [1]}})),
        facts(tensors=packed({"BF16": {"a": NESTED}})),
        {"refusal": None},
        {"refusal": {"reason": "Gated"}},
        {"refusal": {"reason": "Ready", "message": "x"}},
        {"refusal": {"reason": ["Gated"], "message": "x"}},
        {"refusal": {"reason": "Gated", "message": 7}},
        {"refusal": {"reason": "Gated", "message": "x", "retryAfterS": "soon"}},
    ],
)
def test_whatever_else_a_pod_says_is_one_line(document):
    with pytest.raises(UnreadableDocument) as caught:
        from_document(document)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_is_packed_twice_is_the_same():
    assert pack(dict(reversed(TENSORS.items()))) == pack(TENSORS)
