from __future__ import annotations

import pytest
from multidict import CIMultiDict

from uellm.proxying.keys import Keys, key_of
from uellm.proxying.outcome import Refusal, RequestOutcome


def test_without_keys_every_request_is_accepted():
    Keys().check("POST", "/v1/chat/completions", None)


def test_one_of_the_keys_is_enough():
    keys = Keys(["sk-first", "sk-second"])
    for key in ("sk-first", "sk-second"):
        keys.check("POST", "/v1/chat/completions", key)


@pytest.mark.parametrize("key", [None, "", "sk-firs", "sk-first ", "SK-FIRST", "sk-third", "\udcff"])
def test_any_other_key_is_refused_without_being_quoted(key):
    with pytest.raises(Refusal) as refused:
        Keys(["sk-first"]).check("GET", "/v1/models", key)
    assert (refused.value.outcome, refused.value.status) == (RequestOutcome.UNAUTHORIZED, 401)
    assert refused.value.headers()["WWW-Authenticate"] == "Bearer"
    assert not key or key.encode("utf-8", "replace") not in refused.value.body()


def test_before_the_keys_exist_every_request_is_refused():
    with pytest.raises(Refusal):
        Keys([]).check("POST", "/v1/chat/completions", "anything")


@pytest.mark.parametrize("path", ["/health", "/ping", "/metrics", "/version"])
def test_probes_and_scrapers_need_no_key(path):
    Keys(["sk-first"]).check("GET", path, None)


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"Authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer  abc "}, "abc"),
        ({"Authorization": "Basic abc"}, None),
        ({"Authorization": "Bearer"}, None),
        ({"x-api-key": "abc"}, "abc"),
        ({"Authorization": "Bearer abc", "x-api-key": "other"}, "abc"),
        ({}, None),
    ],
)
def test_a_key_comes_as_a_bearer_token_or_as_anthropics_header(headers, key):
    assert key_of(CIMultiDict(headers)) == key
