"""The progress of a copy on its way to the operator. Pods are not trusted."""

from __future__ import annotations

import json
import math

import pytest

from uellm.documents import UnreadableDocument
from uellm.hub import LookUpRefusal
from uellm.hub.copy_document import from_document, to_document
from uellm.hub.copy_state import Copied, Progress, described

STATES = [
    Progress(0, 0, None, False),
    Progress(5, 10, 2.5, False),
    Progress(5, 10, None, True),
    Copied("c0ffee", "org/model/c0ffee", 3, 10**12),
    Copied("c0ffee", "org/model/c0ffee", 3, 10**12, ".compiled/llama"),
    LookUpRefusal("VolumeFull", "claim x is too small", None),
    LookUpRefusal("RateLimited", "ask again in 30 s", 30.0),
]


@pytest.mark.parametrize("state", STATES)
def test_what_is_read_is_what_was_written(state):
    assert from_document(json.loads(json.dumps(to_document(state)))) == state


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"version": 2, "progress": {}},
        {"progress": 7},
        {"progress": {"bytes": -1, "ofBytes": 2, "waits": False}},
        {"progress": {"bytes": 1.5, "ofBytes": 2, "waits": False}},
        {"progress": {"bytes": 1, "ofBytes": 2**60, "waits": False}},
        {"progress": {"bytes": 1, "ofBytes": 2, "leftS": [], "waits": False}},
        {"copied": {"commit": 7, "directory": "a", "files": 1, "bytes": 1}},
        {"copied": {"commit": "a", "directory": "a\n", "files": 1, "bytes": 1}},
        {"copied": {"commit": "a", "directory": "a", "files": True, "bytes": 1}},
        {"refusal": {"reason": "Else", "message": "x"}},
    ],
)
def test_nonsense_is_unreadable(document):
    with pytest.raises(UnreadableDocument):
        from_document(document)


def test_a_time_that_is_none_is_not_shown():
    for left_s in (-1.0, math.nan, math.inf):
        assert from_document({"progress": {"bytes": 1, "ofBytes": 2, "leftS": left_s, "waits": False}}).left_s is None
    assert from_document({"progress": {"bytes": 9, "ofBytes": 2, "leftS": None, "waits": False}}).bytes == 2


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(52_200_000_000, 141_000_000_000, 238.0, False), "37 % of 141 GB, about 4 min"),
        (Progress(1, 10**9, None, False), "0 % of 1.0 GB"),
        (Progress(1, 10**9, 3.0, False), "0 % of 1.0 GB, about 1 min"),
        (Progress(1, 10**12, 4 * 3600.0, False), "0 % of 1.0 TB, about 4 h"),
        (Progress(1, 2, 9.0, True), "50 % of 2 B, by another pod that has begun before"),
        (Progress(0, 0, None, False), "its list of files is being read"),
    ],
)
def test_progress_is_told_in_a_few_words(progress, text):
    assert described(progress) == text
