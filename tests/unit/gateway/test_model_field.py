"""The model's name is found without parsing the body, and nothing else of the body changes."""

from __future__ import annotations

import asyncio
import json
import re
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uellm.gateway import model_field as model_field_module
from uellm.gateway.door import in_turns
from uellm.gateway.model_field import PIECE_BYTES, ModelField
from uellm.gateway.model_field import model_field as searched
from uellm.proxying.outcome import Refusal

JSON = "application/json"
FORM = 'multipart/form-data; boundary="b0"'


def pieces_and_field(kind: str | None, body: bytes) -> tuple[int, ModelField]:
    search, pieces = searched(kind, body), 1
    while True:
        try:
            next(search)
        except StopIteration as end:
            return pieces, end.value
        pieces += 1


def model_field(kind: str | None, body: bytes) -> ModelField:
    return pieces_and_field(kind, body)[1]


def found_or_refused(kind: str, body: bytes) -> ModelField | str:
    try:
        return model_field(kind, body)
    except Refusal as refusal:
        return refusal.message


def form(*parts: tuple[str, bytes]) -> bytes:
    lines = [
        b"--b0\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + value + b"\r\n"
        for head, value in parts
    ]
    return b"".join(lines) + b"--b0--\r\n"


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model":"a"}', "a"),
        (b' \n{ "x" : {"model":"inner"}, "model" : "a" }', "a"),
        (b'{"messages":[{"content":"\\"model\\":\\"x\\" }{"}],"model":"a/b"}', "a/b"),
        (b'{"mod\\u0065l":"a"}', "a"),
        (b'{"model":"\\u00fcber"}', "über"),
        (b'{"x":"model","model":"a"}', "a"),
        (b'{"x":["model","y"],"model":"a"} trailing', "a"),
        (b'\xef\xbb\xbf{"model":"a"}', "a"),
        (b'{"x":' + b"[" * 99 + b'{"model":"b"}' + b"]" * 99 + b',"model":"a"}', "a"),
    ],
)
def test_the_name_is_that_of_the_outermost_object(body: bytes, name: str) -> None:
    assert model_field(JSON, body).name == name


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not a JSON object in UTF-8"),
        (b"[]", "the body is not a JSON object in UTF-8"),
        (b"{}", "the body has no field `model`; name one of the models that GET /v1/models lists"),
        (b'{"x":{"model":"a"}}', "the body has no field `model`; name one of the models that GET /v1/models lists"),
        (b'{"model":"a","model":"b"}', "the body has more than one field `model`; send it once"),
        (b'{"model":"a","mod\\u0065l":"b"}', "the body has more than one field `model`; send it once"),
        (b'{"model":5}', "the field `model` is not a text"),
        (b'{"model":["a"]}', "the field `model` is not a text"),
        (b'{"model":"\n"}', "the field `model` is not a text"),
        ('{"model":"a"}'.encode("utf-16"), "the body is not a JSON object in UTF-8"),
        ('{"model":"a"}'.encode("utf-16-le"), "the body is not a JSON object in UTF-8"),
        (b'{"x":' + b"[" * 200_000, "the body has too many values that are nested deeply"),
        (b'{"x":"', "the body is not JSON: a string has no end"),
        (b'{"model":"', "the field `model` is not a text"),
    ],
)
def test_a_body_without_exactly_one_name_is_refused_with_the_reason(body: bytes, message: str) -> None:
    with pytest.raises(Refusal) as refused:
        model_field(JSON, body)
    assert (refused.value.status, refused.value.message) == (400, message)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(
    before=st.dictionaries(st.text().filter(lambda key: key != "model"), VALUES, max_size=4),
    after=st.dictionaries(st.text().filter(lambda key: key != "model"), VALUES, max_size=4),
    name=st.text(),
    other=st.text(min_size=1),
    ascii_only=st.booleans(),
    indent=st.none() | st.integers(0, 2),
)
def test_whatever_surrounds_the_name_it_is_found_and_replaced(
    before: dict[str, object],
    after: dict[str, object],
    name: str,
    other: str,
    ascii_only: bool,
    indent: int | None,
) -> None:
    document = before | {"model": name} | after
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent)
    body = text.encode("utf-8", "surrogatepass")
    field = model_field(JSON, body)
    assert field.name == name
    assert json.loads(field.replaced(body, other).decode("utf-8", "surrogatepass")) == document | {"model": other}


@given(st.binary(max_size=200))
def test_any_bytes_give_a_name_or_a_refusal(body: bytes) -> None:
    for kind in (JSON, FORM, None):
        try:
            field = model_field(kind, body)
        except Refusal:
            continue
        assert 0 <= field.start <= field.end <= len(body)


def test_a_long_text_with_many_escapes_costs_neither_stack_nor_memory() -> None:
    body = b'{"x":"' + b"\\n" * 2_000_000 + b'","model":"a"}'
    assert model_field(JSON, body).name == "a"


@pytest.mark.parametrize("value", [b"[]", b'"a"', b"7", b'{"role":"user","content":[{"text":"x{"}]}'])
def test_many_short_values_are_skipped_at_once(value: bytes) -> None:
    body = b'{"x":[' + b",".join([value] * 100_001) + b'],"model":"a"}'
    assert model_field(JSON, body).name == "a"


LONG = PIECE_BYTES * 20


@pytest.mark.parametrize(
    "value",
    [
        b'"' + b"A" * LONG + b'"',
        b'"' + b'word \\" ' * (LONG // 8) + b'"',
        b'"' + b"\\\\" * (LONG // 2) + b'"',
        b"[" + b"100000, " * (LONG // 8) + b"1]",
        b"[" + b'{"role":"user","content":[{"type":"text","text":"model"}]},' * (LONG // 60) + b'"model"]',
        b"[" * 4000 + b"]" * 4000,
    ],
    ids=["base64", "escapes", "backslashes", "token ids", "conversation", "nested deeply"],
)
@pytest.mark.parametrize("behind", [True, False])
def test_a_long_body_is_looked_at_in_pieces(value: bytes, behind: bool) -> None:
    body = b'{"x":' + value + b',"model":"a"}' if behind else b'{"model":"a","x":' + value + b"}"
    pieces, field = pieces_and_field(JSON, body)
    assert (field.name, body[field.start : field.end]) == ("a", b'"a"')
    assert pieces >= (19 if len(value) > LONG // 2 else 5)


def test_a_long_form_is_looked_at_in_pieces() -> None:
    body = form(('name="file"', b"\r\n--b" * (LONG // 5)), ('name="model"', b"whisper"))
    pieces, field = pieces_and_field(FORM, body)
    assert field.name == "whisper"
    assert pieces >= 19


@given(
    st.dictionaries(st.sampled_from(["model", "x", "a model", 'mod"el', "models"]), VALUES, min_size=1, max_size=5),
    st.integers(1, 30),
    st.booleans(),
)
def test_where_a_piece_ends_makes_no_difference(document: dict[str, object], piece: int, in_form: bool) -> None:
    kind, body = JSON, json.dumps(document).encode()
    if in_form:
        kind, body = FORM, form(*((f'name="{name}"', json.dumps(value).encode()) for name, value in document.items()))
    whole = found_or_refused(kind, body)
    with patch.object(model_field_module, "PIECE_BYTES", piece):
        assert found_or_refused(kind, body) == whole


@pytest.mark.parametrize(
    ("head", "content"),
    [
        (b'Content-Disposition: form-data; filename="a name=model b.wav"; name="file"', b"x"),
        (b'Content-Disposition: form-data; filename="a\\"; name=\\"model\\""; name="file"', b"x"),
        (b'X-Content-Disposition: form-data; name="model"\r\nContent-Disposition: form-data; name="file"', b"x"),
        (b'Content-Disposition: form-data; name="file"', b"x\r\n--b0x\r\ny"),
    ],
    ids=["name in a file's name", "quotes in a file's name", "another header", "beginning of a boundary"],
)
def test_what_looks_like_a_model_or_a_boundary_is_none(head: bytes, content: bytes) -> None:
    other = b"--b0\r\n" + head + b"\r\n\r\n" + content + b"\r\n"
    assert model_field(FORM, other + form(('name="model"', b"whisper"))).name == "whisper"


def test_a_form_names_its_model_in_a_part() -> None:
    audio = b"\x00\r\n--b\r\nname=model\r\n\r\nno\r\n"
    body = form(('name="file"; filename="model"', audio), ('name="model"', b"whisper"), ('name="language"', b"en"))
    field = model_field(FORM, body)
    assert field.name == "whisper"
    assert field.replaced(body, "other") == body.replace(b"whisper", b"other")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            form(('name="model"', b"a"), ('name="model"', b"b")),
            "the body has more than one field `model`; send it once",
        ),
        (
            form(('name="file"', b"a")),
            "the body has no field `model`; name one of the models that GET /v1/models lists",
        ),
        (form(('name="model"', b"a"))[:-12], "the form is not complete"),
        (b"", "the form is not complete"),
    ],
)
def test_a_form_without_exactly_one_name_is_refused_with_the_reason(body: bytes, message: str) -> None:
    with pytest.raises(Refusal) as refused:
        model_field(FORM, body)
    assert refused.value.message == message


def test_a_form_needs_a_boundary() -> None:
    with pytest.raises(Refusal, match="the form has no boundary"):
        model_field("multipart/form-data", b"")


async def test_everything_else_has_a_turn_after_each_piece() -> None:
    body = b'{"x":"' + b"A" * LONG + b'","model":"a"}'
    pieces, field = pieces_and_field(JSON, body)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    assert await in_turns(searched(JSON, body)) == field
    beside.cancel()
    assert turns >= pieces - 1


def test_no_group_is_repeated_possessively_for_that_goes_wrong_before_python_3_11_5():
    patterns = [each.pattern for each in vars(model_field_module).values() if isinstance(each, re.Pattern)]
    assert patterns
    assert not [each for each in patterns if re.search(rb"\)[*+?]\+", each)]
