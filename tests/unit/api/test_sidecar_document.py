from __future__ import annotations

import pytest
from pydantic import ValidationError

from uellm.api.sidecar_document import (
    SidecarAuth,
    SidecarClass,
    SidecarDocument,
    SidecarEngine,
    SidecarStepSeconds,
)

STEP = SidecarStepSeconds(floor=0.01, per_prefill_token=1e-5, per_kv_token=0, per_sequence=0, overhead=0.001)
FULL = SidecarDocument(
    model="llama",
    classes=(SidecarClass(name="chat", ttft="1s"), SidecarClass(name="batch", e2e="60s", on_deadline="Reject")),
    default_class="batch",
    engine=SidecarEngine(max_num_seqs=64, max_num_batched_tokens=512, accepts_priority=True, step_seconds=STEP),
    auth=SidecarAuth(keys_directory="/etc/keys"),
)


def test_a_document_is_read_back_as_it_was_written():
    assert SidecarDocument.from_dict(FULL.to_dict()) == FULL


def test_a_document_says_its_version_first_and_leaves_out_what_is_default():
    document = SidecarDocument(classes=(SidecarClass(name="default"),)).to_dict()
    assert list(document) == ["version", "classes", "scheduling"]
    assert document["version"] == 1


def test_a_key_of_a_newer_operator_is_ignored():
    document = {**FULL.to_dict(), "version": 2, "new": 1}
    document["engine"] = {**document["engine"], "new": 1}
    assert SidecarDocument.from_dict(document).engine == FULL.engine


def test_a_step_that_takes_no_time_is_refused():
    step = {**STEP.to_dict(), "floor": 0, "overhead": 0}
    with pytest.raises(ValidationError, match="a step takes some time"):
        SidecarDocument.from_dict({"classes": [], "engine": {"stepSeconds": step}})


def test_a_default_class_that_does_not_exist_is_refused():
    with pytest.raises(ValidationError, match="'x' is not one of the classes default"):
        SidecarDocument.from_dict({"classes": [], "defaultClass": "x"})
