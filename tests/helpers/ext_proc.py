"""The part of Envoy that talks to an endpoint picker: one ext-proc stream for each request.

The messages are those fields of Envoy's `external_processor.proto` that a picker reads and writes, with their numbers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
DESTINATION = "x-gateway-destination-endpoint"

# Messages with their fields: name, number, type; `*` means repeated, and any other type is one of these messages.
_MESSAGES: Mapping[str, tuple[tuple[str, int, str], ...]] = {
    "HeaderValue": (("key", 1, "string"), ("value", 2, "string"), ("raw_value", 3, "bytes")),
    "HeaderMap": (("headers", 1, "*HeaderValue"),),
    "HeaderValueOption": (("header", 1, "HeaderValue"),),
    "HeaderMutation": (("set_headers", 1, "*HeaderValueOption"), ("remove_headers", 2, "*string")),
    "HttpHeaders": (("headers", 1, "HeaderMap"), ("end_of_stream", 3, "bool")),
    "HttpBody": (("body", 1, "bytes"), ("end_of_stream", 2, "bool")),
    "StreamedBodyResponse": (("body", 1, "bytes"), ("end_of_stream", 2, "bool")),
    "BodyMutation": (("body", 1, "bytes"), ("streamed_response", 3, "StreamedBodyResponse")),
    "CommonResponse": (("header_mutation", 2, "HeaderMutation"), ("body_mutation", 3, "BodyMutation")),
    "PhaseResponse": (("response", 1, "CommonResponse"),),
    "HttpStatus": (("code", 1, "int32"),),
    "ImmediateResponse": (("status", 1, "HttpStatus"), ("body", 3, "bytes")),
    "ProcessingRequest": (("request_headers", 2, "HttpHeaders"), ("request_body", 4, "HttpBody")),
    "ProcessingResponse": (
        ("request_headers", 1, "PhaseResponse"),
        ("request_body", 3, "PhaseResponse"),
        ("immediate_response", 7, "ImmediateResponse"),
    ),
}


@dataclass
class Pick:
    """What a picker answered: an endpoint with the request as it is to be sent there, or a refusal."""

    endpoint: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    refused: int = 0
    """The status of its own answer to the client; 0 for none."""


async def pick(channel: grpc.aio.Channel, body: bytes, headers: Mapping[str, str]) -> Pick:
    """Ask the picker where to send a request."""
    call = channel.stream_stream(
        PROCESS,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=_TYPES["ProcessingResponse"].FromString,
    )
    found = Pick()
    stream = call(_requests(body, headers))
    async for response in stream:
        if response.HasField("immediate_response"):
            return Pick(refused=response.immediate_response.status.code)
        if response.HasField("request_headers"):
            mutation = response.request_headers.response.header_mutation
            found.headers = {each.header.key: each.header.raw_value.decode() for each in mutation.set_headers}
            found.endpoint = found.headers.pop(DESTINATION)
        if response.HasField("request_body"):
            streamed = response.request_body.response.body_mutation.streamed_response
            found.body += streamed.body
            if streamed.end_of_stream:
                break
    stream.cancel()
    return found


async def _requests(body: bytes, headers: Mapping[str, str]) -> AsyncIterator[Any]:
    request = _TYPES["ProcessingRequest"]
    values = [_TYPES["HeaderValue"](key=key, raw_value=value.encode()) for key, value in headers.items()]
    yield request(request_headers=_TYPES["HttpHeaders"](headers=_TYPES["HeaderMap"](headers=values)))
    yield request(request_body=_TYPES["HttpBody"](body=body, end_of_stream=True))


def _types() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="ext_proc.proto", package="ext_proc", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind in fields:
            _add_field(message, field_name, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ext_proc.{name}")) for name in _MESSAGES}


def _add_field(message: Any, name: str, number: int, kind: str) -> None:
    of = descriptor_pb2.FieldDescriptorProto
    label = of.LABEL_REPEATED if kind.startswith("*") else of.LABEL_OPTIONAL
    kind = kind.removeprefix("*")
    if kind in _MESSAGES:
        message.field.add(name=name, number=number, label=label, type=of.TYPE_MESSAGE, type_name=f".ext_proc.{kind}")
    else:
        message.field.add(name=name, number=number, label=label, type=getattr(of, f"TYPE_{kind.upper()}"))


_TYPES = _types()
