from __future__ import annotations

import json

import pytest

from uellm.errors import UellmError
from uellm.kube.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    Unauthorized,
    Unavailable,
    error_from,
)


def status(code: int, reason: str = "", message: str = "it is so", **details: object) -> bytes:
    document = {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message}
    return json.dumps({**document, "details": details}).encode()


@pytest.mark.parametrize(
    ("code", "reason", "expected", "transient"),
    [
        (400, "BadRequest", Invalid, False),
        (401, "Unauthorized", Unauthorized, False),
        (403, "Forbidden", Forbidden, False),
        (404, "NotFound", NotFound, False),
        (409, "Conflict", Conflict, True),
        (409, "AlreadyExists", AlreadyExists, False),
        (410, "Expired", Gone, True),
        (410, "Gone", Gone, True),
        (422, "Invalid", Invalid, False),
        (429, "TooManyRequests", Unavailable, True),
        (500, "InternalError", Unavailable, True),
        (503, "ServiceUnavailable", Unavailable, True),
        (504, "Timeout", Unavailable, True),
        (418, "Teapot", KubeError, False),
    ],
)
def test_a_status_becomes_the_error_that_says_whether_to_try_again(code, reason, expected, transient):
    error = error_from(code, status(code, reason))
    assert type(error) is expected
    assert (error.status, error.reason, error.transient, str(error)) == (code, reason, transient, "it is so")


def test_every_error_is_one_that_a_command_can_show():
    assert issubclass(KubeError, UellmError)


def test_an_invalid_object_names_its_fields():
    causes = [{"reason": "FieldValueInvalid", "field": "spec.slo", "message": "must have one class"}]
    assert error_from(422, status(422, "Invalid", causes=causes)).causes == (("spec.slo", "must have one class"),)


@pytest.mark.parametrize(
    ("message", "causes"),
    [
        (
            "failed to create typed patch object (d/a; /v1, Kind=ConfigMap): .datum: field not declared in schema",
            (("datum", "field not declared in schema"),),
        ),
        (
            "failed to create typed patch object (d/a; apps/v1, Kind=Deployment): errors:\n"
            '  .spec.template.spec.containers[name="e"].env: duplicate entries for key [name="X"]\n'
            "  .spec.replica: field not declared in schema",
            (
                ('spec.template.spec.containers[name="e"].env', 'duplicate entries for key [name="X"]'),
                ("spec.replica", "field not declared in schema"),
            ),
        ),
    ],
)
def test_an_apply_against_the_schema_is_invalid_although_the_server_says_500(message, causes):
    error = error_from(500, status(500, message=message))
    assert isinstance(error, Invalid)
    assert not error.transient
    assert error.causes == causes
    assert "\n" not in str(error)


def test_what_a_proxy_writes_becomes_a_sentence_with_the_call_in_it():
    error = error_from(502, b"<html>bad\ngateway</html>", what="GET /api/v1/nodes")
    assert isinstance(error, Unavailable)
    assert str(error) == "GET /api/v1/nodes: HTTP status 502 <html>bad gateway</html>"


@pytest.mark.parametrize(
    ("header", "details", "seconds"),
    [
        ("7", {}, 7.0),
        (None, {"retryAfterSeconds": 3}, 3.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", {}, None),
        (None, {}, None),
    ],
)
def test_the_servers_own_wish_for_a_delay_is_kept(header, details, seconds):
    assert error_from(429, status(429, "TooManyRequests", **details), retry_after=header).retry_after_s == seconds
